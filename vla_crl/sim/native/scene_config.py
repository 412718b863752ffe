"""What a suite.toml with a scene of its own says, and in which ranges."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_crl.contracts import Split
from vla_crl.errors import ConfigError
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH
from vla_crl.sim.variation import VariationConfig

ControllerName = Literal["eef_pose", "eef_position", "joint_position"]
MAX_STATES = 100_000
"""Initial states of a suite: a scene's are computed together, when one of them is first needed."""
MAX_HORIZON = 100_000
"""Control steps of an episode."""
TASK_NAME = re.compile(r"[\w.-]+")
"""What Gymnasium can make a part of an environment's id."""


def _check_ordered(low: Sequence[float], high: Sequence[float], where: str) -> None:
    """Refuse numbers that are not finite, and a corner that is not below the other one."""
    pairs = zip(low, high, strict=True)
    if not all(math.isfinite(a) and math.isfinite(b) and a <= b for a, b in pairs):
        raise ConfigError(f"{where} from {tuple(low)} to {tuple(high)}, expected low before high")


def _check_positive(value: float, where: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where} = {value}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class ThingConfig:
    """A body that instructions talk about."""

    name: str
    """Words used in instructions, e.g. "red cube"."""
    body: str
    """Its body in the scene: with a free joint (an object), a mocap body (a fixture that is placed
    anew in every initial state) or a part that moves on a joint of its own (a drawer, a button)."""
    low_m: tuple[float, float] | None = None
    """Corner of the rectangle in which it starts, if it is not the layout's."""
    high_m: tuple[float, float] | None = None
    """The other corner."""
    is_graspable: bool = True
    """Whether the scripted expert moves it by grasping; else by pushing."""
    joint: str | None = None
    """Hinge or slide of a moving part, at the origin of its body; needs on_at, off_at, handle."""
    handle: str | None = None
    """Site at which the joint is moved."""
    on_at: float | None = None
    """Joint position (m or rad) from which it is open, turned on or pressed."""
    off_at: float | None = None
    """Joint position from which it is closed or turned off, on the other side of on_at."""

    def __post_init__(self) -> None:
        """Check that nothing is given in part."""
        for names in (("joint", "handle", "on_at", "off_at"), ("low_m", "high_m")):
            given = [getattr(self, name) is not None for name in names]
            if any(given) and not all(given):
                raise ConfigError(f"thing '{self.name}': {', '.join(names)} belong together")
        if self.low_m is not None and self.high_m is not None:
            _check_ordered(self.low_m, self.high_m, f"thing '{self.name}': low_m..high_m")
        if self.joint is not None and self.on_at == self.off_at:
            raise ConfigError(f"thing '{self.name}': on_at and off_at are both {self.on_at}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One instruction with its success condition."""

    name: str
    instruction: str
    split: Split
    """"train": may be trained on; "heldout": only evaluated, for zero-shot transfer."""
    goal: tuple[Any, ...]
    """Success condition, true at the end of a control step; see `vla_crl.sim.native.goals`."""
    start: dict[str, float] = field(default_factory=dict)
    """Joint position (m or rad) in which moving parts start, by the name of the thing."""
    things: tuple[str, ...] | None = None
    """Objects with a free joint that are there; all by default. Fixtures always are."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to say the instruction."""
    variation: VariationConfig | None = None
    """What differs from episode to episode besides the layout."""

    def __post_init__(self) -> None:
        """Check what names and words are made of."""
        if not TASK_NAME.fullmatch(self.name):
            raise ConfigError(f"task '{self.name}': expected letters, digits, '_', '.', '-' only")
        for sentence in (self.instruction, *self.paraphrases):
            if not sentence.strip():
                raise ConfigError(f"task '{self.name}': an instruction without words")
            is_plain = sentence.isascii() and sentence.isprintable()
            if not is_plain or len(sentence) > MAX_INSTRUCTION_LENGTH:
                raise ConfigError(
                    f"task '{self.name}': instruction {sentence!r}, expected at most "
                    f"{MAX_INSTRUCTION_LENGTH} printable ASCII characters"
                )


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """The arm's names in the scene and the limits of its end-effector interface."""

    base: str
    """Body that carries the arm."""
    joints: tuple[str, ...]
    fingers: tuple[str, str]
    grip_site: str
    rest_joints_rad: tuple[float, ...]
    """Posture that the redundant degree of freedom is drawn to."""
    max_step_m: float
    """Displacement of the end effector commanded by an action of 1."""
    max_step_rad: float
    """Rotation commanded by an action of 1."""
    workspace_low_m: tuple[float, float, float]
    workspace_high_m: tuple[float, float, float]
    controller: ControllerName = "eef_pose"
    """How the arm is commanded unless the suite's name says otherwise ("suite@controller")."""

    def __post_init__(self) -> None:
        """Check the ranges, and that fingers are no joints of the arm."""
        _check_positive(self.max_step_m, "max_step_m")
        _check_positive(self.max_step_rad, "max_step_rad")
        _check_ordered(
            self.workspace_low_m, self.workspace_high_m, "workspace_low_m..workspace_high_m"
        )
        if not self.joints:
            raise ConfigError("joints is empty, expected those of the arm, from the base on")
        if not all(map(math.isfinite, self.rest_joints_rad)):
            raise ConfigError(f"rest_joints_rad = {self.rest_joints_rad}, expected finite numbers")
        names = (*self.joints, *self.fingers)
        if len(set(names)) < len(names):
            raise ConfigError(f"joints and fingers are {names}, expected each name once")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Distribution of initial states."""

    grip_low_m: tuple[float, float, float]
    grip_high_m: tuple[float, float, float]
    free_low_m: tuple[float, float]
    """Corner of the rectangle in which objects start."""
    free_high_m: tuple[float, float]
    free_distance_m: float
    """Least distance between the centres of two objects."""
    max_yaw_rad: float
    fixture_low_m: tuple[float, float]
    """Corner of the first fixture's rectangle; the second's is mirrored in y; sides are drawn."""
    fixture_high_m: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("grip", "free", "fixture"):
            low, high = getattr(self, f"{name}_low_m"), getattr(self, f"{name}_high_m")
            _check_ordered(low, high, f"{name}_low_m..{name}_high_m")
        for name in ("free_distance_m", "max_yaw_rad"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} = {getattr(self, name)}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Content of a suite.toml with a scene of its own."""

    description: str
    scene: str
    cameras: tuple[str, ...]
    """What policies see, in this order."""
    film_camera: str
    """What people see in videos."""
    control_hz: float
    horizon: int
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: int
    num_test_states: int
    arm: ArmConfig
    layout: LayoutConfig
    things: tuple[ThingConfig, ...]
    tasks: tuple[TaskConfig, ...]

    def __post_init__(self) -> None:
        """Check the ranges, and that things and bodies are named once."""
        _check_positive(self.control_hz, "control_hz")
        if not 1 <= self.horizon <= MAX_HORIZON:
            raise ConfigError(f"horizon = {self.horizon}, expected 1 to {MAX_HORIZON}")
        for name in ("num_train_states", "num_test_states"):
            if not 1 <= getattr(self, name) <= MAX_STATES:
                raise ConfigError(f"{name} = {getattr(self, name)}, expected 1 to {MAX_STATES}")
        if not self.cameras:
            raise ConfigError("cameras is empty, expected at least one name")
        for kind, names in (
            ("name", [thing.name for thing in self.things]),
            ("body", [thing.body for thing in self.things]),
            ("camera", self.cameras),
        ):
            repeated = sorted({name for name in names if list(names).count(name) > 1})
            if repeated:
                raise ConfigError(f"the {kind} {repeated} is given more than once")
