"""What may differ from episode to episode besides the layout: looks, mechanics, senses, words.

A `VariationConfig` is a distribution: every episode draws from its ranges, with a random stream
that depends on the variation's seed and the initial state alone. Domain randomisation is one wide
variation for all episodes; a perturbation stream is a list of tasks with narrow ones.
"""

from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Interval

from vla_crl.config import Seed, Settings
from vla_crl.errors import ConfigError

MAX_LATENCY = 8
"""Control steps."""
Latency = Annotated[int, Interval(ge=0, le=MAX_LATENCY)]
Gain = Annotated[float, Interval(ge=0, le=1000)]
Mass = Annotated[float, Interval(gt=0, le=1000)]
Shift = Annotated[float, Interval(ge=-1, le=1)]
"""Beyond it a robot reaches nothing any more."""
Turn = Annotated[float, Interval(ge=-10, le=10)]
ImageNoise = Annotated[float, Interval(ge=0, le=1)]
StateNoise = Annotated[float, Interval(ge=0, le=0.1)]
NumAbsent = Annotated[int, Interval(ge=0, le=10**6)]
ShiftBox = tuple[tuple[Shift, Shift, Shift], tuple[Shift, Shift, Shift]]
"""Two opposite corners, least coordinates first."""
TurnBox = tuple[tuple[Turn, Turn, Turn], tuple[Turn, Turn, Turn]]

NO_CHANGE = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class VariationConfig(Settings):
    """Ranges from which an episode draws, evenly; by default nothing varies.

    Of two numbers or corners the first is the least; equal ones fix the value.
    """

    camera_shift_m: ShiftBox = NO_CHANGE
    """Displacement of the cameras that are fixed to the world: right, up, back."""
    camera_turn_rad: TurnBox = NO_CHANGE
    """Their rotation about the same three axes, as a rotation vector."""
    light_gain: tuple[Gain, Gain] = (1.0, 1.0)
    """Factor on the strength of all lights."""
    light_turn_rad: TurnBox = NO_CHANGE
    """Rotation vector (world) of the directions of the lights."""
    colour_shift: ShiftBox = NO_CHANGE
    """Added to the red, green and blue (0 to 1) of the robot and of what no instruction names, a
    draw for each of the two."""
    materials: tuple[str, ...] = ()
    """Materials of the scene; what no instruction names, but for the robot, gets the texture of one
    of them."""
    base_shift_m: ShiftBox = NO_CHANGE
    """Displacement of the robot's base (world)."""
    mass_gain: tuple[Mass, Mass] = (1.0, 1.0)
    """Factor on the mass of every object, a draw for each."""
    friction_gain: tuple[Gain, Gain] = (1.0, 1.0)
    """Factor on the friction of all surfaces."""
    absent_distractors: tuple[NumAbsent, NumAbsent] = (0, 0)
    """How many of the objects that the goal does not name are away, ends included; where fewer are
    there, all of them."""
    action_latency: tuple[Latency, Latency] = (0, 0)
    """Control steps by which actions take effect late, ends included."""
    image_noise: tuple[ImageNoise, ImageNoise] = (0.0, 0.0)
    """Standard deviation of the noise on each number of an image, as a part of white."""
    state_noise: tuple[StateNoise, StateNoise] = (0.0, 0.0)
    """Standard deviation of the noise on each number of the state (m, rad)."""
    paraphrase: bool = False
    """Whether the instruction is drawn from its paraphrases."""
    seed: Seed = 0
    """Another seed draws other episodes."""

    @property
    def varies(self) -> bool:
        """Whether anything differs from the scene as it is."""
        return self != VariationConfig(seed=self.seed)

    def __post_init__(self) -> None:
        """Check the order of ranges."""
        super().__post_init__()
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(entry.default, tuple) and entry.name != "materials":
                low, high = np.asarray(value)
                if np.any(low > high):
                    raise ConfigError(f"{entry.name} = {value}, expected low before high")


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
