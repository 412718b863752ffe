"""What is kept of a simulation that blew up, so that it can be looked at and run again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile

import mujoco
import numpy as np

from vla_crl.config import from_mapping
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.slots import MAX_SPEED, STATE_SPEC
from vla_crl.sim.variation import VariationConfig

if TYPE_CHECKING:
    from vla_crl.sim.vector_sim import VectorSim


DIVERGENCES = Path("divergences")
"""Where commands that have no run directory keep what blew up."""


@dataclass(frozen=True)
class Divergence:
    """One chunk of actions under which physics became NaN, infinite or absurdly fast.

    `replay` runs it again in a `VectorSim`; of other backends the state is kept to be looked at.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        state_id: Initial state of the episode.
        num_steps: Control steps of the episode before the chunk.
        joint: The joint to blame, see `culprit`.
        speed: Its speed, m/s or rad/s.
        physics: [state] before the chunk, packed as in `VectorSim.get_states`.
        tree_asleep: [trees] likewise.
        controller: [R] likewise.
        pending: [L, 7] actions that had not taken effect yet, likewise.
        actions: [K, 7] the chunk.
        variation: What the simulation varied in tasks that have no variation of their own.
    """

    suite: str
    task: str
    state_id: int
    num_steps: int
    joint: str
    speed: float
    physics: np.ndarray
    tree_asleep: np.ndarray
    controller: np.ndarray
    pending: np.ndarray
    actions: np.ndarray
    variation: VariationConfig | None

    def __str__(self) -> str:
        """Say in one line what happened."""
        is_finite = np.isfinite(self.speed)
        motion = f"moves at {self.speed:.3g} m/s or rad/s" if is_finite else "is not finite"
        return (
            f"physics of '{self.suite}' blew up in task '{self.task}', initial state "
            f"{self.state_id}, after {self.num_steps} control steps: joint '{self.joint}' "
            f"{motion}; the episode counts as a failure"
        )

    def save(self, folder: str | Path) -> Path:
        """Write an npz file without pickled objects, beside those there are; return its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.suite}.{self.task}.{self.state_id}.{self.num_steps}"
        endings = chain(("",), (f".{number}" for number in count(2)))
        paths = (folder / f"{name}{ending}.npz" for ending in endings)
        path = next(path for path in paths if not path.exists())
        values = asdict(self)
        values["variation"] = json.dumps(values["variation"])
        np.savez(path, allow_pickle=False, **values)
        return path

    @staticmethod
    def load(path: str | Path) -> "Divergence":
        """Read what `save` wrote.

        Raises:
            ConfigError: The file is missing or has other content.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                values = {field.name: archive[field.name] for field in fields(Divergence)}
            scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
            variation = json.loads(scalars["variation"])
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
            raise ConfigError(f"{path} is no record of diverged physics: {error}") from error
        if variation is not None:
            variation = from_mapping(VariationConfig, variation, f"{path}: variation")
        return Divergence(**{**values, **scalars, "variation": variation})


def save_divergences(divergences: list[Divergence], folder: Path) -> Iterator[str]:
    """Move what blew up out of a list into files of `folder`, and tell in a line about each."""
    while divergences:
        divergence = divergences.pop(0)
        yield f"{divergence}. To look at it again: {divergence.save(folder)}"


def culprit(model: mujoco.MjModel, before: np.ndarray, qvel: np.ndarray) -> tuple[str, float]:
    """Name the joint to blame and its speed (m/s or rad/s).

    Args:
        model: Of the scene.
        before: [state] packed by STATE_SPEC, before the chunk; what is not finite or too fast there
            is to blame.
        qvel: [nv] after the chunk; else the first that is not finite, else the greatest.
    """
    positions, velocities = np.split(before[1 : 1 + model.nq + model.nv], [model.nq])
    if len(broken := np.flatnonzero(~np.isfinite(positions))):
        joint = int(np.searchsorted(model.jnt_qposadr, broken[0], side="right")) - 1
        return joint_name(model, joint), float("nan")
    if len(fast := np.flatnonzero(~(np.abs(velocities) < MAX_SPEED))):
        dof, speed = int(fast[0]), np.abs(velocities)
    else:
        speed = np.abs(qvel)
        dof = int(np.argmax(np.where(np.isfinite(speed), speed, np.inf)))
    return joint_name(model, int(model.dof_jntid[dof])), float(speed[dof])


def joint_name(model: mujoco.MjModel, joint: int) -> str:
    """Return a joint's name, or of a free joint that of its body."""
    return model.joint(joint).name or model.body(model.jnt_bodyid[joint]).name


def replay(divergence: Divergence, sim: "VectorSim") -> bool:
    """Run the chunk again in slot 0, whose episode is lost.

    Args:
        divergence: What happened.
        sim: `load_suite(record.suite).simulate(1, variation=record.variation)`.

    Returns:
        Whether physics blew up again.

    Raises:
        ConfigError: The divergence is of another suite, task or variation.
        SpecError: Its state does not fit the scene, or the simulation is not a `VectorSim`.
    """
    from vla_crl.sim.vector_sim import VectorSim

    if not isinstance(cast(Any, sim), VectorSim):
        raise SpecError(
            f"replay: got a {type(sim).__name__}, expected a VectorSim: no other backend's slots "
            "can be put into a recorded state"
        )
    suite = sim.suite
    if divergence.suite != suite.name:
        raise ConfigError(
            f"replay: a divergence of suite '{divergence.suite}', but the simulation is of "
            f"'{suite.name}'"
        )
    if divergence.variation != sim.variation:
        raise ConfigError(
            f"replay: the simulation varies {sim.variation}, the one that blew up "
            f"{divergence.variation}; make it with simulate(1, variation=record.variation)"
        )
    task = suite.task_index(divergence.task)
    expected = mujoco.mj_stateSize(suite.scenes[suite.tasks[task].scene].model, STATE_SPEC)
    if divergence.physics.shape != (expected,):
        raise SpecError(
            f"replay: a state of {divergence.physics.size} numbers, but the scene has "
            f"{expected}; it has changed since"
        )
    sim.reset([0], tasks=[task], state_ids=[divergence.state_id])
    states = sim.get_states()
    states["physics"][0, :expected] = divergence.physics
    for name in ("tree_asleep", "controller", "pending", "num_steps"):
        own, recorded = states[name][0], getattr(divergence, name)
        if np.shape(recorded) != np.shape(own):
            raise SpecError(
                f"replay: the record's {name} has shape {np.shape(recorded)}, the slot's "
                f"{np.shape(own)}; the suite has changed since"
            )
        states[name][0] = recorded
    sim.set_states(states)
    return bool(sim.step_chunk(divergence.actions[None], [0]).diverged[0])
