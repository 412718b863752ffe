"""The border between worlds and policies: what a robot sees and does, and the checks of it."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np

from vla_crl.config import Names, Settings
from vla_crl.errors import ConfigError, SpecError

Split = Literal["train", "heldout"]
"""What a task of a suite is for: training, or zero-shot evaluation."""


@dataclass(frozen=True, kw_only=True)
class Embodiment(Settings):
    """The channels of a robot by name: a suite has one, a policy is built for one.

    Two embodiments whose names agree mean the same numbers, in the same order. A name of another
    meaning is another name.

    Example:
        Embodiment(action=("x", "y", "gripper"), state=("x", "y"), cameras=("top",))
    """

    action: Names
    """The A numbers of an action, each in [-1, 1]."""
    state: Names
    """The S numbers that the robot feels."""
    cameras: Names
    """The C views, in this order."""
    binary: tuple[str, ...] = ("gripper",)
    """Names of action numbers of which only the sign counts, where the action has them."""

    def __post_init__(self) -> None:
        """Check that the channels can be told apart.

        Raises:
            ConfigError: A kind has no channel, or one twice.
        """
        super().__post_init__()
        for kind in ("action", "state", "cameras"):
            names = getattr(self, kind)
            if len(set(names)) < len(names):
                raise ConfigError(f"embodiment: {kind} is {list(names)}, expected each name once")

    @property
    def is_binary(self) -> np.ndarray:
        """[A] bool: action numbers of which only the sign counts."""
        return np.isin(self.action, self.binary)


POSE_ACTION = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz", "gripper")
"""End-effector delta position 3, delta rotation 3 (axis-angle), gripper (-1 open, +1 close)."""
POSE_STATE = ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right")
"""End-effector position 3 (m, world), axis-angle 3 (rad, world), finger positions 2 (m)."""
JOINT_TARGET, JOINT_ANGLE = "target_", "angle_"
"""Begin the names of an action's number that says where a joint is to go, as a part of its range,
and of a state's that says where it is (rad)."""
ARM = Embodiment(action=POSE_ACTION, state=POSE_STATE, cameras=("agentview", "eye_in_hand"))
"""The arm of the tabletop suites and of LIBERO: one policy may run on all of them."""


def check_fits(policy: Embodiment, suite: Embodiment, where: str) -> None:
    """Check that a policy knows the channels of a suite.

    Args:
        policy: What the policy was built for.
        suite: What the suite has.
        where: Who brings them together, for the message.

    Raises:
        ConfigError: They differ; names the first difference.
    """
    for kind in ("action", "state", "cameras"):
        for place, (own, other) in enumerate(_side_by_side(policy, suite, kind)):
            if own != other:
                raise ConfigError(
                    f"{where}: {kind}[{place}] of the suite is {other}, the policy was trained "
                    f"with {own}; the suite has {', '.join(getattr(suite, kind))}. Choose a policy "
                    "of this robot, or another controller of the suite (SUITE@CONTROLLER)"
                )


def compare_pictures(policy: str, suite: str, where: str) -> None:
    """Warn where a suite's pictures are unlike those that a policy was trained on.

    Args:
        policy: `TaskSuite.pictures` of what the policy was trained on last; "": not known.
        suite: That of the suite.
        where: Who brings them together, for the message.
    """
    if policy and suite != policy:
        warnings.warn(
            f"{where}: the policy was trained on other pictures ({policy!r}) than it is shown "
            f"({suite or 'of which the suite tells nothing'}); expect it to fail, or pretrain and "
            "train one on these",
            stacklevel=2,
        )


def _side_by_side(policy: Embodiment, suite: Embodiment, kind: str) -> Iterator[tuple[str, str]]:
    for own, other in zip_longest(getattr(policy, kind), getattr(suite, kind)):
        yield _quoted(own), _quoted(other)


def _quoted(name: str | None) -> str:
    return "missing" if name is None else f"'{name}'"


