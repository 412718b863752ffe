"""Is native LIBERO equal to original LIBERO? Both are run side by side, task by task."""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_crl.progress import track
from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.libero.world import World

NUM_STEPS = 20
"""Random actions, of full range."""
NUM_PERTURBED = 40
"""States in which the goals are compared."""
NUM_STATES = 8
"""Official initial states from which one is chosen to begin from."""
MAX_DIFFERENCE = 1e-12
"""Of joint positions (m, rad) after the random actions."""


@dataclass(frozen=True)
class Verification:
    """What was found in one task.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        max_abs_dqpos: Largest difference of a joint position after any of the random actions.
        max_abs_dstate: Of what the robot feels, after any of them.
        terms_equal: Of the goal's terms in perturbed states, how many are equal.
        terms_true: How many are true.
        terms: How many there were.
        done_equal: Of the control steps, how many end, or do not end, the episode in both.
        steps: How many there were.
    """

    suite: str
    task: str
    max_abs_dqpos: float
    max_abs_dstate: float
    terms_equal: int
    terms_true: int
    terms: int
    done_equal: int
    steps: int

    @property
    def is_equal(self) -> bool:
        """Whether the task is what it should be."""
        return (
            self.max_abs_dqpos <= MAX_DIFFERENCE
            and self.max_abs_dstate <= MAX_DIFFERENCE
            and self.terms_equal == self.terms
            and self.done_equal == self.steps
        )


def verify(
    suite: LiberoSuite, tasks: Sequence[int] | None = None, *, seed: int = 0
) -> list[Verification]:
    """Compare tasks with original LIBERO.

    From one official initial state of each task the same random actions are played in both, and
    positions, what the robot feels and the end of the episode are compared at every step. Then
    things are thrown about, things of the goal near where it wants them, and each term of the goal
    is evaluated by LIBERO's own evaluator and by ours.

    Args:
        suite: Which tasks there are.
        tasks: Their indices, by default all.
        seed: Of actions, states and perturbations.

    Raises:
        ConfigError: A package is missing.
    """
    chosen = range(len(suite.tasks)) if tasks is None else tasks
    rows = []
    with track(f"verifying {suite.name}", len(chosen)) as progress:
        for task in chosen:
            rows.append(_verify_task(suite, task, np.random.default_rng([seed, task])))
            progress.advance(1, suite.tasks[task].name)
    return rows


def _verify_task(suite: LiberoSuite, index: int, rng: np.random.Generator) -> Verification:
    task = suite.tasks[index]
    sim = LiberoSim(suite, 1, num_threads=1, image_size=1, tasks=[index])
    try:
        original = OriginalTask(task.benchmark, task.key)
        state_id = int(rng.integers(NUM_STATES))
        dqpos, dstate, done_equal = _play(sim, original, index, state_id, rng)
        equal, true, terms = _perturb(suite, sim.baked(index), original, rng)
    finally:
        sim.close()
    return Verification(
        suite.name, task.name, dqpos, dstate, equal, true, terms, done_equal, NUM_STEPS
    )


def _play(
    sim: LiberoSim, original: OriginalTask, task: int, state_id: int, rng: np.random.Generator
) -> tuple[float, float, int]:
    """Play random actions in both; return differences and equal ends."""
    env, suite = original.env, sim.suite
    original.begin(state_id, suite.protocol)
    sim.reset([0], tasks=[task], state_ids=[suite.test_ids[state_id]])
    actions = rng.uniform(-1.0, 1.0, (NUM_STEPS, 7))
    actions[::5, 3:6] = 0.0  # a goal of the rotation is kept then
    dqpos = dstate = done_equal = 0
    for action in actions:
        observation, _, done, _ = env.step(action)
        result = sim.step_chunk(action[None, None])
        expected = env.sim.data.qpos
        found = sim.slots.physics[0, 1 : 1 + len(expected)]
        dqpos = max(dqpos, np.abs(found - expected).max())
        felt = [observation[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        ours = sim.slots.grip_pos[0], sim.slots.hand_quat[0, [1, 2, 3, 0]], sim.slots.qpos[0, 7:9]
        dstate = max(dstate, np.abs(np.concatenate(felt) - np.concatenate(ours)).max())
        done_equal += bool(done) == bool(result.success[0])
        if result.success[0]:
            break  # the original would go on
    return float(dqpos), float(dstate), done_equal


def _perturb(
    suite: LiberoSuite, task: BakedTask, original: OriginalTask, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Evaluate the terms of the goal in perturbed states; return equal, true and all."""
    model, data, world = original.model, original.env.sim.data._data, World(task)
    equal = true = total = 0
    for place in range(NUM_PERTURBED):
        fixtures = original.begin(place // 10, suite.protocol, wait=False)
        qpos = _thrown(task, model, data, rng)
        data.qpos[:], data.qvel[:] = qpos, 0.0
        mujoco.mj_forward(model, data)
        expected, found = original.terms_hold(), world.terms_hold(qpos, fixtures)
        equal += int(np.sum(np.array(expected) == found))
        true += sum(expected)
        total += len(expected)
    return equal, true, total


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
