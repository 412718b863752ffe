"""What of the user's own a run is made with: the files of its method, learner and suite.

A run keeps them as a folder that VLA_CRL_PATH may list, so that it can be run again when they have
changed.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_crl.catalog import catalog_dir, list_suites, own_folders, suite_path
from vla_crl.config import from_mapping, read_toml, save_json, to_mapping
from vla_crl.errors import ConfigError
from vla_crl.files.writing import new_folder
from vla_crl.own_code import is_own
from vla_crl.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""What a run keeps at most; of more it keeps the checksums."""
_SHOWN = 3
"""Names of files that an error tells."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What versions.json says of the sources, from some moment of the run on."""

    folder: str
    """Where in the run they are kept."""
    fingerprint: str
    """Of all of them."""
    files: dict[str, str]
    """SHA-256 of each."""
    since_stage: int = 0
    """The stage that was being trained when they changed."""


@dataclass(frozen=True, kw_only=True)
class _Records:
    sources: tuple[SourceRecord, ...] = ()


def source_records(versions: Mapping[str, Any], where: str) -> tuple[SourceRecord, ...]:
    """Return what versions.json says of the sources, in the order in which they came.

    Raises:
        ConfigError: It is not what this module writes.
    """
    known = {key: versions[key] for key in ("sources",) if key in versions}
    return from_mapping(_Records, known, where).sources


@dataclass(frozen=True)
class Sources:
    """The files as they were read, by their names in a folder of VLA_CRL_PATH.

    Attributes:
        sums: SHA-256 of each.
        content: The files, unless they take more than `MAX_BYTES`.
    """

    sums: dict[str, str]
    content: dict[str, bytes]

    @classmethod
    def read(cls, classes: Sequence[type], suite: str) -> "Sources":
        """Read what is not ours of classes and of a suite, with the modules that are loaded.

        Python has read its modules before: call this soon after.

        Args:
            classes: What a run is made with: methods, settings of a learner.
            suite: The suite's name.
        """
        files = {**dict(_modules(classes)), **dict(_suite_files(suite))}
        num_bytes = sum(file.stat().st_size for file in files.values())
        if num_bytes > MAX_BYTES:
            logger.warning(
                "the files of suite '%s' take %d MiB: the run keeps their checksums only",
                suite, num_bytes / 2**20,
            )  # fmt: skip
            return cls({name: _sha256(file) for name, file in files.items()}, {})
        content = {name: file.read_bytes() for name, file in files.items()}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        return cls(sums, content)

    def record(self, folder: str = "sources", since_stage: int = 0) -> SourceRecord:
        """Return what versions.json is to say."""
        lines = "".join(f"{self.sums[name]}  {name}\n" for name in sorted(self.sums))
        fingerprint = hashlib.sha256(lines.encode()).hexdigest()[:16]
        return SourceRecord(
            folder=folder, fingerprint=fingerprint, files=self.sums, since_stage=since_stage
        )

    def require(self, run: RunDirectory, *, may_differ: bool) -> None:
        """Check that a run was made with them.

        Args:
            run: The run, to be resumed.
            may_differ: Whether the user knows that they have changed.

        Raises:
            ConfigError: It was made with others.
        """
        if may_differ or (began := _last_record(run)) is None:
            return
        names = sorted(
            name
            for name in {*self.sums, *began.files}
            if self.sums.get(name) != began.files.get(name)
        )
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ConfigError(
                f"{run.path}: what it is made with has changed since it began: "
                f"{', '.join(names[:_SHOWN])}{more} (as it was: {run.path / began.folder}). Put it "
                "back, start a new run with another --run-dir, or, where the change is meant, go "
                "on with --changed-sources: the run then keeps both"
            )

    def keep(self, run: RunDirectory) -> None:
        """Copy them into a run, beside those with which it was made so far."""
        last = _last_record(run)
        if last is None:
            return
        if last.files != self.sums:
            versions = run.read_versions()
            records = source_records(versions, str(run.versions_file))
            rows = run.read_metrics()
            last = self.record(f"sources_{len(records) + 1}", rows[-1]["stage"] if rows else 0)
            versions["sources"] = [to_mapping(record) for record in (*records, last)]
            save_json(versions, run.versions_file)
        folder = run.path / last.folder
        if self.content and not folder.exists():
            with new_folder(folder) as temporary:
                for name, data in self.content.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).write_bytes(data)


def _last_record(run: RunDirectory) -> SourceRecord | None:
    """Return what a run was made with until now; None of one that began before this was kept."""
    if not run.versions_file.is_file():
        return None
    records = source_records(run.read_versions(), str(run.versions_file))
    return records[-1] if records else None


def _modules(classes: Sequence[type]) -> Iterator[tuple[str, Path]]:
    """Yield the loaded modules of own folders, and of folders where the module of a class lies."""
    tops = [sys.modules.get(c.__module__.partition(".")[0]) for m in classes for c in m.__mro__]
    homes = [Path(file).resolve().parent for top in tops if (file := _file(top)) and is_own(file)]
    roots = tuple(f"{folder}/" for folder in [*own_folders(), *homes])
    for name, module in [*sys.modules.items()]:
        file = _file(module)
        if file and str(Path(file).resolve()).startswith(roots) and is_own(file):
            path = Path(*name.split("."))
            path = path / "__init__" if Path(file).stem == "__init__" else path
            yield str(path) + Path(file).suffix, Path(file)


def _file(module: object) -> str | None:
    return getattr(module, "__file__", None) if module is not sys.modules["__main__"] else None


def _suite_files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of an own suite, of suites that it collects, and parts that suites share."""
    folder = suite_path(name)
    if folder.parent == catalog_dir("envs"):
        return
    entries = [entry for entry in folder.parent.iterdir() if not (entry / "suite.toml").exists()]
    for entry in [folder, *entries]:
        for file in [entry, *entry.rglob("*")]:
            parts = file.relative_to(folder.parent.parent).parts
            is_hidden = any(part[0] == "." or part == "__pycache__" for part in parts)
            if file.is_file() and not is_hidden:
                yield "/".join(parts), file
    tasks = read_toml(folder / "suite.toml").get("tasks", ())
    named = [str(task["task"]) for task in tasks if isinstance(task, dict) and "task" in task]
    for other in {task.partition(".")[0] for task in named} & {*list_suites()} - {folder.name}:
        yield from _suite_files(other)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
