"""Recorded demonstrations for a policy: read once, then memory-mapped from the user's cache."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from vla_crl.datasets.config import OWN_SUFFIX, DatasetConfig, is_own_file
from vla_crl.datasets.lerobot import INFO, lerobot_episodes
from vla_crl.datasets.libero_hdf5 import SUFFIXES, hdf5_episodes
from vla_crl.datasets.npz import npz_episodes
from vla_crl.datasets.stored import StepRows, StoredEpisode, StoredLabels
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.files.reading import read_arrays
from vla_crl.files.writing import cache_folder, new_folder, remove_leftovers
from vla_crl.progress import console, track
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.simulation import NO_THING
from vla_crl.sim.task_suite import TaskSuite

FORMAT = 2
"""Of what is cached; another one is read anew."""
_IMAGES, _STEPS = "images.npy", "steps.npz"


class _Source(NamedTuple):
    """Somebody's files.

    Attributes:
        files: All that it consists of.
        episodes: Lists its episodes.
        names: By which of a suite's task its episodes are found: "name" or "instruction".
        is_own: Whether it is a file of one's own: of any suite, with any instructions, and to be
            read from front to back.
    """

    files: list[Path]
    episodes: Callable[[], list[StoredEpisode]]
    names: str
    is_own: bool = False


class _Chosen(NamedTuple):
    """An episode that is read, and what the robot is told in it."""

    episode: StoredEpisode
    instruction: str


def read_demonstrations(
    path: Path, config: DatasetConfig, suite: TaskSuite, *, pixels: int, num_threads: int = 2
) -> Demonstrations:
    """Read recorded demonstrations for a suite, with pictures as its policies see them.

    Pictures are resized once and lie in the user's cache, from where they are mapped into memory:
    24 kB a step at 64 pixels and two cameras. The cache knows files by name, size and time of
    change, so that what has been read begins at once the next time.

    Args:
        path: Of a file or folder.
        config: What is read of it, and what its maker meant.
        suite: Of LIBERO for files of others; any for one's own.
        pixels: Height and width of the policy's images.
        num_threads: For decoding.

    Raises:
        ConfigError: A package is missing; files are damaged, do not fit the suite, or are of other
            tasks; or the cache has no room.
    """
    for name in config.tasks:
        known = [task.name for task in suite.tasks]
        if name not in known:
            raise unknown_name("dataset.tasks", f"task of suite '{suite.name}'", name, known)
    source = _source(path, config, suite, pixels)
    folder = cache_folder("datasets") / _key(path, source, config, suite, pixels)
    if not folder.is_dir():
        episodes = _chosen(path, source, config, suite)
        _write(folder, source, episodes, suite, pixels=pixels, num_threads=num_threads)
    return _load(folder, path, suite)


def _source(path: Path, config: DatasetConfig, suite: TaskSuite, pixels: int) -> _Source:
    if is_own_file(str(path)) and path.is_file():
        episodes = partial(npz_episodes, path, suite, pixels)
        return _Source([path], episodes, "instruction", is_own=True)
    if (path / INFO).is_file():
        files = [f for part in ("meta", "data", "videos") for f in (path / part).rglob("*.*")]
        source = _Source(files, partial(lerobot_episodes, path, config), "instruction")
    else:
        files = [path] if path.is_file() else list(path.rglob("*.*"))
        files = sorted(file for file in files if file.suffix in SUFFIXES)
        source = _Source(files, partial(hdf5_episodes, files, config), "name")
    if not files:
        raise ConfigError(
            f"data: {path}: "
            + ("no such file or folder" if not path.exists() else "no demonstrations there")
            + f"; expected a file of `vla-crl collect` or of your own ({OWN_SUFFIX}), one of "
            f"LIBERO ({SUFFIXES[0]}) or a folder with some, or a LeRobot folder with {INFO}"
        )
    if not isinstance(suite, LiberoSuite):
        raise ConfigError(
            f"data: {path}: demonstrations of LIBERO, but '{suite.name}' is no suite of LIBERO; "
            f"expected files of `vla-crl collect` or of your own ({OWN_SUFFIX})"
        )
    return source


def _key(path: Path, source: _Source, config: DatasetConfig, suite: TaskSuite, pixels: int) -> str:
    """Return a name for what is read; other files, settings or tasks give another one."""
    known = [
        (str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(source.files)
        if file.is_file()
    ]
    tasks = [(task.name, task.instruction) for task in suite.tasks]
    robot, turned = asdict(suite.embodiment), _is_turned(source, suite)
    content = [FORMAT, known, asdict(config), tasks, robot, suite.pictures, turned, pixels]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _is_turned(source: _Source, suite: TaskSuite) -> bool:
    """Tell whether pictures are to be turned; one's own are those that policies see already."""
    return isinstance(suite, LiberoSuite) and suite.protocol.is_turned and not source.is_own


