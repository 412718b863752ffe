"""What a suite.toml with `backend = "metaworld"` says, and in which ranges."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, MaxLen, MinLen

from vla_crl.config import Settings
from vla_crl.contracts import POSE_ACTION, Split
from vla_crl.errors import ConfigError
from vla_crl.sim.task_suite import NumStates

Thing = Literal["object", "goal"]
THINGS: tuple[Thing, ...] = ("object", "goal")
"""What every task has: something to be moved, and where to."""
CONTROL_HZ = 80.0
"""Five physics steps of 2.5 ms, fixed by Meta-World."""
Horizon = Annotated[int, Interval(ge=1, le=500)]
"""Meta-World's own is the greatest; its environments refuse more steps."""
Coordinate = Annotated[float, Interval(ge=-1000, le=1000)]
WORKSPACE_CAMERA, HAND_CAMERA = "agentview", "gripperPOV"
"""Ours, and the one on Meta-World's hand."""
OWN_ACTION = ("delta_x", "delta_y", "delta_z", "gripper")
"""Meta-World's four numbers, in its order: 1 moves the hand by 1 cm, or closes the fingers."""
CONTROLLERS = {"eef_pose": POSE_ACTION, "eef_position": OWN_ACTION}
"""What the numbers of an action are, a suite's own first; the hand never turns."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig(Settings):
    """Where the camera `agentview` stands; the other one, on the hand, is Meta-World's."""

    position_m: tuple[Coordinate, Coordinate, Coordinate]
    target_m: tuple[Coordinate, Coordinate, Coordinate]
    """The point in the middle of the picture; up is up."""
    fovy_deg: Annotated[float, Interval(gt=0, lt=180)]
    """Vertical field of view."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldTaskConfig(Settings):
    """One of Meta-World's tasks."""

    name: str
    """Its name in Meta-World, e.g. "reach-v3"."""
    instruction: str
    split: Split = "train"
    things: Annotated[tuple[Thing, ...], MinLen(1), MaxLen(2)] = THINGS
    """What the instruction names."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig(Settings):
    """Content of a suite.toml with `backend = "metaworld"`."""

    description: str
    backend: Literal["metaworld"]
    horizon: Horizon
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: NumStates
    num_test_states: NumStates
    goal_radius_m: Annotated[float, Interval(gt=0, le=10)]
    """Size of the ball that marks the goal in pictures; it touches nothing."""
    camera: CameraConfig
    tasks: tuple[MetaWorldTaskConfig, ...]

    def __post_init__(self) -> None:
        """Check that names are unique."""
        super().__post_init__()
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigError("tasks: expected at least one task, and each name once")
