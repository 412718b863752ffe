"""Which recorded demonstrations are read, and what their maker meant by pictures and numbers."""

from dataclasses import dataclass
from typing import Literal

from vla_crl.config import Count, Settings
from vla_crl.errors import ConfigError

View = Literal["upright", "raw", "rotated"]
Gripper = Literal["closes", "opens"]
Seen = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Settings):
    """Recorded demonstrations. What is None is as the file says, or as its makers documented it.

    Where neither is so, it must be given: pictures upside down and a gripper that opens instead of
    closing would only be found out by a policy that never succeeds.
    """

    path: str | None = None
    """An HDF5 file of LIBERO or a folder of them, a LeRobot folder of LIBERO, or what
    `vla-crl collect` wrote (.npz). None: the scripted expert demonstrates."""
    tasks: tuple[str, ...] = ()
    """Names of the suite's tasks that are read; all by default."""
    episodes_per_task: Count | None = None
    """So many of each task are read, the first ones; None: all."""
    view: View | None = None
    """How pictures are stored. "upright": as the camera sees; "raw": as robosuite gives them,
    bottom row first; "rotated": those turned by 180 degrees, upright and mirrored."""
    gripper: Gripper | None = None
    """What the action's greater number does to the gripper. "closes": -1 opens and 1 closes, as in
    LIBERO itself; "opens": 0 closes and 1 opens, as OpenVLA is trained."""
    seen: Seen | None = None
    """Whether a step's pictures and state are from before its action, or from after it, as LIBERO's
    own script records them; then they are paired with the action of the next step."""

    def __post_init__(self) -> None:
        """Check that nothing is said of demonstrations that are not read."""
        super().__post_init__()
        if self.path is None or self.path.endswith(".npz"):
            for name in ("tasks", "episodes_per_task", "view", "gripper", "seen"):
                if getattr(self, name):
                    raise ConfigError(
                        f"{name} = {getattr(self, name)!r} is for files of LIBERO and LeRobot, but "
                        f"path is {self.path!r}"
                    )
