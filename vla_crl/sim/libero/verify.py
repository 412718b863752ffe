"""Is native LIBERO equal to original LIBERO? Both are run side by side, task by task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mujoco
import numpy as np

from vla_crl.progress import track
from vla_crl.sim.backends import find_suite
from vla_crl.sim.libero.bake import bake_tasks
from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.package import import_libero
from vla_crl.sim.libero.scripted_episode import play_expert, replay_in_original, replay_nudged
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.libero.world import World
from vla_crl.sim.verification import MAX_DIFFERENCE, drawn_tasks

SUITE = "libero_130"
NUM_STEPS = 20
"""Random actions, of full range."""
NUM_PERTURBED = 40
"""States in which the goals are compared."""
NUM_STATES = 8
"""Official initial states from which one is chosen to begin from."""
NUM_TRIES = 3
"""Of them the scripted expert begins from one after another, until it succeeds."""
NUM_NUDGES = 4
"""Of how the same episode goes on after a change that is as small as a rounding."""


@dataclass(frozen=True)
class Row:
    """What was found in one task.

    Attributes:
        suite: LIBERO's name of the benchmark.
        task: Its name.
        max_abs_dqpos: Greatest difference of a joint position (m, rad) in random steps.
        max_abs_dobserved: Greatest difference of what the robot feels, as it is observed.
        num_steps: Random steps.
        num_same_end: Those that end, or do not end, the episode in both.
        num_terms: Terms of the goal that were evaluated in perturbed states.
        num_true: Those that hold in the original.
        num_agreed: Those of which we say the same.
        state_id: Official initial state of the scripted episode.
        num_replayed: Its actions that were played in the original.
        done_step: After which of them ours ends with success; None: within its horizon it does not.
        original_done_step: After which the original's does.
        episode_dqpos: Greatest difference of a joint position (m, rad) after any of them.
        last_dqpos: After the last.
        nudged_dqpos: The greatest from our own that a change by a rounding at its beginning makes.
    """

    suite: str
    task: str
    max_abs_dqpos: float
    max_abs_dobserved: float
    num_steps: int
    num_same_end: int
    num_terms: int
    num_true: int
    num_agreed: int
    state_id: int
    num_replayed: int
    done_step: int | None
    original_done_step: int | None
    episode_dqpos: float
    last_dqpos: float
    nudged_dqpos: float

    @property
    def agrees(self) -> bool:
        """Whether nothing differs, but for the positions in the scripted episode.

        Contacts let the roundings of hundreds of steps grow; where they end must be the same.
        """
        return (
            max(self.max_abs_dqpos, self.max_abs_dobserved) <= MAX_DIFFERENCE
            and self.num_same_end == self.num_steps
            and self.num_agreed == self.num_terms
            and self.done_step == self.original_done_step
        )


def verify(tasks: int | None = None, seed: int = 0) -> list[Row]:
    """Compare tasks with original LIBERO, in the order of the suite.

    From one official initial state of each task the same random actions are played in both, and
    positions, what the robot feels and the end of the episode are compared at every step. Then
    things are thrown about, things of the goal near where it wants them, and each term of the goal
    is evaluated by LIBERO's own evaluator and by ours. Last, the scripted expert plays an episode
    in ours, and its actions are played in the original, which is to be done in the same step.

    Args:
        tasks: How many, drawn with the seed; all by default.
        seed: Of initial states, random actions and perturbations.

    Raises:
        ConfigError: A package is missing, or there are fewer tasks.
    """
    import_libero()
    suite = cast(LiberoSuite, find_suite(SUITE))
    drawn = drawn_tasks("verify libero", len(suite.tasks), tasks, seed)
    bake_tasks([suite.tasks[task].baked_as for task in drawn])
    rows = []
    with track("verify libero", len(drawn)) as bar:
        for task in drawn:
            rows.append(compare(suite, task, seed))
            bar.advance(1, rows[-1].task)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = [
        "| suite | task | max abs dqpos | max abs dobserved | steps: same end | "
        "goal terms: same answer | of them true | episode: same done step | steps replayed | "
        "episode's max abs dqpos | its last | of a nudge |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.suite} | `{row.task}` | {row.max_abs_dqpos:.1e} | {row.max_abs_dobserved:.1e} | "
        f"{row.num_same_end} of {row.num_steps} | {row.num_agreed} of {row.num_terms} | "
        f"{row.num_true} | {_done_steps(row)} | {row.num_replayed} | {row.episode_dqpos:.1e} | "
        f"{row.last_dqpos:.1e} | {row.nudged_dqpos:.1e} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _done_steps(row: Row) -> str:
    ours, theirs = ("none" if i is None else i for i in (row.done_step, row.original_done_step))
    return f"{ours} {'=' if ours == theirs else '!='} {theirs}"


def compare(suite: LiberoSuite, index: int, seed: int) -> Row:
    """Compare one task of a suite with the original."""
    task, rng = suite.tasks[index], np.random.default_rng([seed, index])
    sim = LiberoSim(suite, 1, num_threads=1, image_size=1, tasks=[index])
    try:
        original = OriginalTask(task.benchmark, task.name)
        state_id = int(rng.integers(NUM_STATES))
        dqpos, dobserved, steps, same_end = _play(sim, original, index, state_id, rng)
        terms, true, agreed = _perturb(suite, sim.baked(index), original, rng)
        tried = [(state_id + i) % NUM_STATES for i in range(NUM_TRIES)]
        episode = play_expert(sim, index, tried)
        replay = replay_in_original(episode, original, suite.protocol)
        nudged = [replay_nudged(episode, sim, rng).dqpos.max() for _ in range(NUM_NUDGES)]
    finally:
        sim.close()
    return Row(
        suite=task.benchmark,
        task=task.name,
        max_abs_dqpos=dqpos,
        max_abs_dobserved=dobserved,
        num_steps=steps,
        num_same_end=same_end,
        num_terms=terms,
        num_true=true,
        num_agreed=agreed,
        state_id=episode.state_id,
        num_replayed=len(replay.dqpos),
        done_step=episode.done_step,
        original_done_step=replay.done_step,
        episode_dqpos=float(replay.dqpos.max()),
        last_dqpos=float(replay.dqpos[-1]),
        nudged_dqpos=float(max(nudged)),
    )


def _play(
    sim: LiberoSim, original: OriginalTask, task: int, state_id: int, rng: np.random.Generator
) -> tuple[float, float, int, int]:
    """Play random actions in both; return differences, steps and equal ends."""
    env, suite = original.env, sim.suite
    original.begin(state_id, suite.protocol)
    sim.reset([0], tasks=[task], state_ids=[suite.test_ids[state_id]])
    actions = rng.uniform(-1.0, 1.0, (NUM_STEPS, 7))
    actions[::5, 3:6] = 0.0  # a goal of the rotation is kept then
    dqpos = dobserved = 0.0
    steps = same_end = 0
    for action in actions:
        observation, _, done, _ = env.step(action)
        result = sim.step_chunk(action[None, None])
        expected = env.sim.data.qpos
        found = sim.slots.physics[0, 1 : 1 + len(expected)]
        dqpos = max(dqpos, np.abs(found - expected).max())
        felt = [observation[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        ours = sim.slots.grip_pos[0], sim.slots.hand_quat[0, [1, 2, 3, 0]], sim.slots.qpos[0, 7:9]
        dobserved = max(dobserved, np.abs(np.concatenate(felt) - np.concatenate(ours)).max())
        steps += 1
        same_end += bool(done) == bool(result.success[0])
        if result.success[0]:
            break  # the original would go on
    return float(dqpos), float(dobserved), steps, same_end


def _perturb(
    suite: LiberoSuite, task: BakedTask, original: OriginalTask, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Evaluate the terms of the goal in perturbed states; return all, true ones and equal ones."""
    model, data, world = original.model, original.env.sim.data._data, World(task)
    total = true = equal = 0
    for place in range(NUM_PERTURBED):
        fixtures = original.begin(place // 10, suite.protocol, wait=False)
        qpos = _thrown(task, model, data, rng)
        data.qpos[:], data.qvel[:] = qpos, 0.0
        mujoco.mj_forward(model, data)
        expected, found = original.terms_hold(), world.terms_hold(qpos, fixtures)
        equal += int(np.sum(np.array(expected) == found))
        true += sum(expected)
        total += len(expected)
    return total, true, equal


def _thrown(
    task: BakedTask, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator
) -> np.ndarray:
    """Return joint positions near a solution of some terms: things on or in what they belong to."""
    qpos = data.qpos.copy()
    for joint in range(model.njnt):
        if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE and model.jnt_dofadr[joint] > 8:
            low, high = model.jnt_range[joint]
            qpos[model.jnt_qposadr[joint]] = rng.uniform(low - 0.02, high + 0.02)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    for term in (term for term in task.about["goal"] if "body" in term):
        address = int(model.jnt_qposadr[model.body(term["body"]).jntadr[0]])
        if term["kind"] == "on_thing":
            target = data.xpos[model.body(term["target"]).id]
            offset = rng.normal(0.0, (0.015, 0.015, 0.015))
        else:
            target = data.site_xpos[model.site(term["target"]).id]
            offset = rng.uniform(-1.5, 1.5, 3) * np.maximum(term["size"], 0.02)
        qpos[address : address + 3] = target + offset
        if rng.random() < 0.5:
            turn = rng.normal(size=4)
            qpos[address + 3 : address + 7] = turn / np.linalg.norm(turn)
    return qpos
