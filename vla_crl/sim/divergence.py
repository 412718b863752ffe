"""What is kept of a simulation that blew up, so that it can be looked at and run again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import mujoco
import numpy as np
from annotated_types import Interval

from vla_crl.config import from_mapping
from vla_crl.files.arrays import Array, check_arrays
from vla_crl.files.reading import parse_object, read_arrays
from vla_crl.files.writing import replacing
from vla_crl.sim.outcomes import MAX_SPEED
from vla_crl.sim.variation import VariationConfig

DIVERGENCES = Path("divergences")
"""Where commands that have no run directory keep what blew up."""


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What a file says of a divergence beside its arrays."""

    suite: str
    task: str
    state_id: Annotated[int, Interval(ge=0)]
    num_steps: Annotated[int, Interval(ge=0)]
    cause: str
    variation: VariationConfig | None


@dataclass(frozen=True)
class Divergence:
    """One chunk of actions under which physics became NaN, infinite or absurdly fast.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        state_id: Initial state of the episode.
        num_steps: Control steps of the episode before the chunk.
        cause: What blew up, in words; see `blame`.
        actions: [K, A] the chunk.
        state: What the backend knows of the slot before the chunk, arrays by name; of a `VectorSim`
            a row of `get_states`, which `vla_crl.sim.native.replay` puts back.
        variation: What the simulation varied in tasks that have no variation of their own.
    """

    suite: str
    task: str
    state_id: int
    num_steps: int
    cause: str
    actions: Annotated[np.ndarray, Array("K A", np.floating)]
    state: dict[str, np.ndarray]
    variation: VariationConfig | None = None

    def __str__(self) -> str:
        """Say in one line what happened."""
        return (
            f"physics of '{self.suite}' blew up in task '{self.task}', initial state "
            f"{self.state_id}, after {self.num_steps} control steps: {self.cause}; the episode "
            "counts as a failure"
        )

    def save(self, folder: str | Path) -> Path:
        """Write an npz file without pickled objects, beside those there are; return its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.suite}.{self.task}.{self.state_id}.{self.num_steps}"
        endings = chain(("",), (f".{number}" for number in count(2)))
        paths = (folder / f"{name}{ending}.npz" for ending in endings)
        path = next(path for path in paths if not path.exists())
        record = {field.name: getattr(self, field.name) for field in fields(_Words)}
        record["variation"] = None if self.variation is None else asdict(self.variation)
        arrays = {_STATE + name: array for name, array in self.state.items()}
        text = np.array(json.dumps(record))
        # Given a name, numpy would append .npz to it.
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, record=text, actions=self.actions, **arrays)
        return path

    @staticmethod
    def load(path: str | Path) -> "Divergence":
        """Read what `save` wrote.

        Raises:
            ConfigError: The file is missing or has other content.
        """
        where, arrays = f"{path}: no record of diverged physics", read_arrays(Path(path))
        check_arrays(Divergence, arrays, where)
        text, actions = str(arrays.pop("record", "")), arrays.pop("actions")
        words = vars(from_mapping(_Words, parse_object(text, where), where))
        state = {name.removeprefix(_STATE): array for name, array in arrays.items()}
        return Divergence(**words, actions=actions, state=state)


_STATE = "state."
"""Before the names of the state's arrays in a file."""


def save_divergences(divergences: list[Divergence], folder: Path) -> Iterator[str]:
    """Move what blew up out of a list into files of `folder`, and tell in a line about each."""
    while divergences:
        divergence = divergences.pop(0)
        yield f"{divergence}. To look at it again: {divergence.save(folder)}"


def blame(model: mujoco.MjModel, qpos: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Say which joint blew up, and how fast it is.

    Args:
        model: Of the scene.
        qpos: [nq] before the chunk; what is not finite there is to blame.
        before: [nv] velocities before the chunk; else what is too fast there.
        after: [nv] velocities after the chunk; else the first that is not finite, else the
            greatest.
    """
    if len(broken := np.flatnonzero(~np.isfinite(qpos))):
        joint = int(np.searchsorted(model.jnt_qposadr, broken[0], side="right")) - 1
        return moves(joint_name(model, joint), float("nan"))
    if len(fast := np.flatnonzero(~(np.abs(before) < MAX_SPEED))):
        dof, speed = int(fast[0]), np.abs(before)
    else:
        speed = np.abs(after)
        dof = int(np.argmax(np.where(np.isfinite(speed), speed, np.inf)))
    return moves(joint_name(model, int(model.dof_jntid[dof])), float(speed[dof]))


def moves(joint: str, speed: float) -> str:
    """Say how fast (m/s or rad/s) a joint is."""
    if not np.isfinite(speed):
        return f"joint '{joint}' is not finite"
    return f"joint '{joint}' moves at {speed:.3g} m/s or rad/s"


def joint_name(model: mujoco.MjModel, joint: int) -> str:
    """Return a joint's name, or of a free joint that of its body."""
    return model.joint(joint).name or model.body(model.jnt_bodyid[joint]).name
