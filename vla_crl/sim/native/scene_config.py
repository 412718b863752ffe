"""What a suite.toml with a scene of its own says, and in which ranges."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from vla_crl.config import Names, Settings
from vla_crl.contracts import Split
from vla_crl.errors import ConfigError
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH, ControlRate, Horizon, NumStates
from vla_crl.sim.variation import VariationConfig

ControllerName = Literal["eef_pose", "eef_position", "joint_position"]
Length = Annotated[float, Interval(ge=-1000, le=1000)]
"""Or coordinate, m."""
Angle = Annotated[float, Interval(ge=-1000, le=1000)]
"""Or position of a slide: rad, m."""
Point = tuple[Length, Length, Length]
Place = tuple[Length, Length]
TASK_NAME = re.compile(r"[\w.-]+")
"""What Gymnasium can make a part of an environment's id."""


def _check_ordered(low: Sequence[float], high: Sequence[float], where: str) -> None:
    """Refuse a corner that is not below the other one."""
    if not all(a <= b for a, b in zip(low, high, strict=True)):
        raise ConfigError(f"{where} from {tuple(low)} to {tuple(high)}, expected low before high")


@dataclass(frozen=True, kw_only=True)
class ThingConfig(Settings):
    """A body that instructions talk about."""

    name: str
    """Words used in instructions, e.g. "red cube"."""
    body: str
    """Its body in the scene: with a free joint (an object), a mocap body (a fixture that is placed
    anew in every initial state) or a part that moves on a joint of its own (a drawer, a button)."""
    low_m: Place | None = None
    """Corner of the rectangle in which it starts, if it is not the layout's."""
    high_m: Place | None = None
    """The other corner."""
    is_graspable: bool = True
    """Whether the scripted expert moves it by grasping; else by pushing."""
    joint: str | None = None
    """Hinge or slide of a moving part, at the origin of its body; needs on_at, off_at, handle."""
    handle: str | None = None
    """Site at which the joint is moved."""
    on_at: Angle | None = None
    """Joint position (m or rad) from which it is open, turned on or pressed."""
    off_at: Angle | None = None
    """Joint position from which it is closed or turned off, on the other side of on_at."""

    def __post_init__(self) -> None:
        """Check that nothing is given in part."""
        super().__post_init__()
        for names in (("joint", "handle", "on_at", "off_at"), ("low_m", "high_m")):
            given = [getattr(self, name) is not None for name in names]
            if any(given) and not all(given):
                raise ConfigError(f"thing '{self.name}': {', '.join(names)} belong together")
        if self.low_m is not None and self.high_m is not None:
            _check_ordered(self.low_m, self.high_m, f"thing '{self.name}': low_m..high_m")
        if self.joint is not None and self.on_at == self.off_at:
            raise ConfigError(f"thing '{self.name}': on_at and off_at are both {self.on_at}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Settings):
    """One instruction with its success condition."""

    name: str
    instruction: str
    split: Split
    """"train": may be trained on; "heldout": only evaluated, for zero-shot transfer."""
    goal: tuple[Any, ...]
    """Success condition, true at the end of a control step; see `vla_crl.sim.native.goals`."""
    start: dict[str, Angle] = field(default_factory=dict)
    """Joint position (m or rad) in which moving parts start, by the name of the thing."""
    things: tuple[str, ...] | None = None
    """Objects with a free joint that are there; all by default. Fixtures always are."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to say the instruction."""
    variation: VariationConfig | None = None
    """What differs from episode to episode besides the layout."""

    def __post_init__(self) -> None:
        """Check what names and words are made of."""
        super().__post_init__()
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
class ArmConfig(Settings):
    """The arm's names in the scene and the limits of its end-effector interface."""

    base: str
    """Body that carries the arm."""
    joints: Names
    """Those of the arm, from the base on."""
    fingers: tuple[str, str]
    grip_site: str
    rest_joints_rad: tuple[Angle, ...]
    """Posture that the redundant degree of freedom is drawn to."""
    max_step_m: Annotated[float, Interval(gt=0, le=10)]
    """Displacement of the end effector commanded by an action of 1."""
    max_step_rad: Annotated[float, Interval(gt=0, le=10)]
    """Rotation commanded by an action of 1."""
    workspace_low_m: Point
    workspace_high_m: Point
    controller: ControllerName = "eef_pose"
    """How the arm is commanded unless the suite's name says otherwise ("suite@controller")."""

    def __post_init__(self) -> None:
        """Check that fingers are no joints of the arm."""
        super().__post_init__()
        _check_ordered(
            self.workspace_low_m, self.workspace_high_m, "workspace_low_m..workspace_high_m"
        )
        names = (*self.joints, *self.fingers)
        if len(set(names)) < len(names):
            raise ConfigError(f"joints and fingers are {names}, expected each name once")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(Settings):
    """Distribution of initial states."""

    grip_low_m: Point
    grip_high_m: Point
    free_low_m: Place
    """Corner of the rectangle in which objects start."""
    free_high_m: Place
    free_distance_m: Annotated[float, Interval(ge=0, le=1000)]
    """Least distance between the centres of two objects."""
    max_yaw_rad: Annotated[float, Interval(ge=0, le=1000)]
    fixture_low_m: Place
    """Corner of the first fixture's rectangle; the second's is mirrored in y; sides are drawn."""
    fixture_high_m: Place

    def __post_init__(self) -> None:
        """Check the order of corners."""
        super().__post_init__()
        for name in ("grip", "free", "fixture"):
            low, high = getattr(self, f"{name}_low_m"), getattr(self, f"{name}_high_m")
            _check_ordered(low, high, f"{name}_low_m..{name}_high_m")


@dataclass(frozen=True, kw_only=True)
class SceneConfig(Settings):
    """Content of a suite.toml with a scene of its own."""

    description: str
    scene: str
    cameras: Names
    """What policies see, in this order."""
    film_camera: str
    """What people see in videos."""
    control_hz: ControlRate
    horizon: Horizon
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: NumStates
    num_test_states: NumStates
    arm: ArmConfig
    layout: LayoutConfig
    things: tuple[ThingConfig, ...]
    tasks: tuple[TaskConfig, ...]

    def __post_init__(self) -> None:
        """Check that things and bodies are named once."""
        super().__post_init__()
        for kind, names in (
            ("name", [thing.name for thing in self.things]),
            ("body", [thing.body for thing in self.things]),
            ("camera", self.cameras),
        ):
            repeated = sorted({name for name in names if list(names).count(name) > 1})
            if repeated:
                raise ConfigError(f"the {kind} {repeated} is given more than once")
