"""LIBERO's demonstrations as its own script writes them: one HDF5 file a task.

`data/demo_N` holds `actions` [T, 7] and `states` [T, 1 + nq + nv]; its `obs` holds `agentview_rgb`
and `eye_in_hand_rgb` [T, h, w, 3], `ee_pos` [T, 3], `ee_ori` [T, 3] (robosuite's axis-angle, see
`published_axis_angle`), `gripper_states` [T, 2] and `joint_states` [T, 7]. OpenVLA's variant of 256
pixels without steps in which nothing is done has the same keys.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from vla_crl.datasets.config import DatasetConfig, Seen, View
from vla_crl.datasets.stored import INSTALL, Conventions, StoredEpisode, StoredSteps
from vla_crl.errors import ConfigError
from vla_crl.files.reading import require_file

SUFFIXES = (".hdf5", ".h5")
_CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
_VIEWS: dict[str, View] = {"opengl": "raw", "opencv": "upright"}
"""What robosuite's conventions of pictures are, which LIBERO's script writes down."""
_LAYOUT = "LIBERO's layout, data/demo_N with actions, states and obs"


def hdf5_episodes(files: Sequence[Path], config: DatasetConfig) -> list[StoredEpisode]:
    """List the episodes of files, whose names are those of LIBERO's tasks and `_demo`.

    What is not told: pictures are as robosuite gives them unless the file says otherwise, the
    gripper closes at 1, and whether things are seen before the action is found out by comparing the
    arm's joints with the states of physics, which are from before it.

    Raises:
        ConfigError: h5py is missing, or a file is damaged or not as LIBERO's.
    """
    episodes = []
    for file in files:
        with _opened(file) as content:
            data = _of(content, "data", str(file))
            names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
            names.sort(key=lambda name: int(name.removeprefix("demo_")))
            if not names:
                raise ConfigError(f"{file}: no demonstration in it, expected {_LAYOUT}")
            convention = str(data.attrs.get("macros_image_convention", "opengl"))
            if not config.view and convention not in _VIEWS:
                raise ConfigError(
                    f"{file}: its pictures are '{convention}', expected {' or '.join(_VIEWS)}; "
                    "give view"
                )
            conventions = Conventions(
                config.view or _VIEWS[convention],
                config.gripper or "closes",
                config.seen or _seen(data[names[0]], f"{file}: data/{names[0]}"),
            )
            for name in names:
                where = f"{file}: data/{name}"
                episodes.append(
                    StoredEpisode(
                        where=where,
                        task=file.stem.removesuffix("_demo"),
                        num_stored=len(_of(data[name], "actions", where)),
                        conventions=conventions,
                        read=partial(_read, file, name),
                    )
                )
    return episodes


def _read(file: Path, name: str) -> StoredSteps:
    where = f"{file}: data/{name}"
    with _opened(file) as content:
        demo = content["data"][name]
        keys = ("obs/ee_pos", "obs/ee_ori", "obs/gripper_states")
        parts = [_array(demo, key, where) for key in keys]
        actions = _array(demo, "actions", where)
        pictures = [_array(demo, f"obs/{camera}", where) for camera in _CAMERAS]
    for key, values in zip((*keys, *_CAMERAS), (*parts, *pictures), strict=True):
        if len(values) != len(actions):
            raise ConfigError(f"{where}: {len(values)} rows of {key}, but {len(actions)} actions")
    return StoredSteps(np.concatenate(parts, axis=1), actions, tuple(pictures))


def _seen(demo: Any, where: str) -> Seen:
    """Find out whether the arm's joints are those before the action, as the states are, or after.

    The first state is left out: OpenVLA's variant keeps one from before the robot waited.
    """
    if "states" not in demo or "joint_states" not in demo.get("obs", ()):
        raise ConfigError(
            f"{where}: without states and obs/joint_states it cannot be found out whether things "
            "are seen before the action; give seen 'before' or 'after'"
        )
    joints = _array(demo, "obs/joint_states", where)
    states = _array(demo, "states", where)[1:, 1 : 1 + joints.shape[1]]
    if len(joints) != len(states) + 1:
        raise ConfigError(f"{where}: {len(joints)} obs/joint_states, but {len(states) + 1} states")
    before, after = (float(np.abs(felt - states).sum()) for felt in (joints[1:], joints[:-1]))
    if before == after:
        raise ConfigError(
            f"{where}: the arm stands still, so it cannot be found out whether things are seen "
            "before the action; give seen 'before' or 'after'"
        )
    return "before" if before < after else "after"


def _opened(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"{file}: reading it needs the package h5py: {INSTALL}") from error
    require_file(file)
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ConfigError(f"{file}: not a whole HDF5 file ({error}); download it again") from error


def _of(group: Any, key: str, where: str) -> Any:
    try:
        return group[key]
    except KeyError as error:
        raise ConfigError(
            f"{where}: has no '{key}' but {', '.join(group) or 'nothing'}; expected {_LAYOUT}"
        ) from error


def _array(group: Any, key: str, where: str) -> np.ndarray:
    try:
        return cast(np.ndarray, _of(group, key, where)[()])
    except OSError as error:
        raise ConfigError(f"{where}: '{key}' is damaged ({error}); download it again") from error
