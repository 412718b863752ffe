"""What the skills of the scripted expert share."""

from typing import NamedTuple, Protocol

import numpy as np

FUNNEL_TIP_M = 0.012
"""Horizontal error that needs no correction before the grip is down."""
FUNNEL_WIDTH_M = 0.025
"""Horizontal distance over which the height rises to that of travel."""
TOO_LOW_M = 0.03
"""This far below its height the grip only rises."""


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
        """Indices of the things that the predicate names: what is moved, where to (or NO_THING)."""
        ...

    def command(self, slots: np.ndarray) -> Command:
        """Return what to do next in each of `slots`."""
        ...


def above(positions: np.ndarray, height_m: float | np.ndarray) -> np.ndarray:
    """Return [B, 3] points over `positions`, at a height of the world."""
    raised = positions.copy()
    raised[:, 2] = height_m
    return raised


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values [B] on a scale where `low` is 0 and `high` is 1, clipped."""
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def through_funnel(
    grip: np.ndarray,
    goal: np.ndarray,
    travel_height_m: float | np.ndarray,
    tip_m: float = FUNNEL_TIP_M,
) -> np.ndarray:
    """Return [B, 3] where to move the grip so that it comes down on a goal from above.

    The farther aside, the higher: the height rises continuously, from the goal's up to that of
    travel. Who is too low moves up first. A gate ("descend once aligned, else go up") would ask for
    opposite motions on its two sides, and a policy that cannot tell the sides apart would learn
    their mean: to stand still.

    Args:
        grip: [B, 3] m, world.
        goal: [B, 3] m, world.
        travel_height_m: World height at which nothing is in the way.
        tip_m: Horizontal distance within which the height is the goal's.
    """
    aside = ramp(horizontal_distance(grip, goal), tip_m, tip_m + FUNNEL_WIDTH_M)
    height = goal[:, 2] + aside * (travel_height_m - goal[:, 2])
    across = 1.0 - ramp(height - grip[:, 2], 0.0, TOO_LOW_M)
    return above(grip + across[:, None] * (goal - grip), height)


def horizontal_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return [B] distances (m) in the plane of the table."""
    return np.linalg.norm((one - other)[:, :2], axis=1)
