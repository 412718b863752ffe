"""Which recorded demonstrations are read, and what makers of LIBERO's files meant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_crl.config import Count, Settings

View = Literal["upright", "raw", "rotated"]
Gripper = Literal["closes", "opens"]
Seen = Literal["before", "after"]
OWN_SUFFIX = ".npz"


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Settings):
    """Recorded demonstrations. What is None is as the file says, or as its makers documented it.

    Where neither is so, it must be given: pictures upside down and a gripper that opens instead of
    closing would only be found out by a policy that never succeeds.
    """

    tasks: tuple[str, ...] = ()
    """Names of the suite's tasks whose demonstrations are read, by their instruction in files of
    your own; () reads those of all tasks, and of your own files all."""
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


def is_own_file(path: str) -> bool:
    """Tell whether a path is that of a file of one's own, of any suite, and not one of LIBERO."""
    return Path(path).suffix == OWN_SUFFIX
