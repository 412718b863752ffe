"""Initial states for training, sampled from LIBERO's own placement regions and then at rest."""

import zlib

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.kernel.slots import Scratch, Slots, new_slots, scratch_of
from vla_crl.sim.libero.kernel.stepping import begin_slots, evaluate_terms
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.native.kernel.slots import STATE_SPEC
from vla_crl.sim.outcomes import RUNNING

SETTLE_STEPS = 20
"""Control steps in which things that were placed come to rest."""
MAX_SLIDE_M, MAX_SPEED, MAX_DEPTH_M = 0.05, 0.05, 0.003
"""What is rejected: things that moved further from where they were placed, that are faster in the
end (m/s, rad/s), or deeper in one another."""
TRIES = 20
"""Placements for each state, at most."""


def sample_states(original: OriginalTask, task: BakedTask, count: int) -> dict[str, np.ndarray]:
    """Sample initial states that are not solved, at rest, and with nothing inside another thing.

    Args:
        original: Samples placements.
        task: The same task, simulated.
        count: M.

    Returns:
        `train` [M, 1 + nq + nv] (time, qpos, qvel) and `train fixtures` [M, F, 7].

    Raises:
        ConfigError: Too many placements are rejected.
    """
    name = f"{task.about['benchmark']} {task.about['task']}"
    first, model = zlib.crc32(name.encode()), task.physics
    settling = _Settling(task)
    states, fixtures = np.zeros((count, 1 + model.nq + model.nv)), []
    for seed in range(first, first + TRIES * count):
        placement = original.sample(seed % 2**32)
        qpos = settling.at_rest(placement.qpos, placement.fixtures)
        if qpos is not None:
            states[len(fixtures), 1 : 1 + model.nq] = qpos
            fixtures.append(placement.fixtures)
        if len(fixtures) == count:
            return {"train": states, "train fixtures": np.array(fixtures)}
    raise ConfigError(
        f"{name}: of {TRIES * count} placements only {len(fixtures)} can be begun from, expected "
        f"{count}"
    )


class _Settling:
    """One world in which placements come to rest."""

    def __init__(self, task: BakedTask) -> None:
        self._scene = task.scene(horizon=1, wait_steps=SETTLE_STEPS, sleeps=False)
        self._slots: Slots = new_slots(1)
        self._scratch: Scratch
        self._scratch, self._model, self._data = scratch_of(task.physics)
        arm = len(task.about["arm"]["joints"]) + len(task.about["arm"]["fingers"])
        self._robot = slice(arm)
        free = self._model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        self._free = self._model.jnt_qposadr[free][:, None] + np.arange(2)

    def at_rest(self, qpos: np.ndarray, fixtures: np.ndarray) -> np.ndarray | None:
        """Return where a placement comes to rest [nq], or None if it cannot be begun from."""
        model, data, slots = self._model, self._data, self._slots
        mujoco.mj_resetData(model, data)
        data.qpos[:] = qpos
        size = mujoco.mj_stateSize(model, STATE_SPEC)
        mujoco.mj_getState(model, data, slots.physics[0, :size], STATE_SPEC)
        slots.fixtures[0, : len(fixtures)] = fixtures
        chosen = np.zeros(1, np.int64)
        begin_slots(self._scene, self._scratch, slots, chosen)
        if slots.outcome[0] != RUNNING:
            return None
        mujoco.mj_setState(model, data, slots.physics[0, :size], STATE_SPEC)
        if np.abs(data.qvel[self._robot.stop :]).max(initial=0.0) > MAX_SPEED:
            return None
        settled = data.qpos.copy()
        settled[self._robot] = qpos[self._robot]
        slide = np.linalg.norm(settled[self._free] - qpos[self._free], axis=1)
        if slide.max(initial=0.0) > MAX_SLIDE_M:
            return None
        data.qpos[:], data.qvel[:] = settled, 0.0
        mujoco.mj_forward(model, data)
        if data.contact.dist.min(initial=0.0) < -MAX_DEPTH_M:
            return None
        mujoco.mj_getState(model, data, slots.physics[0, :size], STATE_SPEC)
        holds = np.zeros((1, self._scene.goals.kind.size), np.bool_)
        evaluate_terms(self._scene, self._scratch, slots, chosen, holds)
        return None if holds.all() else settled