def _chosen(path: Path, source: _Source, config: DatasetConfig, suite: TaskSuite) -> list[_Chosen]:
    """Return the episodes that are wanted; tell of the others."""
    wanted: dict[str, str] = {}
    for task in suite.tasks:
        if not config.tasks or task.name in config.tasks:
            wanted.setdefault(_plain(getattr(task, source.names)), task.instruction)
    takes_all = source.is_own and not config.tasks
    found, foreign, chosen = Counter[str](), Counter[str](), []
    for episode in source.episodes():
        name = _plain(episode.task)
        if name not in wanted and not takes_all:
            foreign[episode.task] += 1
            continue
        found[name] += 1
        if found[name] <= (config.episodes_per_task or found[name]) and episode.num_steps > 0:
            chosen.append(_Chosen(episode, wanted.get(name, episode.task)))
    if not chosen:
        kind = f"task of suite '{suite.name}'" + (" in dataset.tasks" if config.tasks else "")
        raise unknown_name(str(path), kind, next(iter(foreign), "nothing"), wanted)
    if foreign:
        console.print(
            f"{path}: left out are {foreign.total()} demonstrations of {len(foreign)} tasks that "
            f"are not wanted or not in suite '{suite.name}'",
            soft_wrap=True,
        )
    if absent := [name for name in wanted if name not in found]:
        console.print(
            f"{path}: no demonstration of {len(absent)} tasks of the suite, such as '{absent[0]}'",
            soft_wrap=True,
        )
    conventions = dict.fromkeys(episode.conventions for episode, _ in chosen)
    for meant in () if source.is_own else conventions:
        console.print(
            f"{path}: pictures are '{meant.view}', the gripper {meant.gripper} at 1, a step is "
            f"seen {meant.seen} its action",
            soft_wrap=True,
        )
    return chosen


def _plain(name: str) -> str:
    return " ".join(name.split()).lower()


def _write(
    folder: Path,
    source: _Source,
    chosen: Sequence[_Chosen],
    suite: TaskSuite,
    *,
    pixels: int,
    num_threads: int,
) -> None:
    """Read episodes into a folder of the cache; nothing is there until it is whole."""
    lengths = np.array([episode.num_steps for episode, _ in chosen])
    ends, total, robot = np.cumsum(lengths), int(lengths.sum()), suite.embodiment
    sentences = list(dict.fromkeys(instruction for _, instruction in chosen))
    things = chosen[0].episode.things
    shape = (total, len(robot.cameras), pixels, pixels, 3)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ConfigError(
            f"{folder.parent}: {total} steps at {pixels} pixels need {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} are free; set XDG_CACHE_HOME to another disk, or read fewer with "
            "dataset.tasks or dataset.episodes_per_task"
        )
    with new_folder(folder) as temporary:
        steps = StepRows(
            np.empty((total, len(robot.state)), np.float32),
            np.empty((total, len(robot.action)), np.float32),
            np.lib.format.open_memmap(temporary / _IMAGES, "w+", np.uint8, shape),
            StoredLabels(
                np.full((total, 2), NO_THING),
                np.zeros((*shape[:2], len(things), 2), np.float32),
                np.zeros((*shape[:2], len(things)), bool),
            ),
        )

        def put(number: int) -> None:
            rows = slice(int(ends[number] - lengths[number]), int(ends[number]))
            chosen[number].episode.fill(steps.select(rows), is_turned=_is_turned(source, suite))

        with (
            track("reading demonstrations", total) as bar,
            ThreadPoolExecutor(1 if source.is_own else num_threads) as pool,
        ):
            for number, _ in enumerate(pool.map(put, range(len(chosen)))):
                bar.advance(int(lengths[number]))
        if not source.is_own:
            _require_opening(steps.label, chosen[0].episode)
        cast(np.memmap, steps.images).flush()
        np.savez(
            temporary / _STEPS,
            instructions=np.array(sentences),
            things=np.array(things, dtype=str),
            state=steps.state,
            label=steps.label,
            **steps.labels._asdict(),
            task=np.repeat([sentences.index(said) for _, said in chosen], lengths),
            episode_end=np.repeat(ends, lengths),
            episode_success=np.array([episode.success for episode, _ in chosen]),
        )


def _require_opening(label: np.ndarray, episode: StoredEpisode) -> None:
    if label[:, -1].min() >= 0.0:
        raise ConfigError(
            f"{episode.where}: the gripper is never opened here nor in all that was read, though "
            f"it {episode.conventions.gripper} at 1; expected numbers from -1 (open) to 1, give "
            "gripper 'opens' if 0 closes and 1 opens"
        )


def _load(folder: Path, path: Path, suite: TaskSuite) -> Demonstrations:
    """Map what `_write` wrote, and tell what there is."""
    try:
        images = np.load(folder / _IMAGES, mmap_mode="r", allow_pickle=False)
        steps = read_arrays(folder / _STEPS)
        num = len(steps["state"])
        if len(images) != num:
            raise ValueError(f"{len(images)} pictures of {num} steps")
        instructions, things = (tuple(steps.pop(n).tolist()) for n in ("instructions", "things"))
        found = Demonstrations(
            instructions=instructions,
            things=things,
            images=images,
            has_grounding=np.full(num, bool(things)),
            **steps,
        )
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder}: what was read of {path} is damaged ({error}); delete the folder, and it is "
            "read again"
        ) from error
    failed = found.num_episodes - int(found.episode_success.sum())
    failures = f" ({failed} of them failures, learnt as all others)" if failed else ""
    console.print(
        f"{path}: {found.num_episodes} demonstrations{failures}, {num} steps", soft_wrap=True
    )
    known = {_plain(task.instruction) for task in suite.tasks}
    if others := [said for said in instructions if _plain(said) not in known]:
        console.print(
            f"{path}: {len(others)} of {len(instructions)} instructions are of no task of suite "
            f"'{suite.name}', such as '{others[0]}'; they are learnt, but not measured",
            soft_wrap=True,
        )
    return found
