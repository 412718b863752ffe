"""From where the hand is to go to an action of LIBERO's controller."""

from typing import NamedTuple

import numpy as np

from vla_crl.sim.libero.experts.view import View
from vla_crl.sim.libero.kernel.arm import MAX_STEP_M, MAX_STEP_RAD

GAIN, TURN_GAIN = np.array([3.0, 3.0, 2.0]), 2.2
"""The controller, critically damped, reaches an eighth of what it is asked for in a step; asked for
this much more than what is missing it is faster and barely overshoots; downwards it must not."""
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The hand points down, its fingers move along y."""
TIP_M, WIDTH_M = 0.012, 0.04
"""Horizontal errors below which the hand may be down, and over which its height rises."""
TOO_LOW_M = 0.04
"""So far below its height the hand only rises."""
CLEARANCE_M = 0.02
"""Between what is carried and what is passed."""


class Command(NamedTuple):
    """Where the hand is to go, straight.

    Attributes:
        target: [3] m, world, of the grip point.
        hand: [3, 3] its rotation, see `View.hand`.
        closes: Whether the gripper closes.
    """

    target: np.ndarray
    hand: np.ndarray
    closes: bool


def action_of(view: View, command: Command) -> np.ndarray:
    """Return the action [7] that follows a command."""
    action = np.empty(7)
    action[:3] = np.clip(GAIN * (command.target - view.grip) / MAX_STEP_M, -1.0, 1.0)
    action[3:6] = _limited(TURN_GAIN * _turn(command.hand @ view.hand.T) / MAX_STEP_RAD)
    action[6] = 1.0 if command.closes else -1.0
    return action


def _limited(vector: np.ndarray) -> np.ndarray:
    """Shorten a vector until each number is in [-1, 1], in its direction."""
    return vector / max(1.0, np.abs(vector).max())


def _turn(rotation: np.ndarray) -> np.ndarray:
    """Return the rotation vector [3] of a matrix, of at most half a turn."""
    sine = 0.5 * np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    size, cosine = float(np.linalg.norm(sine)), 0.5 * (np.trace(rotation) - 1.0)
    if size < 1e-6 and cosine < 0.0:  # half a turn: about the axis that stays
        return np.pi * rotation[:, int(np.argmax(np.diag(rotation)))]
    return sine * (np.arctan2(size, cosine) / max(size, 1e-9))


def pointing_down(axis: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] of a hand that points down and closes along a direction [3]."""
    flat = np.array([axis[0], axis[1], 0.0])
    flat /= max(float(np.linalg.norm(flat)), 1e-9)
    return np.stack([flat, [flat[1], -flat[0], 0.0], DOWN[:, 2]], axis=1)


def over(
    grip: np.ndarray, goal: np.ndarray, height: float, tip: float = TIP_M, width: float = WIDTH_M
) -> np.ndarray:
    """Return where [3] to move the grip point so that it comes down on a goal from above.

    The farther aside the higher, continuously, up to `height` (m, world); who is too low
    rises first.
    """
    gap = float(np.hypot(*(goal - grip)[:2]))
    aside = min(max((gap - tip) / width, 0.0), 1.0)
    z = goal[2] + aside * max(height - goal[2], 0.0)
    across = 1.0 - min(max((z - grip[2]) / TOO_LOW_M, 0.0), 1.0)
    target = grip + across * (goal - grip)
    target[2] = z
    return target


def height_to_pass(
    view: View, to: np.ndarray, radius: float, ignored: tuple[int, ...], below: float
) -> float:
    """Return at which height (m, world) the grip point passes over all things on its way.

    Args:
        view: Where they are.
        to: [3] where it goes.
        radius: Half the width of what passes, m.
        ignored: Things that are no obstacles, such as what is held.
        below: How far what passes reaches below the grip point, m.
    """
    way = to[:2] - view.grip[:2]
    length = float(np.hypot(*way))
    along = way / max(length, 1e-9)
    low = np.minimum(view.grip, to)[:2] - radius
    high = np.maximum(view.grip, to)[:2] + radius
    top = -np.inf
    for body in view.shapes.cubes:
        if view.shapes.root[body] in ignored:
            continue
        bounds = view.bounds(body)
        if (bounds[0, :2] > high).any() or (bounds[1, :2] < low).any():
            continue
        centre, half = bounds.mean(0), (bounds[1] - bounds[0]) / 2
        offset = centre[:2] - view.grip[:2]
        reach = float(np.abs(along) @ half[:2])
        aside = abs(offset[0] * along[1] - offset[1] * along[0])
        spread = abs(half[0] * along[1]) + abs(half[1] * along[0])
        ahead = float(offset @ along)
        if -reach - radius < ahead < length + reach + radius and aside < spread + radius:
            top = max(top, bounds[1, 2])
    return top + below + CLEARANCE_M
