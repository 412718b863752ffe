"""MuJoCo alone on the motion of LIBERO's tasks: the same states, torques and contacts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import mujoco
import mujoco.rollout
import numpy as np

from vla_crl.bench.sim import START_SPEC, state_part
from vla_crl.bench.workload import Turn, Workload
from vla_crl.sim.libero.kernel.arm import NUM_SUBSTEPS
from vla_crl.sim.libero.libero_sim import LiberoSim

WARMSTART = int(mujoco.mjtState.mjSTATE_WARMSTART)
CTRL = int(mujoco.mjtState.mjSTATE_CTRL)


class Motion(NamedTuple):
    """What a slot did.

    Attributes:
        task: Index of its task.
        fixtures: Bodies without a joint that differ from episode to episode.
        fixture_poses: [F, 7] where they are.
        start: [1, START_SPEC] physics before.
        warmstart: [1, nv] what the solver begins with.
        controls: [1, T * 25, nu] torques and finger commands in every physics step.
    """

    task: int
    fixtures: list[int]
    fixture_poses: np.ndarray
    start: np.ndarray
    warmstart: np.ndarray
    controls: np.ndarray


def record_motion(sim: LiberoSim, slot: int, actions: np.ndarray) -> Motion:
    """Let a slot of an exact simulation that has begun execute actions [T, 7]."""
    task = int(sim.tasks[slot])
    model, about = sim.baked(task).physics, sim.baked(task).about
    fixtures = [model.body(name).id for name in about["fixtures"]]
    before, commands = sim.slots.physics[[slot]], []
    # MuJoCo calls this before the controller has written, so it sees the commands of the last step.
    mujoco.set_mjcb_control(lambda _model, data: commands.append(data.ctrl.copy()))
    try:
        sim.step_chunk(actions[None], [slot])
    finally:
        mujoco.set_mjcb_control(None)
    (last,) = state_part(model, sim.slots.physics[[slot]], CTRL)
    return Motion(
        task,
        fixtures,
        sim.slots.fixtures[slot, : len(fixtures)].copy(),
        state_part(model, before, START_SPEC),
        state_part(model, before, WARMSTART),
        np.array([[*commands[1:], last]]),
    )


def replay(pool: mujoco.rollout.Rollout, data: mujoco.MjData, motion: Motion) -> None:
    """Let MuJoCo make a motion by nothing but `mj_step`.

    Args:
        pool: Whose threads do it.
        data: Has the end of the motion then; of a copy of its task's model, in which the fixtures
            are put where they are.
        motion: What to do.
    """
    model, poses = data.model, motion.fixture_poses
    model.body_pos[motion.fixtures] = poses[:, :3]
    model.body_quat[motion.fixtures] = poses[:, 3:]
    pool.rollout(
        [model], [data], motion.start, motion.controls, control_spec=CTRL, skip_checks=True,
        nstep=motion.controls.shape[1], initial_warmstart=motion.warmstart,
    )  # fmt: skip


@contextmanager
def replay_turn(load: Workload, sim: LiberoSim) -> Iterator[Turn]:
    """Give what lets MuJoCo alone, on one thread, play a workload as `sim` does.

    Args:
        load: What is played.
        sim: Exact, with as many slots; its episodes are lost.
    """
    slots = range(sim.num_slots)
    sim.reset(slots, tasks=load.tasks, state_ids=load.state_ids)
    motions = [record_motion(sim, slot, load.actions[slot]) for slot in slots]
    datas = {
        task: mujoco.MjData(copy(sim.baked(task).physics))
        for task in {motion.task for motion in motions}
    }
    num_steps = sum(motion.controls.shape[1] for motion in motions) / NUM_SUBSTEPS
    with mujoco.rollout.Rollout(nthread=1) as pool:

        def turn() -> float:
            start = time.perf_counter()
            for motion in motions:
                replay(pool, datas[motion.task], motion)
            return num_steps / (time.perf_counter() - start)

        yield turn
