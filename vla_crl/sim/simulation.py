"""What every backend of the suites does, so that one can stand in for another."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult, Observation
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.task_suite import TaskSuite


@runtime_checkable
class Simulation(Protocol):
    """N slots of one suite; `VectorSim` says what each member means.

    Attributes:
        num_slots: N.
        divergences: Every chunk under which physics blew up; whoever reads it may clear it.
    """

    num_slots: int
    divergences: list[Divergence]

    @property
    def suite(self) -> TaskSuite:
        """What is simulated."""
        ...

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


class Expert(Protocol):
    """Solves the tasks of a suite, knowing what policies cannot see."""

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the next action [B, 7] in each of `slots`."""
        ...

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that matter now: what is moved, and where to (or NOTHING)."""
        ...


class ScriptedSimulation(Simulation, Protocol):
    """A simulation that can be demonstrated and filmed as well."""

    def expert(self) -> Expert:
        """Return the scripted expert of the suite's tasks."""
        ...

    def instructions(self, slots: Sequence[int] | np.ndarray | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        ...

    def thing_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world), NaN for what is not there."""
        ...

    def camera_poses(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the policy's cameras: positions [B, C, 3] (m, world), matrices [B, C, 3, 3]."""
        ...

    def render(
        self, renderers: Mapping[int, BatchRenderer], rows: np.ndarray, images: np.ndarray
    ) -> None:
        """Draw `rows` with renderers of their scenes into images [B, cameras, H, W, 3]."""

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put what is seen of a slot into a copy of its scene's `suite.model` and its MjData."""
