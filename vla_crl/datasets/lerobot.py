"""LIBERO in LeRobot's format: folders of version 2.0 and 2.1, and of version 3.0.

`meta/info.json` names the features and says where data and videos lie. In version 2 an episode has
a parquet file and a video a camera, and `meta/episodes.jsonl` lists episodes; in version 3 files
hold many episodes, and `meta/episodes/*/*.parquet` says where each one begins. Pictures are PNG
bytes in the parquet files, or videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Interval

from vla_crl.config import Count, Settings, as_record
from vla_crl.datasets.config import DatasetConfig, Gripper, View
from vla_crl.datasets.stored import INSTALL, Conventions, StoredEpisode, StoredSteps
from vla_crl.errors import ConfigError
from vla_crl.files.reading import MAX_TABLE_BYTES, parse_lines, read_object, read_text, require_file
from vla_crl.files.writing import media_url

INFO = Path("meta") / "info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
_STATES, _ACTIONS = ("state", "observation.state"), ("actions", "action")


@dataclass(frozen=True, kw_only=True)
class Info(Settings):
    """What meta/info.json says, as far as it is used."""

    codebase_version: str
    features: dict[str, dict[str, Any]]
    fps: Annotated[float, Interval(gt=0, le=10_000)]
    chunks_size: Count = 1000
    data_path: str = ""
    video_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Episode(Settings):
    """What is said of an episode, as far as it is used."""

    episode_index: Annotated[int, Interval(ge=0, le=10**9)]
    length: Count
    tasks: tuple[str, ...]


class _Origin(NamedTuple):
    """How a known conversion calls its cameras, and what it means by pictures and the gripper."""

    cameras: tuple[str, str]
    view: View | None
    gripper: Gripper | None


_ORIGINS = (
    # physical-intelligence/libero, by openpi's script; those pictures are of OpenVLA's data
    _Origin(("image", "wrist_image"), "rotated", "closes"),
    # lerobot/libero and HuggingFaceVLA/libero, made of the former
    _Origin(("observation.images.image", "observation.images.image2"), "rotated", "closes"),
    # any4lerobot: of OpenVLA's data rotated and 1 opens, of HDF5 files as those are
    _Origin(("observation.images.image", "observation.images.wrist_image"), None, None),
)


def lerobot_episodes(folder: Path, config: DatasetConfig) -> list[StoredEpisode]:
    """List the episodes of a folder, whose tasks are the instructions.

    What is not told: pictures and gripper are as those of the published conversion with the same
    names of cameras, and things are seen before the action.

    Raises:
        ConfigError: pyarrow is missing, the folder is damaged or not of LIBERO, or its names are
            those of conversions that differ.
    """
    dataset = _Folder(folder)
    origin = _origin(dataset)
    view, gripper = config.view or origin.view, config.gripper or origin.gripper
    if view is None or gripper is None:
        missing = [name for name in ("view", "gripper") if not getattr(config, name)]
        raise ConfigError(
            f"{folder / INFO}: conversions with the cameras {' and '.join(origin.cameras)} differ "
            f"in what pictures and gripper numbers mean; give {' and '.join(missing)}"
        )
    conventions = Conventions(view, gripper, config.seen or "before")
    return [
        StoredEpisode(
            where=f"{folder}: episode {row['episode_index']}",
            task=dataset.task_of(row),
            num_stored=int(row["length"]),
            conventions=conventions,
            read=partial(dataset.read, row, origin.cameras),
        )
        for row in dataset.episodes
    ]


def _origin(dataset: "_Folder") -> _Origin:
    for origin in _ORIGINS:
        if set(origin.cameras) <= dataset.features.keys():
            return origin
    known = "; ".join(" and ".join(origin.cameras) for origin in _ORIGINS)
    raise ConfigError(
        f"{dataset.folder / INFO}: features are {', '.join(dataset.features)}; expected the "
        f"cameras of a conversion of LIBERO: {known}"
    )


class _Folder:
    """A folder of LeRobot's format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = lru_cache(maxsize=4)(_table)  # files of many episodes are read once for them

    @cached_property
    def info(self) -> dict[str, Any]:
        """Content of meta/info.json."""
        file = self.folder / INFO
        info = as_record(Info, read_object(file), f"{file}: not LeRobot's")
        version = info["codebase_version"]
        if version not in VERSIONS:
            raise ConfigError(
                f"{file}: version '{version}', expected {', '.join(VERSIONS)}; convert it with "
                "LeRobot's own scripts"
            )
        return info

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """What a step has, by name."""
        return self.info["features"]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row an episode, in order."""
        meta = self.folder / "meta"
        if self.info["codebase_version"] == "v3.0":
            files = sorted((meta / "episodes").glob("*/*.parquet"))
            if not files:
                raise ConfigError(f"{meta / 'episodes'}: no parquet file in it, expected some")
            rows = [row for file in files for row in _rows(file)]
        else:
            rows = _json_lines(meta / "episodes.jsonl")
        rows = [as_record(Episode, row, f"{meta}: episode {n}") for n, row in enumerate(rows)]
        return sorted(rows, key=lambda row: row["episode_index"])

    def task_of(self, row: Mapping[str, Any]) -> str:
        """Return the one instruction of an episode."""
        if len(row["tasks"]) != 1:
            raise ConfigError(
                f"{self.folder}: episode {row['episode_index']} has the tasks "
                f"{list(row['tasks'])}, expected one"
            )
        return row["tasks"][0]

    def read(self, row: Mapping[str, Any], cameras: tuple[str, str]) -> StoredSteps:
        """Read the steps of an episode."""
        file = self._path("data_path", "data", row)
        state, action = (self._one_of(names) for names in (_STATES, _ACTIONS))
        in_parquet = [name for name in cameras if self.features[name].get("dtype") != "video"]
        table = self._table(file, ("episode_index", state, action, *in_parquet))
        index = table["episode_index"].to_numpy()
        steps = table.take(np.flatnonzero(index == row["episode_index"]))
        if len(steps) != row["length"]:
            raise ConfigError(
                f"{file}: {len(steps)} steps of episode {row['episode_index']}, expected "
                f"{row['length']}; download it again"
            )
        where = f"{file}: episode {row['episode_index']}"
        pictures = [
            _decoded(steps[name].to_pylist(), f"{where}: {name}")
            if name in in_parquet
            else self._video(name, row)
            for name in cameras
        ]
        return StoredSteps(
            _numbers(steps[state], f"{where}: {state}"),
            _numbers(steps[action], f"{where}: {action}"),
            tuple(pictures),
        )

    def _one_of(self, names: tuple[str, str]) -> str:
        for name in names:
            if name in self.features:
                return name
        raise ConfigError(
            f"{self.folder / INFO}: features are {', '.join(self.features)}; expected "
            f"{' or '.join(names)}"
        )

    def _path(self, key: str, kind: str, row: Mapping[str, Any], **names: Any) -> Path:
        """Return the file of an episode; `key` names its pattern, `kind` the columns about it."""
        index = int(row["episode_index"])
        try:
            if self.info["codebase_version"] == "v3.0":
                names |= {
                    "chunk_index": row[f"{kind}/chunk_index"],
                    "file_index": row[f"{kind}/file_index"],
                }
            else:
                chunk = index // int(self.info["chunks_size"])
                names |= {"episode_chunk": chunk, "episode_index": index}
            return self.folder / self.info[key].format(**names)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.folder / INFO}: {key} of episode {index}: {type(error).__name__}: {error}"
            ) from error

    def _video(self, name: str, row: Mapping[str, Any]) -> Iterator[np.ndarray]:
        kind = f"videos/{name}"
        file = self._path("video_path", kind, row, video_key=name)
        begin_s = float(row.get(f"{kind}/from_timestamp", 0.0))
        return _frames(file, begin_s, float(self.info["fps"]), int(row["length"]))


def _frames(file: Path, begin_s: float, fps: float, length: int) -> Iterator[np.ndarray]:
    """Decode the frames of an episode, [h, w, 3] each."""
    import av
    from av.error import FFmpegError

    found, half_s = 0, 0.5 / fps
    require_file(file)
    try:
        with av.open(media_url(file)) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            container.seek(int(max(begin_s - half_s, 0.0) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < begin_s - half_s:
                    continue  # what a seek finds begins before
                if abs(frame.time - begin_s - found / fps) > half_s:
                    break  # one is missing
                yield frame.to_ndarray(format="rgb24")
                found += 1
                if found == length:
                    return
    except (FFmpegError, OSError, IndexError) as error:
        raise _damaged(file, "video", error) from error
    raise ConfigError(
        f"{file}: {found} frames from second {begin_s:g} on, expected {length}, {fps:g} a second; "
        "download it again"
    )


def _decoded(cells: list[Any], where: str) -> Iterator[np.ndarray]:
    """Decode pictures [h, w, 3] from cells of {bytes, path}."""
    from PIL import Image

    for step, cell in enumerate(cells):
        try:
            with Image.open(BytesIO(cell["bytes"])) as picture:
                yield np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{where}: the picture of step {step} is damaged ({type(error).__name__}), "
                "expected the bytes of a PNG"
            ) from error


def _numbers(column: Any, where: str) -> np.ndarray:
    try:
        return np.array(column.to_pylist(), np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: expected equally many numbers in each step") from error


def _table(file: Path, columns: tuple[str, ...]) -> Any:
    """Read columns of a parquet file."""
    with _opened(file) as content:
        names = content.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise ConfigError(f"{file}: has no column {', '.join(missing)} but {', '.join(names)}")
        return _read(content, file, columns)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read what a file says of episodes, without their statistics."""
    with _opened(file) as content:
        names = [name for name in content.schema_arrow.names if not name.startswith("stats/")]
        return _read(content, file, names).to_pylist()


def _opened(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{file}: reading it needs the package pyarrow: {INSTALL}") from error
    require_file(file)
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, "parquet file", error) from error


def _read(content: Any, file: Path, columns: Sequence[str]) -> Any:
    try:
        return content.read(columns=list(columns))
    except (OSError, ValueError) as error:
        raise _damaged(file, "parquet file", error) from error


def _damaged(file: Path, kind: str, error: Exception) -> ConfigError:
    return ConfigError(f"{file}: not a whole {kind} ({error}); download it again")


def _json_lines(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in parse_lines(read_text(file, MAX_TABLE_BYTES), file)]