@dataclass(frozen=True)
class Observation:
    """What a batch of N robots sees.

    Images and state are numpy's, or arrays of a device that `torch.from_dlpack` takes without a
    copy.

    Attributes:
        images: [N, C, H, W, 3] uint8, upright, RGB; H and W are 0 where nothing was to be drawn.
        state: [N, S] float32.
        instruction: One English sentence per robot.
    """

    images: np.ndarray
    state: np.ndarray
    instruction: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instruction)

    def select(self, index: Sequence[int] | np.ndarray) -> "Observation":
        """Return the rows named by integer `index`."""
        return Observation(
            self.images[index], self.state[index], tuple(self.instruction[int(i)] for i in index)
        )

    def validate(self, embodiment: Embodiment) -> "Observation":
        """Check shapes and dtypes and return self.

        Args:
            embodiment: Whose observation it is.

        Raises:
            SpecError: A field does not fit the contract.
        """
        n, cameras, numbers = len(self), len(embodiment.cameras), len(embodiment.state)
        shape, dtype = _shape_and_dtype("images", self.images)
        if dtype != np.uint8 or len(shape) != 5 or shape[-1] != 3:
            raise SpecError(
                f"Observation.images: got {dtype} {shape}, "
                f"expected uint8 [N, {cameras} cameras, H, W, 3]"
            )
        if shape[1] != cameras:
            raise SpecError(
                f"Observation.images: got {shape[1]} cameras, expected {cameras}: "
                f"{', '.join(embodiment.cameras)}"
            )
        if shape[0] != n:
            raise SpecError(f"Observation: {shape[0]} images but {n} instructions")
        shape, dtype = _shape_and_dtype("state", self.state)
        if dtype != np.float32 or shape != (n, numbers):
            raise SpecError(
                f"Observation.state: got {dtype} {shape}, "
                f"expected float32 ({n}, {numbers}): {', '.join(embodiment.state)}"
            )
        return self


def _shape_and_dtype(name: str, array: object) -> tuple[tuple[int, ...], np.dtype]:
    """Read what an array says of itself, on the host or on a device; nothing is copied."""
    for protocol in ("__array_interface__", "__cuda_array_interface__"):
        described = getattr(array, protocol, None)
        if described is not None:
            return tuple(described["shape"]), np.dtype(described["typestr"])
    raise SpecError(
        f"Observation.{name}: got a {type(array).__name__}, expected an array of numpy, or of a "
        "device with the CUDA array interface"
    )


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk of actions led to, one row per stepped slot.

    Attributes:
        reward: [B] float32, 1 when the task succeeded within the chunk, else 0.
        success: [B] bool.
        terminated: [B] bool, success or diverged physics (a failure): no future to bootstrap.
        truncated: [B] bool, time limit without success.
        num_steps: [B] control steps really taken.
        diverged: [B] bool, physics blew up; counts as a failure. The slot then stays as it was
            before the chunk, so that what is observed and stored remains finite.
    """

    reward: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    num_steps: np.ndarray
    diverged: np.ndarray


def check_actions(actions: np.ndarray, num_slots: int, num_numbers: int) -> np.ndarray:
    """Check a batch of action chunks and return it clipped to [-1, 1] as float64.

    Args:
        actions: [N, K, A], K steps to execute.
        num_slots: N.
        num_numbers: A.

    Raises:
        SpecError: No numbers, a wrong shape, or a value that is not finite.
    """
    actions = np.asarray(actions)
    if actions.dtype.kind not in "fiu":
        raise SpecError(f"actions: got {actions.dtype}, expected numbers")
    actions = actions.astype(np.float64)
    fits = actions.ndim == 3 and actions.shape[::2] == (num_slots, num_numbers)
    if not fits or not actions.shape[1]:
        raise SpecError(
            f"actions: got shape {actions.shape}, expected ({num_slots}, steps, {num_numbers}) "
            "with at least one step"
        )
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        slot, step, dim = bad[0]
        raise SpecError(
            f"actions[{slot}, {step}, {dim}] is {actions[slot, step, dim]}; "
            "every action must be a finite number (beyond [-1, 1] it is clipped)"
        )
    return np.clip(actions, -1.0, 1.0)
