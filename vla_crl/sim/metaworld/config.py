"""What a suite.toml with `backend = "metaworld"` says, and in which ranges."""

from dataclasses import dataclass
from typing import Literal

from vla_crl.contracts import POSE_ACTION, Split
from vla_crl.errors import ConfigError

Thing = Literal["object", "goal"]
THINGS: tuple[Thing, ...] = ("object", "goal")
"""What every task has: something to be moved, and where to."""
CONTROL_HZ = 80.0
"""Five physics steps of 2.5 ms, fixed by Meta-World."""
MAX_HORIZON = 500
"""Meta-World's own horizon; its environments refuse more steps."""
WORKSPACE_CAMERA, HAND_CAMERA = "agentview", "gripperPOV"
"""Ours, and the one on Meta-World's hand."""
OWN_ACTION = ("delta_x", "delta_y", "delta_z", "gripper")
"""Meta-World's four numbers, in its order: 1 moves the hand by 1 cm, or closes the fingers."""
CONTROLLERS = {"eef_pose": POSE_ACTION, "eef_position": OWN_ACTION}
"""What the numbers of an action are, a suite's own first; the hand never turns."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Where the camera `agentview` stands; the other one, on the hand, is Meta-World's."""

    position_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    """The point in the middle of the picture; up is up."""
    fovy_deg: float
    """Vertical field of view."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldTaskConfig:
    """One of Meta-World's tasks."""

    name: str
    """Its name in Meta-World, e.g. "reach-v3"."""
    instruction: str
    split: Split = "train"
    things: tuple[Thing, ...] = THINGS
    """What the instruction names, one or two."""

    def __post_init__(self) -> None:
        """Check the number of things."""
        if not 1 <= len(self.things) <= 2:
            raise ConfigError(f"task '{self.name}': things has {len(self.things)}, expected 1 or 2")


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """Content of a suite.toml with `backend = "metaworld"`."""

    description: str
    backend: Literal["metaworld"]
    horizon: int
    """Control steps after which an unsuccessful episode is truncated, at most 500."""
    num_train_states: int
    num_test_states: int
    goal_radius_m: float
    """Size of the ball that marks the goal in pictures; it touches nothing."""
    camera: CameraConfig
    tasks: tuple[MetaWorldTaskConfig, ...]

    def __post_init__(self) -> None:
        """Check the ranges and that names are unique."""
        if not 1 <= self.horizon <= MAX_HORIZON:
            raise ConfigError(f"horizon = {self.horizon}, expected 1 to {MAX_HORIZON}")
        for name in ("num_train_states", "num_test_states"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}, expected at least 1")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigError("tasks: expected at least one task, and each name once")
