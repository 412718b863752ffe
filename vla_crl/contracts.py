"""The border between worlds and policies: what is seen, what is done, and their checks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_crl.errors import SpecError

ACTION_DIM = 7
"""End-effector delta position 3, delta rotation 3 (axis-angle), gripper (-1 open, +1 close)."""
STATE_DIM = 8
"""End-effector position 3 (m, world), axis-angle 3 (rad, world), finger positions 2 (m)."""


@dataclass(frozen=True)
class Observation:
    """What a batch of N robots sees.

    Attributes:
        images: [N, cameras, H, W, 3] uint8, upright, RGB.
        state: [N, 8] float32, see `STATE_DIM`.
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

    def validate(self) -> "Observation":
        """Check shapes and dtypes and return self.

        Raises:
            SpecError: A field does not fit the contract.
        """
        n = len(self.instruction)
        if self.images.dtype != np.uint8 or self.images.ndim != 5 or self.images.shape[-1] != 3:
            raise SpecError(
                f"Observation.images: got {self.images.dtype} {self.images.shape}, "
                "expected uint8 [N, cameras, H, W, 3]"
            )
        if self.state.dtype != np.float32 or self.state.shape != (n, STATE_DIM):
            raise SpecError(
                f"Observation.state: got {self.state.dtype} {self.state.shape}, "
                f"expected float32 ({n}, {STATE_DIM})"
            )
        if len(self.images) != n:
            raise SpecError(f"Observation: {len(self.images)} images but {n} instructions")
        return self


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


def check_actions(actions: np.ndarray, num_slots: int) -> np.ndarray:
    """Check a batch of action chunks and return it clipped to [-1, 1] as float64.

    Args:
        actions: [N, K, 7], K steps to execute.
        num_slots: N.

    Raises:
        SpecError: No numbers, a wrong shape, or a value that is not finite.
    """
    actions = np.asarray(actions)
    if actions.dtype.kind not in "fiu":
        raise SpecError(f"actions: got {actions.dtype}, expected numbers")
    actions = actions.astype(np.float64)
    fits = actions.ndim == 3 and actions.shape[::2] == (num_slots, ACTION_DIM)
    if not fits or not actions.shape[1]:
        raise SpecError(
            f"actions: got shape {actions.shape}, expected ({num_slots}, steps, {ACTION_DIM}) "
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
