"""One world of a baked task, for what is done outside of episodes."""

import mujoco
import numpy as np

from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.kernel.slots import Scratch, new_slots, scratch_of
from vla_crl.sim.libero.kernel.stepping import begin_slots, evaluate_terms
from vla_crl.sim.outcomes import RUNNING
from vla_crl.sim.packed_state import STATE_SPEC

_ONLY = np.zeros(1, np.int64)


class World:
    """A baked task into which positions can be put.

    Attributes:
        model: Of its physics.
        data: What was last put in.
    """

    def __init__(self, task: BakedTask, wait_steps: int = 0) -> None:
        """Make it.

        Args:
            task: Which.
            wait_steps: Control steps of `rest`.
        """
        self._scene = task.scene(horizon=1, wait_steps=wait_steps, sleeps=False)
        self._slots = new_slots(1)
        self._scratch: Scratch
        self._scratch, self.model, self.data = scratch_of(task.physics)
        self._size = mujoco.mj_stateSize(self.model, STATE_SPEC)

    def rest(self, qpos: np.ndarray, fixtures: np.ndarray) -> bool:
        """Let a world be for a while, the robot standing still; `data` then has its state.

        Args:
            qpos: [nq].
            fixtures: [F, 7].

        Returns:
            Whether physics stayed healthy.
        """
        self._put(qpos, fixtures)
        begin_slots(self._scene, self._scratch, self._slots, _ONLY)
        packed = self._slots.physics[0, : self._size]
        mujoco.mj_setState(self.model, self.data, packed, STATE_SPEC)
        return bool(self._slots.outcome[0] == RUNNING)

    def terms_hold(self, qpos: np.ndarray, fixtures: np.ndarray) -> np.ndarray:
        """Return [T] which terms of the goal hold; `data` then has poses and contacts.

        Args:
            qpos: [nq].
            fixtures: [F, 7].
        """
        self._put(qpos, fixtures)
        holds = np.zeros((1, self._scene.goals.kind.size), np.bool_)
        evaluate_terms(self._scene, self._scratch, self._slots, _ONLY, holds)
        return holds[0]

    def _put(self, qpos: np.ndarray, fixtures: np.ndarray) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = qpos
        packed = self._slots.physics[0, : self._size]
        mujoco.mj_getState(self.model, self.data, packed, STATE_SPEC)
        self._slots.fixtures[0, : len(fixtures)] = fixtures
