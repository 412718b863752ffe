"""A task of LIBERO as it lies in the user's cache: scene files, goal, initial states, checksums.

What is read here was written by `bake`; neither LIBERO nor robosuite is needed any more.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.files.reading import read_arrays, read_object, read_text, require_file
from vla_crl.files.writing import cache_folder
from vla_crl.sim.libero.kernel import goals as kernel_goals
from vla_crl.sim.libero.kernel.arm import Arm, Reading
from vla_crl.sim.libero.kernel.goals import NO_CONTACT, Goals
from vla_crl.sim.libero.kernel.slots import (
    MAX_BODIES,
    MAX_FIXTURES,
    MAX_QPOS,
    MAX_STATE,
    MAX_TREES,
    Scene,
    Sizes,
)
from vla_crl.sim.libero.mjcf import content_name
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.threads import made_once

FORMAT = 2
"""Of what is baked; another one is baked anew, beside it."""
PHYSICS, DRAWN, TASK, STATES, MANIFEST = (
    "physics.xml", "drawn.xml", "task.json", "states.npz", "manifest.json",
)  # fmt: skip
_KINDS = {
    "on_thing": kernel_goals.ON_THING,
    "on_site": kernel_goals.ON_SITE,
    "in_site": kernel_goals.IN_SITE,
    "any_joint": kernel_goals.ANY_JOINT,
    "all_joints": kernel_goals.ALL_JOINTS,
}
_COMPARISONS = {
    "below": kernel_goals.BELOW,
    "above": kernel_goals.ABOVE,
    "from_on": kernel_goals.FROM_ON,
}


def libero_cache() -> Path:
    """Return where tasks are baked; they are baked again when they are used and not there."""
    return cache_folder("libero", str(FORMAT))


def task_folder(benchmark: str, task: str) -> Path:
    """Return where a task is, or will be, baked."""
    return libero_cache() / benchmark / task


def train_states_folder(benchmark: str, task: str, count: int) -> Path:
    """Return where so many initial states for training of a task are, or will be, kept."""
    return libero_cache() / benchmark / f"{task}.train{count}"


def assets_folder() -> Path:
    """Return where the meshes and textures of all tasks are, named by their content."""
    return libero_cache() / "assets"


@dataclass(frozen=True, eq=False)
class BakedTask:
    """One task, whose parts are loaded when they are asked for.

    Attributes:
        folder: Where it lies.
        about: Content of its task.json.
    """

    folder: Path
    about: dict[str, Any]

    @cached_property
    def physics(self) -> mujoco.MjModel:
        """What is simulated, without what is only seen; to be copied, not changed."""
        model = self.compile(PHYSICS)
        # Physics that blew up must be found out, not silently begin anew.
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        return model

    def drawn(self) -> mujoco.MjModel:
        """Compile what is drawn: 100 MB, whose bodies have the numbers of those of `physics`."""
        return self.compile(DRAWN)

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """Official initial states, see `bake_task`."""
        return _arrays(self.folder)

    @cached_property
    def bodies(self) -> dict[str, int]:
        """Body numbers of things, by their names in LIBERO's bddl files."""
        model = self.physics
        return {name: model.body(body).id for name, body in self.about["things"].items()}

    def scene(self, *, horizon: int, wait_steps: int, sleeps: bool) -> Scene:
        """Return the constants with which the kernel steps this task."""
        model, about = self.physics, self.about
        burner = about["burner"]
        return Scene(
            sizes=Sizes(*(int(getattr(model, name)) for name in Sizes._fields)),
            arm=_arm(model, about["arm"]),
            goals=_goals(model, about["goal"]),
            fixtures=np.array([model.body(name).id for name in about["fixtures"]], np.int64),
            burner=-1 if burner is None else int(model.joint(burner).qposadr[0]),
            horizon=horizon,
            wait_steps=wait_steps,
            sleeps=sleeps,
        )

    def compile(self, name: str) -> mujoco.MjModel:
        """Compile a scene file of the folder, as it is written there."""
        text = read_text(self.folder / name)
        names = read_object(self.folder / MANIFEST)["assets"][name]
        return mujoco.MjModel.from_xml_string(text, {file: self._asset(file) for file in names})

    def _asset(self, name: str) -> bytes:
        path = assets_folder() / name
        advice = f"delete {self.folder}, and the task is baked again and the file with it"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: a mesh or texture of LIBERO is missing ({error.strerror}); {advice}"
            ) from error
        if name != content_name(content, path.suffix):
            raise ConfigError(f"{path}: its checksum is not its name; {advice}")
        return content


@made_once
def load_task(benchmark: str, task: str) -> BakedTask:
    """Load a baked task and check it.

    Raises:
        ConfigError: It is not there, or not as it was written; says what to delete.
    """
    folder = task_folder(benchmark, task)
    check_files(folder)
    return BakedTask(folder, read_object(folder / TASK))


