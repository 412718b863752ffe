"""A simulation that can do less than it could, to test who asks for more."""

from collections.abc import Sequence

import numpy as np

from vla_crl.contracts import ChunkResult, Observation
from vla_crl.sim.simulation import Indices, Simulation
from vla_crl.sim.task_suite import TaskSuite


class Limited:
    """A simulation that lacks some extras, to test what needs them."""

    def __init__(self, sim: Simulation, extras: Sequence[type]) -> None:
        """Offer what every simulation does.

        Args:
            sim: What does the work.
            extras: Protocols of `vla_crl.sim.simulation` that are offered as well.
        """
        self._sim = sim
        self.num_slots, self.divergences = sim.num_slots, sim.divergences
        for extra in extras:
            for name in vars(extra):
                if not name.startswith("_"):
                    setattr(self, name, getattr(sim, name))

    @property
    def suite(self) -> TaskSuite:
        """What is simulated."""
        return self._sim.suite

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._sim.tasks

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._sim.state_ids

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`."""
        self._sim.reset(slots, tasks=tasks, state_ids=state_ids)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot."""
        return self._sim.step_chunk(actions, slots)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Return what the robots of `slots` see and feel."""
        return self._sim.observe(slots, images=images)

    def close(self) -> None:
        """Stop the threads."""
        self._sim.close()
