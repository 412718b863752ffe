"""One world of a baked task, for what is done outside of episodes."""

import mujoco
import numpy as np

from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.kernel.slots import Scratch, new_slots, scratch_of
from vla_crl.sim.libero.kernel.stepping import STILL, begin_slots, evaluate_terms, step_slots
from vla_crl.sim.outcomes import RUNNING
from vla_crl.sim.packed_state import STATE_SPEC

_ONLY = np.zeros(1, np.int64)


class World:
    """A baked task into which positions can be put.

    Attributes:
        model: Of its physics.
        data: What was last put in.
    """

    def __init__(self, task: BakedTask) -> None:
        """Make it."""
        self._scene = task.scene(horizon=2**62, wait_steps=0, sleeps=False)
        self._slots = new_slots(1)
        self._scratch: Scratch
        self._scratch, self.model, self.data = scratch_of(task.physics)
        self._size = mujoco.mj_stateSize(self.model, STATE_SPEC)

    def begin(self, qpos: np.ndarray, fixtures: np.ndarray) -> None:
        """Put the world somewhere, at rest; arguments as of `terms_hold`."""
        self._put(qpos, fixtures)
        begin_slots(self._scene, self._scratch, self._slots, _ONLY)

    def wait(self, num_steps: int) -> bool:
        """Go on for control steps in which the robot stands still; `data` then has the state.

        Returns:
            Whether physics stayed healthy and the goal was not reached.
        """
        still = np.tile(STILL, (1, num_steps, 1))
        step_slots(self._scene, self._scratch, self._slots, _ONLY, still)
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
