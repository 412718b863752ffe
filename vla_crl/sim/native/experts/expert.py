"""The scripted expert: does what a task's goal still lacks, one predicate after another."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from vla_crl.contracts import POSE_ACTION
from vla_crl.errors import ConfigError
from vla_crl.sim.native.experts.commanding import commanding
from vla_crl.sim.native.experts.place import PickAndPlace
from vla_crl.sim.native.experts.push import MoveJoint, PushThing
from vla_crl.sim.native.experts.release import Release
from vla_crl.sim.native.experts.skill import Skill
from vla_crl.sim.native.goals import DIRECTIONS, Goal
from vla_crl.sim.native.layout import GRIP_DOWN
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.rotations import axis_angle_from_matrix


class ScriptedExpert:
    """Acts on the first predicate of the goal that does not hold yet.

    The action is a function of the current state alone.
    """

    def __init__(self, sim: VectorSim) -> None:
        """Prepare for all tasks of the simulation's suite.

        Raises:
            ConfigError: A goal has a predicate that no skill makes true, or the simulation is none
                whose worlds it can look into.
        """
        if not isinstance(cast(Any, sim), VectorSim):
            raise ConfigError(
                f"the scripted expert of '{sim.suite.name}' acts in a VectorSim, not in a "
                f'{type(sim).__name__}; simulate on the CPU (sim_device = "cpu")'
            )
        self._sim, suite = sim, sim.suite
        terms = [list(_wanted(task.goal, task.name)) for task in suite.tasks]
        self._start = np.cumsum([0, *(len(part) for part in terms)])
        scenes = np.repeat(suite.scene_of_task, np.diff(self._start))
        flat = [term for part in terms for term in part]
        self._goals = [
            scene.compile([t if s == k else None for t, s in zip(flat, scenes, strict=True)])
            for k, scene in enumerate(suite.scenes)
        ]
        self._skills = [
            _skill(sim, int(scene), term) for scene, term in zip(scenes, flat, strict=True)
        ]
        self._named = np.array([skill.named for skill in self._skills])

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the expert's action [B, A] for each of `slots`."""
        current = self._current(slots)
        target, close = np.empty((len(slots), 3)), np.empty(len(slots), dtype=bool)
        for index in np.unique(current):
            rows = np.flatnonzero(current == index)
            target[rows], close[rows] = self._skills[index].command(slots[rows])
        grip, rotation = self._sim.grip_pose(slots)
        suite, action = self._sim.suite, np.empty((len(slots), len(POSE_ACTION)))
        arms = [scene.config.arm for scene in suite.scenes]
        scenes = suite.scene_of_task[self._sim.tasks[slots]]
        step_m = np.array([arm.max_step_m for arm in arms])[scenes, None]
        step_rad = np.array([arm.max_step_rad for arm in arms])[scenes, None]
        # x' = x - gain x(t - latency) overshoots unless the gain falls with the latency.
        gain = 1.0 / (1.0 + 2.0 * self._sim.action_latency(slots)[:, None])
        action[:, :3] = gain * (target - grip) / step_m
        correction = GRIP_DOWN @ np.swapaxes(rotation, 1, 2)  # world-frame turn back to upright
        turn = axis_angle_from_matrix(correction)
        angle = np.linalg.norm(turn, axis=1, keepdims=True)
        turn *= np.where(angle > np.pi, (angle - 2 * np.pi) / np.maximum(angle, 1e-9), 1.0)
        action[:, 3:6] = gain * turn / step_rad
        action[:, 6] = np.where(close, 1.0, -1.0)
        return commanding(self._sim, slots, np.clip(action, -1.0, 1.0))

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that matter now: what is moved, and where to (or NO_THING)."""
        return self._named[self._current(slots)]

    def _current(self, slots: np.ndarray) -> np.ndarray:
        """Return [B] the first predicate that does not hold, the last if all do."""
        tasks = self._sim.tasks[slots]
        first, last = self._start[tasks], self._start[tasks + 1] - 1
        current = last.copy()
        for back in range(int((last - first).max(initial=0)), -1, -1):
            index = np.minimum(first + back, last)
            lacks = ~self._sim.satisfied(self._goals, index, slots)
            current = np.where(lacks, index, current)
        return current


def _wanted(goal: Goal, task: str) -> Iterator[Goal]:
    """Yield the predicates that suffice for a goal; of alternatives the first that can be made.

    What a goal forbids beside what it wants is left to hold as it does when the episode begins.
    """
    if not goal.parts:
        yield goal
        return
    parts = [] if goal.name == "not" else [part for part in goal.parts if part.name != "not"]
    if not parts:
        raise ConfigError(
            f"task '{task}': the scripted expert cannot make 'not' true; name what it should do"
        )
    for part in parts[:1] if goal.name == "or" else parts:
        yield from _wanted(part, task)


def _skill(sim: VectorSim, scene: int, term: Goal) -> Skill:
    if term.name == "released":
        return Release(sim, term)
    if term.name in {"in", "on", "stacked", "between", *DIRECTIONS}:
        thing = sim.suite.scenes[scene].thing(term.arguments[0])
        if not thing.is_graspable and term.name != "in":
            raise ConfigError(
                f"the scripted expert only pushes '{thing.name}' (is_graspable = false) into a "
                f"region and cannot make '{term.name}' true"
            )
        skill = PickAndPlace if thing.is_graspable else PushThing
        return skill(sim, scene, term)
    return MoveJoint(sim, scene, term)
