"""What every backend of the suites does, so that one can stand in for another.

`Simulation` is all that collecting and evaluating need. The rest are extras that a backend may
lack: whoever needs one asks for it with `require`, before the work.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult, Observation
from vla_crl.errors import ConfigError
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.task_suite import TaskSuite

Indices = Sequence[int] | np.ndarray
"""Whole numbers, such as those of slots."""
NO_THING = -1
"""In `Expert.named`: the instruction names no second thing."""


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

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; several may be of one initial state."""

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends."""
        ...

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Return what the robots of `slots` (all by default) see and feel.

        Without `images` nothing is drawn.
        """
        ...

    def close(self) -> None:
        """Let go of threads or of a device's memory."""


class Expert(Protocol):
    """Solves the tasks of a suite, knowing what policies cannot see."""

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the next action [B, A] in each of `slots`."""
        ...

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that matter now: what is moved, and where to (or NO_THING)."""
        ...


class CameraPoses(NamedTuple):
    """The policy's cameras in B slots; one looks along its -z, x is right and y up.

    Attributes:
        position: [B, C, 3] m, world.
        rotation: [B, C, 3, 3] from the camera's frame to the world's.
        fovy_rad: [B, C] vertical field of view.
    """

    position: np.ndarray
    rotation: np.ndarray
    fovy_rad: np.ndarray


@runtime_checkable
class Grounded(Protocol):
    """Knows where things are: for labels of demonstrations."""

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world), NaN for what is not there."""
        ...

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        ...


@runtime_checkable
class Filmed(Protocol):
    """Can be looked at by people, in any size."""

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` (all by default) from a camera of their scenes: [B, pixels, pixels, 3]."""
        ...


@runtime_checkable
class MujocoScenes(Protocol):
    """Can show a slot to MuJoCo's own renderer."""

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is drawn of a slot's scene; to be copied, not changed."""
        ...

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put what is seen of a slot into a copy of its `scene_model` and an MjData of that."""


@runtime_checkable
class Resumable(Protocol):
    """Can go on from where another simulation of the suite stopped."""

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on; arrays, first dimension N."""
        ...

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned."""


@runtime_checkable
class Shaped(Protocol):
    """Knows how far its goals have come: for dense rewards."""

    def goal_progress(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B] from 0 to 1; 1 where the goal holds."""
        ...


@runtime_checkable
class Privileged(Protocol):
    """Tells learners that may know it where things are."""

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """What the P numbers of the privileged state are."""
        ...

    def privileged_state(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, P] float32."""
        ...


Extra = TypeVar("Extra")


def require(sim: Simulation, extra: type[Extra], purpose: str) -> Extra:
    """Return `sim` as one that has an extra.

    Args:
        sim: Any simulation.
        extra: `Grounded`, `Filmed`, `Resumable`, `Shaped` or `Privileged`.
        purpose: What it is needed for, to complete "cannot be ...".

    Raises:
        ConfigError: The backend lacks it.
    """
    if not isinstance(cast(Any, sim), extra):
        lacks = [name for name in _members(extra) if not hasattr(sim, name)]
        raise ConfigError(
            f"suite '{sim.suite.name}' cannot be {purpose}: its backend "
            f"'{sim.suite.backend}' lacks {', '.join(lacks)} ({extra.__name__} of "
            "vla_crl.sim.simulation)"
        )
    return cast(Extra, sim)


def _members(protocol: type) -> list[str]:
    return sorted(name for name in vars(protocol) if not name.startswith("_"))
