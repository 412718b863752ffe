"""Let go and move away."""

import numpy as np

from vla_crl.sim.native.experts.skill import Command, above
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.kernel.predicates import RELEASED_M
from vla_crl.sim.native.kernel.progress import OPEN_FINGER_M
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import NO_THING


class Release:
    """Makes "released" true."""

    def __init__(self, sim: VectorSim, goal: Goal) -> None:
        """Prepare for one predicate."""
        self._sim = sim
        self.named = (sim.suite.thing_index(goal.arguments[0]), NO_THING)

    def command(self, slots: np.ndarray) -> Command:
        """Open, then rise."""
        grip, _ = self._sim.grip_pose(slots)
        is_open = self._sim.finger_positions(slots).mean(axis=1) > OPEN_FINGER_M
        target = above(grip, grip[:, 2] + np.where(is_open, 2 * RELEASED_M, 0.0))
        return Command(target, np.zeros(len(slots), dtype=bool))
