"""What every backend of the suites does, so that one can stand in for another."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from vla_crl.contracts import ChunkResult, Observation
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.suite import Suite


@runtime_checkable
class Simulation(Protocol):
    """N slots of one suite; `VectorSim` says what each member means.

    Attributes:
        suite: What is simulated.
        num_slots: N.
        divergences: Every chunk under which physics blew up; whoever reads it may clear it.
    """

    suite: Suite
    num_slots: int
    divergences: list[Divergence]

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        ...

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        ...

    def reset(
        self, slots: Sequence[int] | np.ndarray, *, tasks: Sequence[int] | np.ndarray,
        state_ids: Sequence[int] | np.ndarray,
    ) -> None:  # fmt: skip
        """Start a new episode in each of `slots`."""

    def step_chunk(
        self, actions: np.ndarray, slots: Sequence[int] | np.ndarray | None = None
    ) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends."""
        ...

    def observe(self, slots: Sequence[int] | np.ndarray | None = None) -> Observation:
        """Return what the robots of `slots` (all by default) see and feel."""
        ...

    def close(self) -> None:
        """Let go of threads or of a device's memory."""
