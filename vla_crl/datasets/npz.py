"""Demonstrations of one's own: numpy arrays in a file (.npz), of the robot of any suite.

`vla-crl collect` writes such files, and `np.savez_compressed(FILE, images=images, ...)` does. S
steps of E episodes follow one another; in a step the robot sees and feels first, and then acts.

    images           [S, C, H, H, 3] uint8, of C cameras, as the suite shows them
    states           [S, n] what the robot feels
    actions          [S, A] what it is to do, each number in [-1, 1]
    instructions     [E] strings, one English sentence an episode
    episode_lengths  [E] steps of each episode
    cameras, state_names, action_names
                     [C], [n], [A] strings: the channels of the suite's `Embodiment`

A file may also say:

    success          [E] bool, whether the episode reached its goal
    pictures         string, what is peculiar to the pictures, as `TaskSuite.pictures` of its suite
    things, object_uv, object_visible, named
                     [O] strings, [S, C, O, 2], [S, C, O] bool, [S, 2]: where things are, as
                     `Demonstrations` has it; all four or none
"""

import zipfile
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_crl.datasets.npz_archive import ArrayRows, Header, read_header, telling_damage
from vla_crl.datasets.stored import Conventions, StoredEpisode, StoredLabels, StoredSteps
from vla_crl.errors import ConfigError
from vla_crl.files.reading import require_file
from vla_crl.files.writing import replacing
from vla_crl.progress import console
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.sim.simulation import NO_THING
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH, TaskSuite

_KINDS = {
    "uint8": lambda dtype: dtype == np.uint8,
    "numbers": lambda dtype: dtype.kind in "fiu",
    "whole numbers": lambda dtype: dtype.kind in "iu",
    "bool": lambda dtype: dtype.kind == "b",
    "strings": lambda dtype: dtype.kind == "U",
}
_REQUIRED = {
    "cameras": ("strings", "c"),
    "state_names": ("strings", "s"),
    "action_names": ("strings", "a"),
    "images": ("uint8", "SCHH3"),
    "states": ("numbers", "Sn"),
    "actions": ("numbers", "SA"),
    "instructions": ("strings", "E"),
    "episode_lengths": ("whole numbers", "E"),
}
"""Kind of each array, and its dimensions as letters: equal ones are equally long."""
_LABELS = {
    "things": ("strings", "O"),
    "object_uv": ("numbers", "SCO2"),
    "object_visible": ("bool", "SCO"),
    "named": ("whole numbers", "S2"),
}
_OPTIONAL = {"success": ("bool", "E"), "pictures": ("strings", "")}


