"""The folder of one run: what was asked, on what, and everything that came out."""

import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_crl import __version__
from vla_crl.config import as_record, differing_settings, save_json, to_mapping
from vla_crl.errors import ConfigError
from vla_crl.files.reading import MAX_TABLE_BYTES, parse_lines, read_object, read_text
from vla_crl.files.writing import append, intended_name, remove_leftovers, write_atomically
from vla_crl.hardware import cpu_model, num_cores
from vla_crl.runs.episodes import EVALUATION_COLUMNS, TRAINING_COLUMNS, EpisodeFile
from vla_crl.runs.records import ConfigRecord, MetricsRow, VersionsRecord

logger = logging.getLogger(__name__)

PLACES = {"policy", "base"}
"""Settings that say where something lies."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths and files of one run; `vla_crl.report` reads nothing else."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: object, *, seed: int, command: Sequence[str],
        conditions: Mapping[str, Any] | None = None, policy_weights: str = "",
        sources: Sequence[Mapping[str, Any]] = (),
    ) -> "RunDirectory":  # fmt: skip
        """Make a new run directory with its config.json and versions.json.

        Args:
            path: Must not exist, or be a folder without files but what a process left that was
                killed in here.
            config: The resolved config, a dataclass.
            seed: The seed of the run.
            command: The command line that started it.
            conditions: Of the suite, see `TaskSuite.conditions`.
            policy_weights: Fingerprint of the policy with which it begins.
            sources: What of the user's own it is made with, see `vla_crl.runs.sources`.

        Raises:
            ConfigError: Something is there already.
        """
        run = cls(path)
        run.require_new()
        try:  # before anything is written
            json.dumps(to_mapping(config), allow_nan=False)
        except ValueError as error:
            raise ConfigError(f"{path}: a setting is not a finite number") from error
        try:
            for folder in (run.path, run.checkpoints, run.videos, run.plots):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be made ({error}); give another --run-dir"
            ) from error
        remove_leftovers(path)
        described = describe_run(seed, command) | {
            "conditions": dict(conditions or {}),
            "policy_weights": policy_weights,
            "sources": list(sources),
        }
        save_json(described, run.versions_file)
        save_json(config, run.config_file)  # last: with it the run is there
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return the run directory at `path`, for a report or to resume.

        Raises:
            ConfigError: The folder holds no run.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise ConfigError(
                f"{path}: not a run directory, it has no {run.config_file.name}; name the folder "
                "of a run, or begin one without --resume"
            )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock ends with the process.

        What killed ones were writing is removed.

        Raises:
            ConfigError: Another process trains in it, or it holds links.
        """
        self.refuse_links()
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another process is training in it; wait for its end, or choose "
                    "another --run-dir"
                ) from error
            except OSError as error:  # of some network folders
                logger.warning(
                    "%s: this file system has no locks (%s); see to it yourself that no other "
                    "process trains in it", self.path, error.strerror,
                )  # fmt: skip
            remove_leftovers(self.path)
            yield

    def refuse_links(self) -> None:
        """Check that nothing here is a link, before anything is written.

        Raises:
            ConfigError: Something is: writing would change files that are not the run's.
        """
        for path in self.path.rglob("*"):
            if path.is_symlink():
                raise ConfigError(
                    f"{path}: is a link to {os.readlink(path)}, and a run is written to its own "
                    "folder only; replace the link by what it points to"
                )

    def require_new(self) -> None:
        """Check that a run can begin here.

        Raises:
            ConfigError: Something is there already.
        """
        if self.path.exists() and not (self.path.is_dir() and self.holds_nothing()):
            resume = "Continue it with --resume or choose" * self.config_file.is_file()
            raise ConfigError(
                f"{self.path}: exists and is not empty; nothing was overwritten. "
                f"{resume or 'Choose'} another --run-dir."
            )

    def holds_nothing(self) -> bool:
        """Tell whether there are no files but those of a creation that was not finished."""
        begun = {self.config_file.name, self.versions_file.name}
        return not self.config_file.exists() and all(
            file.is_dir() or (file.parent == self.path and intended_name(file) in begun)
            for file in self.path.rglob("*")
        )

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def versions_file(self) -> Path:
        """Packages, commit, machine, seed and command line; see `describe_run`."""
        return self.path / "versions.json"

    @property
    def divergences(self) -> Path:
        """States in which physics blew up, if any did; see `vla_crl.sim.divergence`."""
        return self.path / "divergences"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a training iteration."""
        return self.path / "metrics.jsonl"

    @property
    def training_episodes(self) -> EpisodeFile:
        """One line a training episode that ended, in the order of stage and iteration."""
        return EpisodeFile(self.path / "training_episodes.csv", TRAINING_COLUMNS, 2)

    @property
    def episodes(self) -> EpisodeFile:
        """One line an episode of the evaluations that `matrix_file` counts, in their order."""
        return EpisodeFile(self.path / "episodes.csv", EVALUATION_COLUMNS, 1)

    @property
    def sampled_episodes(self) -> EpisodeFile:
        """Likewise of `sampled_matrix_file`."""
        return EpisodeFile(self.path / "episodes_sampled.csv", EVALUATION_COLUMNS, 1)

    @property
    def state(self) -> Path:
        """Folder of what a killed training goes on from; gone when it is complete."""
        return self.path / "state"

    @property
    def memory(self) -> Path:
        """Folder of what a method keeps of earlier tasks, if that is too large for its state."""
        return self.path / "memory"

    @property
    def matrix_file(self) -> Path:
        """Success matrix of the deterministic policy, long format."""
        return self.path / "matrix.csv"

    @property
    def sampled_matrix_file(self) -> Path:
        """Success matrix of the sampling policy, long format; optional."""
        return self.path / "matrix_sampled.csv"

    @property
    def report_file(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of one checkpoint a stage."""
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        """Folder of mp4 files."""
        return self.path / "videos"

    @property
    def plots(self) -> Path:
        """Folder of png files."""
        return self.path / "plots"

    def checkpoint(self, stage: int) -> Path:
        """Return the folder of the checkpoint after `stage` (0: before training)."""
        return self.checkpoints / f"stage_{stage}"

    def read_config(self) -> dict[str, Any]:
        """Return the resolved config as plain data."""
        return _read_record(ConfigRecord, self.config_file)

    def read_versions(self) -> dict[str, Any]:
        """Return what `describe_run` wrote when the run was created."""
        return _read_record(VersionsRecord, self.versions_file)

    def record_command_time(self, seconds: float) -> None:
        """Write into versions.json how long the whole command took."""
        save_json(self.read_versions() | {"command_s": round(seconds, 1)}, self.versions_file)

    def require_config(self, config: object, policy_weights: str = "") -> None:
        """Check that `config` is the one of this run.

        Args:
            config: As given now; its policy may lie elsewhere than when the run began.
            policy_weights: Fingerprint of that policy, by which it is known.

        Raises:
            ConfigError: It is not; a run is only resumed with the settings it was started with, and
                the message tells the command that did.
        """
        versions = self.read_versions() if self.versions_file.exists() else {}
        given = json.loads(json.dumps(to_mapping(config)))
        changed = differing_settings(self.read_config(), given)
        if began := versions.get("policy_weights"):  # older runs have the policy's name alone
            changed = {key: values for key, values in changed.items() if key not in PLACES}
            if began != policy_weights:
                raise ConfigError(
                    f"{self.versions_file}: the run began with a policy of the weights {began}, "
                    f"but {given['policy']!r} has {policy_weights}; restore it, or start a new run "
                    "with another --run-dir"
                )
        if changed:
            key, (stored, now) = next(iter(changed.items()))
            begun = shlex.join(versions.get("command", []))
            raise ConfigError(
                f"{self.config_file}: {key} is {stored!r} there but {now!r} "
                f"now (keys that differ: {', '.join(changed)}). "
                f"Resume it with the command that began it and --resume ({begun}), or start a new "
                "run with another --run-dir."
            )

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; a number that is not finite becomes null."""
        append(self.metrics_file, _json_line(row))

    def read_metrics(self, needed: Sequence[str] = ("stage", "episodes")) -> list[dict[str, Any]]:
        """Return all rows of metrics.jsonl; a last line cut off by a kill is left out.

        Raises:
            ConfigError: A finished line is not a JSON object with the keys that are needed.
        """
        if not self.metrics_file.exists():
            return []
        rows: list[dict[str, Any]] = []
        whole, _, _ = read_text(self.metrics_file, MAX_TABLE_BYTES).rpartition("\n")
        for where, row in parse_lines(whole, self.metrics_file):
            if missing := [key for key in needed if key not in row]:
                raise ConfigError(f"{where}: no '{missing[0]}'")
            rows.append(as_record(MetricsRow, row, where))
        return rows

    def require_rows(self, stage: int, iteration: int, episodes: int) -> None:
        """Check that metrics.jsonl and training_episodes.csv hold a stage up to an iteration.

        Args:
            stage: Number.
            iteration: The last.
            episodes: How many have ended until then.

        Raises:
            ConfigError: Rows are missing.
        """
        rows = self.read_metrics(("stage", "iteration"))
        places = {(row["stage"], row["iteration"]) for row in rows}
        for number in range(1, iteration + 1):
            if (stage, number) not in places:
                raise ConfigError(
                    f"{self.metrics_file}: lacks iteration {number} of stage {stage}, which "
                    f"{self.state} goes on from; restore the file, or remove {self.state}: the "
                    "stage then begins again"
                )
        ended = self.training_episodes.places()
        found = sum((stage, 0) < place <= (stage, iteration) for place in ended)
        if found != episodes:
            raise ConfigError(
                f"{self.training_episodes.path}: has {found} episodes of stage {stage} up to "
                f"iteration {iteration}, but {self.state} goes on after {episodes}; restore the "
                f"file, or remove {self.state}: the stage then begins again"
            )

    def keep_until(self, stage: int, iteration: float) -> None:
        """Drop what a resumed run will write again to metrics.jsonl and training_episodes.csv.

        Args:
            stage: The last of which rows stay.
            iteration: The last in that stage.
        """
        last, rows = (stage, iteration), self.read_metrics(("stage", "iteration"))
        kept = [row for row in rows if (row["stage"], row["iteration"]) <= last]
        self.training_episodes.keep_until(*last)
        write_atomically(self.metrics_file, "".join(map(_json_line, kept)))


def describe_run(seed: int, command: Sequence[str]) -> dict[str, Any]:
    """Return all that somebody needs to repeat a run besides its config."""
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "vla_crl": __version__,
        "git": git_state(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_model": cpu_model(),
        "num_cores": num_cores(),
        "seed": seed,
        "command": list(command),
        "executable": sys.executable,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Return commit and whether files differ from it; None outside of a git checkout.

    Args:
        checkout: The folder that would hold `.git`.
    """
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(checkout, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        # No git program, or a checkout without a commit: the run is still worth keeping.
        return None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _read_record(record_class: type[Any], path: Path) -> dict[str, Any]:
    return as_record(record_class, read_object(path), str(path))


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps({key: _finite(value) for key, value in row.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
