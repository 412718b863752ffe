"""What may differ from episode to episode besides the layout: looks, mechanics, senses, words.

A `VariationConfig` is a distribution: every episode draws from its ranges, with a random stream
that depends on the variation's seed and the initial state alone. Domain randomisation is one wide
variation for all episodes; a perturbation stream is a list of tasks with narrow ones.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from vla_crl.config import check_seed, check_types
from vla_crl.errors import ConfigError

Range = tuple[float, float]
"""Least and greatest value; equal ones fix it."""
Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Two opposite corners, least coordinates first."""

NO_CHANGE: Box = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
MAX_LATENCY = 8
"""Control steps."""
GREATEST = {
    "action_latency": MAX_LATENCY, "base_shift_m": 1.0, "image_noise": 1.0, "state_noise": 0.1,
}  # fmt: skip
"""Beyond them a robot sees or reaches nothing any more."""


@dataclass(frozen=True, kw_only=True)
class VariationConfig:
    """Ranges from which an episode draws, evenly; by default nothing varies."""

    camera_shift_m: Box = NO_CHANGE
    """Displacement of the cameras that are fixed to the world: right, up, back."""
    camera_turn_rad: Box = NO_CHANGE
    """Their rotation about the same three axes, as a rotation vector."""
    light_gain: Range = (1.0, 1.0)
    """Factor on the strength of all lights."""
    light_turn_rad: Box = NO_CHANGE
    """Rotation vector (world) of the directions of the lights."""
    colour_shift: Box = NO_CHANGE
    """Added to the red, green and blue (0 to 1) of the robot and of what no instruction names, a
    draw for each of the two."""
    materials: tuple[str, ...] = ()
    """Materials of the scene; what no instruction names, but for the robot, gets the texture of one
    of them."""
    base_shift_m: Box = NO_CHANGE
    """Displacement of the robot's base (world)."""
    mass_gain: Range = (1.0, 1.0)
    """Factor on the mass of every object, a draw for each."""
    friction_gain: Range = (1.0, 1.0)
    """Factor on the friction of all surfaces."""
    absent_distractors: tuple[int, int] = (0, 0)
    """How many of the objects that the goal does not name are away, ends included; where fewer are
    there, all of them."""
    action_latency: tuple[int, int] = (0, 0)
    """Control steps by which actions take effect late, ends included."""
    image_noise: Range = (0.0, 0.0)
    """Standard deviation of the noise on each number of an image, as a part of white."""
    state_noise: Range = (0.0, 0.0)
    """Standard deviation of the noise on each number of the state (m, rad)."""
    paraphrase: bool = False
    """Whether the instruction is drawn from its paraphrases."""
    seed: int = 0
    """Another seed draws other episodes."""

    @property
    def varies(self) -> bool:
        """Whether anything differs from the scene as it is."""
        return self != VariationConfig(seed=self.seed)

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_types(self, "variation")
        for entry in fields(self):
            value, default = getattr(self, entry.name), entry.default
            if not isinstance(default, tuple) or entry.name == "materials":
                continue
            low, high = np.asarray(value)
            if not np.all(np.isfinite(value)):
                raise ConfigError(f"variation: {entry.name} = {value}, expected finite numbers")
            if np.any(low > high):
                raise ConfigError(f"variation: {entry.name} = {value}, expected low before high")
            if np.ndim(low) == 0 and low < 0:
                raise ConfigError(f"variation: {entry.name} = {value}, expected at least 0")
        if self.mass_gain[0] <= 0:
            raise ConfigError(f"variation: mass_gain = {self.mass_gain}, expected more than 0")
        for name, greatest in GREATEST.items():
            if np.max(np.abs(getattr(self, name))) > greatest:
                raise ConfigError(
                    f"variation: {name} = {getattr(self, name)}, expected at most {greatest}"
                )
        check_seed(self.seed, "variation: seed")


class Draw(NamedTuple):
    """What one episode drew.

    Attributes:
        camera_shift: [3] m, in the camera frame.
        camera_turn: [3] rotation vector, in the camera frame.
        light_gain: Factor.
        light_turn: [3] rotation vector, world.
        colour_shift: [2, 3] of the robot, of the rest.
        material: Of the rest; None: its own.
        base_shift: [3] m, world.
        mass_gain: [objects].
        friction_gain: Factor.
        absent: [away] which distractors are away, as places in the list of all of them.
        latency: Control steps.
        image_noise: Standard deviation.
        state_noise: Standard deviation.
        paraphrase: In [0, 1), which part of the list of paraphrases; None: the instruction itself.
    """

    camera_shift: np.ndarray
    camera_turn: np.ndarray
    light_gain: float
    light_turn: np.ndarray
    colour_shift: np.ndarray
    material: str | None
    base_shift: np.ndarray
    mass_gain: np.ndarray
    friction_gain: float
    absent: np.ndarray
    latency: int
    image_noise: float
    state_noise: float
    paraphrase: float | None


def draw(config: VariationConfig, state_id: int, num_objects: int, num_distractors: int) -> Draw:
    """Draw what the episode from an initial state varies.

    Args:
        config: The distribution.
        state_id: Initial state.
        num_objects: Things with a free joint.
        num_distractors: Those of them that the goal does not name.
    """
    rng = np.random.default_rng([config.seed, state_id])
    # Everything is drawn, whether it varies or not: switching one thing on changes no other.
    words, late = rng.random(2)
    return Draw(
        camera_shift=rng.uniform(*config.camera_shift_m),
        camera_turn=rng.uniform(*config.camera_turn_rad),
        light_gain=rng.uniform(*config.light_gain),
        light_turn=rng.uniform(*config.light_turn_rad),
        colour_shift=rng.uniform(*config.colour_shift, size=(2, 3)),
        base_shift=rng.uniform(*config.base_shift_m),
        friction_gain=rng.uniform(*config.friction_gain),
        latency=_whole(config.action_latency, late),
        image_noise=rng.uniform(*config.image_noise),
        state_noise=rng.uniform(*config.state_noise),
        paraphrase=words if config.paraphrase else None,
        mass_gain=rng.uniform(*config.mass_gain, size=num_objects),
        material=_one_of(config.materials, rng.random()),
        absent=rng.permutation(num_distractors)[: _whole(config.absent_distractors, rng.random())],
    )


def _whole(limits: tuple[int, int], place: float) -> int:
    least, most = limits
    return least + int(place * (most - least + 1))


def _one_of(names: tuple[str, ...], place: float) -> str | None:
    return names[int(place * len(names))] if names else None
