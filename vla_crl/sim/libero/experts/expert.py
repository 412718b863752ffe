"""The scripted expert of LIBERO's tasks: what a goal still lacks, one term after another."""

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, cast

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.experts.joints import Joint, command_to_move
from vla_crl.sim.libero.experts.motion import action_of
from vla_crl.sim.libero.experts.place import Memory, command_to_place
from vla_crl.sim.libero.experts.shapes import shapes_of
from vla_crl.sim.libero.experts.spots import Place
from vla_crl.sim.libero.experts.view import View, view_of
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.simulation import NO_THING

OPEN_M = 0.1
"""A drawer that is pulled out less is opened before something is put into it."""


class Step(NamedTuple):
    """How to make a term of a goal true.

    Attributes:
        term: Its number.
        thing: Body that is moved; of a joint, that which it moves.
        doing: The joint to move, or the place of the thing.
        needs: A drawer's joint that has to be pulled out before.
    """

    term: int
    thing: int
    doing: Joint | Place
    needs: int | None = None


class LiberoExpert:
    """Acts on the first term of the goal that does not hold yet, closing things last.

    Of an episode it remembers how it is grasping things, and nothing else.
    """

    def __init__(self, sim: LiberoSim) -> None:
        """Prepare for the slots of a simulation.

        Raises:
            ConfigError: It is the original, whose worlds cannot be looked into.
        """
        if not isinstance(cast(Any, sim), LiberoSim):
            name = sim.suite.name
            raise ConfigError(
                f"suite '{name}': LIBERO itself has no scripted expert; use a policy, or the suite "
                f"'{name.removesuffix('@original')}'"
            )
        self._sim = sim
        self._memory = [Memory() for _ in range(sim.num_slots)]
        self._last = np.full((sim.num_slots, 3), -1)

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the expert's action [B, 7] for each of `slots`."""
        return np.stack([self._act(int(slot)) for slot in slots])

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that matter now: what is moved, and where to (or NO_THING)."""
        return np.array([self._named(int(slot)) for slot in slots])

    def _act(self, slot: int) -> np.ndarray:
        sim, row, last = self._sim, self._sim.row(slot), self._last[slot]
        now = np.array([row.task, sim.state_ids[slot], row.num_steps])
        if (now[:2] != last[:2]).any() or not 0 <= now[2] - last[2] <= 1:
            self._memory[slot] = Memory()
        view, memory = view_of(sim, slot), self._memory[slot]
        if now[2] != last[2]:
            memory.watch(view.grip)
        self._last[slot] = now
        step = self._step(slot)
        if step.needs is not None and not _is_out(view, step.needs):
            drawer = _joint_to(view.shapes.model, step.needs, is_out=True)
            return action_of(view, command_to_move(view, memory, drawer))
        if isinstance(step.doing, Joint):
            return action_of(view, command_to_move(view, memory, step.doing))
        return action_of(view, command_to_place(view, memory, step.thing, step.doing))

    def _step(self, slot: int) -> Step:
        """Return what to do about the first term that does not hold."""
        steps = steps_of(self._sim.baked_in(slot))
        if len(steps) == 1:
            return steps[0]
        holds = self._sim.terms(slot)
        return next((step for step in steps if not holds[step.term]), steps[-1])

    def _named(self, slot: int) -> tuple[int, int]:
        step, task = self._step(slot), self._sim.baked_in(slot)
        thing = self._index(task, step.thing)
        if isinstance(step.doing, Joint):
            return thing, NO_THING
        target = step.doing.target
        if step.doing.kind != "on_thing":
            target = int(task.physics.site_bodyid[target])
        return thing, self._index(task, target)

    def _index(self, task: BakedTask, body: int) -> int:
        """Return the place in the suite's things of what a body belongs to."""
        root, instances = int(shapes_of(task).root[body]), [*self._sim.suite.instances.values()]
        for name, number in task.bodies.items():
            if number == root and name in instances:
                return instances.index(name)
        return NO_THING


@lru_cache(maxsize=256)
def steps_of(task: BakedTask) -> tuple[Step, ...]:
    """Return how to make the terms of a task's goal true, in the order in which they are made."""
    terms, model = task.about["goal"], task.physics
    steps = [_step_of(model, index, term) for index, term in enumerate(terms)]
    places = [(step, step.doing) for step in steps if isinstance(step.doing, Place)]
    for target in {place.target for _, place in places}:
        same = [(step, place) for step, place in places if place.target == target]
        for rank, (step, place) in enumerate(same):
            steps[step.term] = step._replace(doing=replace(place, rank=(rank, len(same))))
    carried = {step.thing for step, _ in places}
    return tuple(sorted(steps, key=lambda step: _order(model, step, carried)))


def _order(model: mujoco.MjModel, step: Step, carried: set[int]) -> int:
    """Return when a step is made: what is opened first, what is closed or stacked last."""
    if isinstance(step.doing, Joint):
        is_slide = model.jnt_type[step.doing.joint] == mujoco.mjtJoint.mjJNT_SLIDE
        closes = is_slide and not _moves_out(model, step.doing)
        is_door = not is_slide and "micro" in model.joint(step.doing.joint).name
        return 3 if closes or (is_door and step.doing.is_up) else 0
    return 2 if step.doing.target in carried else 1


def _step_of(model: mujoco.MjModel, index: int, term: dict[str, Any]) -> Step:
    kind = term["kind"]
    if kind in ("any_joint", "all_joints"):
        joint = Joint(model.joint(term["joints"][0]).id, term["comparison"] != "below")
        return Step(index, int(model.jnt_bodyid[joint.joint]), joint)
    thing = model.body(term["body"]).id
    if kind == "on_thing":
        return Step(index, thing, Place(kind, model.body(term["target"]).id, np.zeros(3)))
    site = model.site(term["target"]).id
    body = int(model.site_bodyid[site])
    is_drawer = model.body_jntnum[body] and (
        model.jnt_type[model.body_jntadr[body]] == mujoco.mjtJoint.mjJNT_SLIDE
    )
    needs = int(model.body_jntadr[body]) if is_drawer else None
    return Step(index, thing, Place(kind, site, np.array(term["size"])), needs)


def _joint_to(model: mujoco.MjModel, joint: int, *, is_out: bool) -> Joint:
    up = Joint(joint, is_up=True)
    return up if _moves_out(model, up) == is_out else Joint(joint, is_up=False)


def _moves_out(model: mujoco.MjModel, joint: Joint) -> bool:
    """Tell whether a drawer comes out so: its range is longer on that side."""
    low, high = model.jnt_range[joint.joint]
    return (abs(high) > abs(low)) == joint.is_up


def _is_out(view: View, joint: int) -> bool:
    return bool(abs(view.qpos[view.shapes.model.jnt_qposadr[joint]]) > OPEN_M)
