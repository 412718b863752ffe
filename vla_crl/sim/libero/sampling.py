"""Initial states for training, sampled from LIBERO's own placement regions and then at rest."""

import zlib

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.world import World

SETTLE_STEPS, MAX_ROUNDS = 20, 4
"""Control steps in which things that were placed come to rest, and how often they are tried."""
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
        `states` [M, 1 + nq + nv] (time, qpos, qvel) and `fixtures` [M, F, 7].

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
            return {"states": states, "fixtures": np.array(fixtures)}
    raise ConfigError(
        f"{name}: of {TRIES * count} placements only {len(fixtures)} can be begun from, expected "
        f"{count}"
    )


class _Settling:
    """One world in which placements come to rest."""

    def __init__(self, task: BakedTask) -> None:
        self._world = World(task)
        arm = task.about["arm"]
        self._robot = slice(len(arm["joints"]) + len(arm["fingers"]))
        model = self._world.model
        free = model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        self._free = model.jnt_qposadr[free][:, None] + np.arange(2)

    def at_rest(self, qpos: np.ndarray, fixtures: np.ndarray) -> np.ndarray | None:
        """Return where a placement comes to rest [nq], or None if it cannot be begun from."""
        if not self._comes_to_rest(qpos, fixtures):
            return None
        data = self._world.data
        settled = data.qpos.copy()
        settled[self._robot] = qpos[self._robot]
        slide = np.linalg.norm(settled[self._free] - qpos[self._free], axis=1)
        if slide.max(initial=0.0) > MAX_SLIDE_M:
            return None
        solved = self._world.terms_hold(settled, fixtures).all()
        if solved or data.contact.dist.min(initial=0.0) < -MAX_DEPTH_M:
            return None
        return settled

    def _comes_to_rest(self, qpos: np.ndarray, fixtures: np.ndarray) -> bool:
        self._world.begin(qpos, fixtures)
        for _ in range(MAX_ROUNDS):
            if not self._world.wait(SETTLE_STEPS):
                return False
            speeds = self._world.data.qvel[self._robot.stop :]
            if np.abs(speeds).max(initial=0.0) < MAX_SPEED:
                return True
        return False
