"""What the skills of the scripted expert share."""

from typing import NamedTuple, Protocol

import numpy as np

OPEN_FINGER_M = 0.03
"""Finger position beyond which the gripper counts as open."""


class Command(NamedTuple):
    """Where to move the grip, straight, and what to do with the gripper.

    Attributes:
        target: [B, 3] m, world; it may be farther than one action reaches.
        close: [B] bool.
    """

    target: np.ndarray
    close: np.ndarray


class Skill(Protocol):
    """One way to make a predicate true; a function of the current state alone.

    So its actions are also valid labels for states that a perturbed or learnt policy has reached
    (DAgger-like relabelling).
    """

    @property
    def named(self) -> tuple[int, int]:
        """Indices of the things that the predicate names: what is moved, where to (or NOTHING)."""
        ...

    def command(self, slots: np.ndarray) -> Command:
        """Return what to do next in each of `slots`."""
        ...


NOTHING = -1
"""In `named`: the predicate names no second thing."""


def above(positions: np.ndarray, height_m: float | np.ndarray) -> np.ndarray:
    """Return [B, 3] points over `positions`, at a height of the world."""
    raised = positions.copy()
    raised[:, 2] = height_m
    return raised


def horizontal_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return [B] distances (m) in the plane of the table."""
    return np.linalg.norm((one - other)[:, :2], axis=1)
