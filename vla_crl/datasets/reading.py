"""Recorded demonstrations for a policy: read once, then memory-mapped from the user's cache."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_crl.contracts import ARM
from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.lerobot import INFO, lerobot_episodes
from vla_crl.datasets.libero_hdf5 import SUFFIXES, hdf5_episodes
from vla_crl.datasets.stored import CAMERAS, StoredEpisode
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.files import cache_folder, new_folder, remove_leftovers
from vla_crl.progress import console, track
from vla_crl.reading import read_arrays
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.simulation import NO_THING
from vla_crl.sim.task_suite import TaskSuite

FORMAT = 1
"""Of what is cached; another one is read anew."""
_IMAGES, _STEPS = "images.npy", "steps.npz"


class _Source(NamedTuple):
    """Somebody's files.

    Attributes:
        files: All that it consists of.
        episodes: Lists its episodes.
        names: By which of a suite's task its episodes are found: "name" or "instruction".
    """

    files: list[Path]
    episodes: Callable[[], list[StoredEpisode]]
    names: str


def read_demonstrations(
    config: DatasetConfig, suite: TaskSuite, *, pixels: int, num_threads: int = 2
) -> Demonstrations:
    """Read recorded demonstrations of a suite's tasks, with pictures as its policies see them.

    Pictures are resized once and lie in the user's cache, from where they are mapped into memory:
    24 kB a step at 64 pixels. The cache knows files by name, size and time of change, so that what
    has been read begins at once the next time. Nobody has labelled where things are.

    Args:
        config: What to read; its path is given.
        suite: Of LIBERO, or the one that the file of `vla-crl collect` is of.
        pixels: Height and width of the policy's images.
        num_threads: For decoding.

    Raises:
        ConfigError: A package is missing; files are damaged, not of LIBERO, or of other tasks; or
            the cache has no room.
    """
    path = Path(config.path or "")
    if path.suffix == ".npz":
        return _collected(path, suite, pixels)
    if not isinstance(suite, LiberoSuite):
        raise ConfigError(
            f"dataset.path is {path}, demonstrations of LIBERO, but '{suite.name}' is no suite of "
            "LIBERO; its own are read from what `vla-crl collect` writes (.npz)"
        )
    for name in config.tasks:
        known = [task.name for task in suite.tasks]
        if name not in known:
            raise unknown_name("dataset.tasks", f"task of suite '{suite.name}'", name, known)
    source = _source(path, config)
    folder = cache_folder("datasets") / _key(path, source, config, suite, pixels)
    if not folder.is_dir():
        episodes = _chosen(path, source, config, suite)
        _write(folder, episodes, suite, pixels, num_threads)
    return _load(folder, path, suite)


def _collected(path: Path, suite: TaskSuite, pixels: int) -> Demonstrations:
    demonstrations = Demonstrations.load(path)
    if demonstrations.suite != suite.name:
        raise ConfigError(
            f"{path}: demonstrations of suite '{demonstrations.suite}', but the recipe's is "
            f"'{suite.name}'"
        )
    found = demonstrations.images.shape[2]
    if found != pixels:
        raise ConfigError(
            f"{path}: pictures of {found} pixels, but the policy looks at {pixels}; collect them "
            f"with --image-size {pixels}"
        )
    return demonstrations


def _source(path: Path, config: DatasetConfig) -> _Source:
    if (path / INFO).is_file():
        files = [f for part in ("meta", "data", "videos") for f in (path / part).rglob("*.*")]
        return _Source(files, lambda: lerobot_episodes(path, config), "instruction")
    files = [path] if path.is_file() else list(path.rglob("*.*"))
    files = sorted(file for file in files if file.suffix in SUFFIXES)
    if not files:
        raise ConfigError(
            f"dataset.path is {path}: "
            + ("no such file or folder" if not path.exists() else "no demonstrations there")
            + f"; expected a file of `vla-crl collect` (.npz), one of LIBERO ({SUFFIXES[0]}) or a "
            f"folder with some, or a LeRobot folder with {INFO}"
        )
    return _Source(files, lambda: hdf5_episodes(files, config), "name")


def _key(
    path: Path, source: _Source, config: DatasetConfig, suite: LiberoSuite, pixels: int
) -> str:
    """Return a name for what is read; other files, settings or tasks give another one."""
    known = [
        (str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(source.files)
        if file.is_file()
    ]
    tasks = [(task.name, task.instruction) for task in suite.tasks]
    settings = asdict(config) | {"path": None}
    content = [FORMAT, known, settings, tasks, suite.protocol.is_turned, pixels]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _chosen(
    path: Path, source: _Source, config: DatasetConfig, suite: LiberoSuite
) -> list[tuple[StoredEpisode, int]]:
    """Return the episodes that are wanted, each with its task in the suite; tell of the others."""
    wanted: dict[str, int] = {}
    for index, task in enumerate(suite.tasks):
        if not config.tasks or task.name in config.tasks:
            wanted.setdefault(_plain(getattr(task, source.names)), index)
    found, foreign, chosen = Counter[str](), Counter[str](), []
    for episode in source.episodes():
        name = _plain(episode.task)
        if name not in wanted:
            foreign[episode.task] += 1
            continue
        found[name] += 1
        if found[name] <= (config.episodes_per_task or found[name]) and episode.num_steps > 0:
            chosen.append((episode, wanted[name]))
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
    for conventions in dict.fromkeys(episode.conventions for episode, _ in chosen):
        console.print(
            f"{path}: pictures are '{conventions.view}', the gripper "
            f"{conventions.gripper} at 1, a step is seen {conventions.seen} its action",
            soft_wrap=True,
        )
    return chosen


def _plain(name: str) -> str:
    return " ".join(name.split()).lower()


def _write(
    folder: Path,
    episodes: Sequence[tuple[StoredEpisode, int]],
    suite: LiberoSuite,
    pixels: int,
    num_threads: int,
) -> None:
    """Read episodes into a folder of the cache; nothing is there until it is whole."""
    lengths = np.array([episode.num_steps for episode, _ in episodes])
    ends, total = np.cumsum(lengths), int(lengths.sum())
    state = np.empty((total, len(ARM.state)), np.float32)
    label = np.empty((total, len(ARM.action)), np.float32)
    shape = (total, CAMERAS, pixels, pixels, 3)
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
        images = np.lib.format.open_memmap(temporary / _IMAGES, "w+", np.uint8, shape)

        def put(number: int) -> None:
            rows = slice(int(ends[number] - lengths[number]), int(ends[number]))
            is_turned = suite.protocol.is_turned
            episodes[number][0].fill(state[rows], label[rows], images[rows], is_turned=is_turned)

        with (
            track("reading demonstrations", total) as bar,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            for number, _ in enumerate(pool.map(put, range(len(episodes)))):
                bar.advance(int(lengths[number]))
        _require_opening(label, episodes)
        images.flush()
        np.savez(
            temporary / _STEPS,
            state=state,
            label=label,
            task=np.repeat([task for _, task in episodes], lengths),
            episode_end=np.repeat(ends, lengths),
        )


def _require_opening(label: np.ndarray, episodes: Sequence[tuple[StoredEpisode, int]]) -> None:
    if label[:, -1].min() >= 0.0:
        episode = episodes[0][0]
        raise ConfigError(
            f"{episode.where}: the gripper is never opened here nor in all that was read, though "
            f"it {episode.conventions.gripper} at 1; expected numbers from -1 (open) to 1, give "
            "gripper 'opens' if 0 closes and 1 opens"
        )


def _load(folder: Path, path: Path, suite: LiberoSuite) -> Demonstrations:
    try:
        images = np.load(folder / _IMAGES, mmap_mode="r", allow_pickle=False)
        steps = read_arrays(folder / _STEPS)
        num = len(steps["state"])
        if len(images) != num:
            raise ValueError(f"{len(images)} pictures of {num} steps")
        num_episodes = len(np.unique(steps["episode_end"]))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder}: what was read of {path} is damaged ({error}); delete the folder, and it is "
            "read again"
        ) from error
    console.print(f"{path}: {num_episodes} demonstrations, {num} steps", soft_wrap=True)
    things = (num, CAMERAS, len(suite.things))
    return Demonstrations(
        suite=suite.name,
        images=images,
        **steps,
        named=np.broadcast_to(np.int64(NO_THING), (num, 2)),
        object_uv=np.broadcast_to(np.float32(0.0), (*things, 2)),
        object_visible=np.broadcast_to(np.bool_(False), things),
        has_grounding=np.zeros(num, dtype=bool),
        episode_success=np.ones(num_episodes, dtype=bool),  # only successes are published
    )