@made_once
def load_train_states(benchmark: str, task: str, count: int) -> dict[str, np.ndarray]:
    """Load initial states for training and check them, see `sample_states`.

    Raises:
        ConfigError: They are not there, or not as they were written; says what to delete.
    """
    folder = train_states_folder(benchmark, task, count)
    check_files(folder)
    return _arrays(folder)


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write what is told about the files of a folder, and their checksums."""
    sums = {path.name: _checksum(path) for path in folder.iterdir() if path.name != MANIFEST}
    text = json.dumps(about | {"files": sums}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_files(folder: Path) -> None:
    """Check the files of a folder against its manifest.

    Raises:
        ConfigError: One is missing or has another content.
    """
    try:
        manifest = read_object(folder / MANIFEST)
        for name, expected in manifest["files"].items():
            found = _checksum(folder / name)
            if found != expected:
                raise ConfigError(
                    f"{folder / name}: its checksum is {found[:12]}..., expected "
                    f"{expected[:12]}...; delete {folder}, and it is made again"
                )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{folder}: what was baked is damaged ({error}); delete the folder, and it is made "
            "again"
        ) from error


def _checksum(path: Path) -> str:
    require_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    return read_arrays(folder / STATES)


def _arm(model: mujoco.MjModel, about: dict[str, Any]) -> Arm:
    joints = [model.joint(name) for name in about["joints"]]
    addresses = [int(joint.dofadr[0]) for joint in joints]
    if addresses != list(range(len(joints))) or [int(j.qposadr[0]) for j in joints] != addresses:
        raise ConfigError(f"the arm's joints are {addresses}, expected to be a scene's first")
    fingers = [model.actuator(name) for name in about["fingers"]]
    low, high = np.array([finger.ctrlrange for finger in fingers]).T
    return Arm(
        site=model.site(about["site"]).id,
        hand=model.body(about["hand"]).id,
        mass_address=model.dof_Madr[addresses].astype(np.int64),
        rest_joints=np.array(about["rest_joints"]),
        torque_limit=np.array(about["torque_limit"], np.float64),
        finger_middle=0.5 * (high + low),
        finger_range=0.5 * (high - low),
        reset=Reading(
            *(np.array(about[name]) for name in ("pos", "mat", "jacobian", "mass")),
            joints=np.array(about["rest_joints"]),
            speed=np.zeros(len(joints)),
        ),
    )


def _goals(model: mujoco.MjModel, terms: list[dict[str, Any]]) -> Goals:
    num_terms, pairs, joints, first = len(terms), [], [], [0]
    body, target = np.zeros(num_terms, np.int64), np.zeros(num_terms, np.int64)
    size, touching = np.zeros((num_terms, 3)), np.full(num_terms, NO_CONTACT)
    for row, term in enumerate(terms):
        if term["kind"] in ("any_joint", "all_joints"):
            comparison = _COMPARISONS[term["comparison"]]
            addresses = [int(model.joint(name).qposadr[0]) for name in term["joints"]]
            joints += [(address, comparison, term["threshold"]) for address in addresses]
        else:
            on_thing = term["kind"] == "on_thing"
            body[row] = model.body(term["body"]).id
            target[row] = (model.body if on_thing else model.site)(term["target"]).id
            size[row] = term.get("size", 0.0)
            if term["touching"] is not None:
                touching[row] = len(pairs) // 2
                pairs += term["touching"]
        first.append(len(joints))
    geoms = np.zeros((len(pairs), model.ngeom), np.bool_)
    for row, names in zip(geoms, pairs, strict=True):
        row[[model.geom(name).id for name in names]] = True
    return Goals(
        kind=np.array([_KINDS[term["kind"]] for term in terms], np.int64),
        body=body,
        target=target,
        size=size,
        touching=touching,
        geoms=geoms,
        first_joint=np.array(first, np.int64),
        address=np.array([address for address, _, _ in joints], np.int64),
        comparison=np.array([comparison for _, comparison, _ in joints], np.int64),
        threshold=np.array([threshold for _, _, threshold in joints], np.float64),
    )


def require_room(model: mujoco.MjModel, fixtures: int, where: str) -> None:
    """Check that a scene fits into the rows of the slots.

    Raises:
        ConfigError: It is larger than any scene of LIBERO.
    """
    needs = {
        "state": (mujoco.mj_stateSize(model, STATE_SPEC), MAX_STATE),
        "positions": (model.nq, MAX_QPOS),
        "bodies": (model.nbody, MAX_BODIES),
        "fixtures": (fixtures, MAX_FIXTURES),
        "trees": (model.ntree, MAX_TREES),
    }
    for name, (need, room) in needs.items():
        if need > room:
            raise ConfigError(f"{where}: the scene has {need} {name}, expected at most {room}")