def save_demonstrations(demonstrations: Demonstrations, suite: TaskSuite, path: Path) -> None:
    """Write a compressed npz file without pickled objects.

    Args:
        demonstrations: Of `suite`.
        suite: Its robot and pictures are told.
        path: Of the file.

    Raises:
        ConfigError: The file exists.
    """
    if path.exists():
        raise ConfigError(f"{path} exists; give another --output or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    robot, data = suite.embodiment, demonstrations
    ends, firsts = np.unique(data.episode_end), np.unique(data.episode_end, return_index=True)[1]
    with replacing(path) as temporary, temporary.open("wb") as file:  # a name would get .npz
        np.savez_compressed(
            file,
            allow_pickle=False,
            images=data.images,
            states=data.state,
            actions=data.label,
            instructions=np.array([data.instructions[task] for task in data.task[firsts]]),
            episode_lengths=np.diff(ends, prepend=0),
            cameras=robot.cameras,
            state_names=robot.state,
            action_names=robot.action,
            success=data.episode_success,
            pictures=suite.pictures,
            things=np.array(data.things, dtype=str),
            object_uv=data.object_uv,
            object_visible=data.object_visible,
            named=data.named,
        )


def npz_episodes(path: Path, suite: TaskSuite, pixels: int) -> list[StoredEpisode]:
    """List the episodes of a file after a look at all that it holds but pictures.

    Pictures are read with the episodes, from front to back and never more than an episode at a
    time: in this order alone is it quick.

    Args:
        path: Of the file.
        suite: Whose robot it has to be.
        pixels: Height and width of the policy's images.

    Raises:
        ConfigError: The file is damaged, lacks an array, or holds one that does not fit.
    """
    require_file(path)
    with telling_damage(path), zipfile.ZipFile(path) as archive:
        arrays, shape = _arrays(path, archive, suite)
    _require_fit(path, arrays, shape, suite, pixels)
    if shape[2] > pixels:
        told = f"{path}: images of {shape[2]} pixels become {pixels} x {pixels}"
        console.print(told, soft_wrap=True)
    pictures, things = ArrayRows(path, "images", shape), tuple(map(str, arrays.get("things", ())))
    success = arrays.get("success", np.ones(len(arrays["instructions"]), dtype=bool))
    episodes, end = [], 0
    for number, length in enumerate(arrays["episode_lengths"].tolist()):
        end += length
        steps = _Steps(arrays, pictures, suite, slice(end - length, end))
        episodes.append(
            StoredEpisode(
                where=f"{path}: episode {number}",
                task=str(arrays["instructions"][number]),
                num_stored=length,
                conventions=Conventions("upright", "closes", "before"),
                read=steps.read,
                success=bool(success[number]),
                things=things,
            )
        )
        steps.require_sense(episodes[-1].where)
    return episodes


def _arrays(
    path: Path, archive: zipfile.ZipFile, suite: TaskSuite
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Read all arrays but the pictures, whose shape is returned; nothing is read unchecked."""
    robot, arrays, shape = suite.embodiment, {}, ()
    channels = {"cameras": robot.cameras, "state_names": robot.state, "action_names": robot.action}
    sizes = {"C": len(robot.cameras), "n": len(robot.state), "A": len(robot.action)}
    sizes |= {digit: int(digit) for digit in "23"}
    there = {member.removesuffix(".npy") for member in archive.namelist()}
    labels = _LABELS if there & _LABELS.keys() else {}
    for name, (kind, dims) in (_REQUIRED | labels | _OPTIONAL).items():
        if name not in there:
            if name in _OPTIONAL:
                continue
            raise ConfigError(
                f"{path}: has no array '{name}' but {', '.join(sorted(there)) or 'nothing'}; "
                f"expected {', '.join(_REQUIRED)}"
                + (f"; where things are is told by {', '.join(labels)}" if labels else "")
            )
        with archive.open(f"{name}.npy") as member:
            header = read_header(member)
            _require_shape(path, name, header, kind, dims, sizes)
            if header.end != archive.getinfo(f"{name}.npy").file_size:
                raise ConfigError(f"{path}: {name} is damaged; write or copy the file again")
        if name == "images":
            shape = header.shape
            continue
        with archive.open(f"{name}.npy") as member:
            arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        if name in channels:
            _require_channels(path, name, arrays[name].tolist(), channels[name], suite.name)
    if others := sorted(there - (_REQUIRED | labels | _OPTIONAL).keys()):
        console.print(f"{path}: not read are {', '.join(others)}", soft_wrap=True)
    return arrays, shape


def _require_channels(
    path: Path, name: str, found: list[str], expected: tuple[str, ...], suite: str
) -> None:
    for place, (theirs, ours) in enumerate(zip_longest(found, expected)):
        if theirs != ours:
            has, wants = (repr(channel) if channel else "missing" for channel in (theirs, ours))
            raise ConfigError(
                f"{path}: {name}[{place}] is {has}, but that of suite '{suite}' is {wants}; it has "
                f"{', '.join(expected)}. Name the suite or controller (SUITE@CONTROLLER) of this "
                "robot, or bring the numbers into this order"
            )


def _require_shape(
    path: Path, name: str, header: Header, kind: str, dims: str, sizes: dict[str, int]
) -> None:
    """Check kind and dimensions of an array, and take over the sizes that it is first to tell."""
    found = dict(sizes)
    fits = len(header.shape) == len(dims) and all(
        found.setdefault(letter, size) == size
        for letter, size in zip(dims, header.shape, strict=True)
    )
    if not fits or not _KINDS[kind](header.dtype):
        is_object = header.dtype.kind == "O"
        expected = ", ".join(str(sizes.get(letter, letter)) for letter in dims)
        raise ConfigError(
            f"{path}: {name} is {header.dtype} {list(header.shape)}, expected {kind} [{expected}]"
            + (f"; make it with np.array(..., dtype={'str' if kind == 'strings' else 'float'})"
               if is_object else "")
        )  # fmt: skip
    if header.is_fortran and name == "images":
        raise ConfigError(
            f"{path}: images are in Fortran's order, expected C's; np.ascontiguousarray(images)"
        )
    sizes.update(found)


def _require_fit(
    path: Path,
    arrays: dict[str, np.ndarray],
    shape: tuple[int, ...],
    suite: TaskSuite,
    pixels: int,
) -> None:
    """Check a file against the suite, and what it says of itself against itself."""
    pictures = str(arrays.get("pictures", suite.pictures))
    if pictures != suite.pictures:
        raise ConfigError(
            f"{path}: its pictures are '{pictures}', but those of suite '{suite.name}' are "
            f"'{suite.pictures}'; collect them on it"
        )
    if shape[2] < pixels:
        raise ConfigError(
            f"{path}: images of {shape[2]} pixels, but the policy looks at {pixels}; collect them "
            f"with --image-size {pixels}, or give the policy an image_size of at most {shape[2]}"
        )
    _require_episodes(path, arrays, shape[0])


def _require_episodes(path: Path, arrays: dict[str, np.ndarray], num_steps: int) -> None:
    lengths = arrays["episode_lengths"]
    for number, length in enumerate(lengths.tolist()):
        if length < 1:
            raise ConfigError(f"{path}: episode_lengths[{number}] is {length}, expected 1 or more")
    if sum(lengths.tolist()) != num_steps:
        raise ConfigError(
            f"{path}: episode_lengths add up to {sum(lengths.tolist())} steps, but images has "
            f"{num_steps}"
        )
    if not len(lengths):
        raise ConfigError(f"{path}: no episode in it")
    for number, sentence in enumerate(arrays["instructions"].tolist()):
        if not sentence.strip() or not sentence.isprintable():
            raise ConfigError(f"{path}: instructions[{number}] is {sentence!r}, expected words")
        if len(sentence) > MAX_INSTRUCTION_LENGTH:
            raise ConfigError(
                f"{path}: instructions[{number}] has {len(sentence)} characters, expected at most "
                f"{MAX_INSTRUCTION_LENGTH}"
            )
    things = arrays.get("things", np.array([])).tolist()
    if len(set(things)) < len(things):
        raise ConfigError(f"{path}: things are {things}, expected each once")


class _Steps(NamedTuple):
    """Some steps of a file's arrays."""

    arrays: dict[str, np.ndarray]
    pictures: ArrayRows
    suite: TaskSuite
    rows: slice

    def read(self) -> StoredSteps:
        """Return them, with their pictures."""
        pictures = self.pictures.read(self.rows)
        labels = None
        if "things" in self.arrays:
            names = ("named", "object_uv", "object_visible")
            labels = StoredLabels(*(self.arrays[name][self.rows] for name in names))
        return StoredSteps(
            self.arrays["states"][self.rows],
            self.arrays["actions"][self.rows],
            tuple(pictures[:, camera] for camera in range(pictures.shape[1])),
            labels,
        )

    def require_sense(self, where: str) -> None:
        """Check the numbers that `StoredEpisode.fill` does not know of."""
        robot, actions = self.suite.embodiment, self.arrays["actions"][self.rows]
        for step, number in np.argwhere((actions == 0.0) & robot.is_binary):
            raise ConfigError(
                f"{where}: actions[{step}, {number}] is 0, but of '{robot.action[number]}' only "
                "the sign counts; expected below 0 or above it, -1 opens a gripper and 1 closes it"
            )
        if "things" not in self.arrays:
            return
        num_things, named = len(self.arrays["things"]), self.arrays["named"][self.rows]
        for step, role in np.argwhere((named < NO_THING) | (named >= num_things)):
            raise ConfigError(
                f"{where}: named[{step}, {role}] is {named[step, role]}, expected the number of "
                f"one of {num_things} things, or {NO_THING}"
            )
        uv = self.arrays["object_uv"][self.rows]
        seen = self.arrays["object_visible"][self.rows][..., None]
        with np.errstate(invalid="ignore"):
            wrong = ~((uv >= 0.0) & (uv <= 1.0)) & seen
        for index in np.argwhere(wrong):
            raise ConfigError(
                f"{where}: object_uv{index.tolist()} is {uv[tuple(index)]}, expected 0 to 1 where "
                "the thing is visible"
            )
