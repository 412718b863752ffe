"""What a run directory holds, read for a report: complete or still growing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_crl.config import differing_settings
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.errors import ConfigError
from vla_crl.rollout.fingerprint import PACKAGES
from vla_crl.runs.directory import RunDirectory
from vla_crl.runs.sources import SourceRecord, source_records

WITHOUT_EFFECT = (
    "compute.num_torch_threads",
    "compute.num_sim_threads",
    "video_episodes",
    "loggers",
)
"""Settings in which runs of one experiment may differ, besides the seed."""


@dataclass(frozen=True)
class RunRecord:
    """The files of a run as data.

    Attributes:
        run: Where they were read.
        config: The resolved config.
        versions: Packages, commit and machine; empty if the file is missing.
        iterations: Rows of metrics.jsonl. In them `episodes` counts those of the row's stage so
            far and `wall_s` the seconds since training began, earlier sessions included.
        matrix: Success of the deterministic policy; None before stage 0 is evaluated.
        sampled_matrix: Success of the sampling policy, where that was evaluated too.
        videos: The mp4 files by name.
    """

    run: RunDirectory
    config: dict[str, Any]
    versions: dict[str, Any]
    iterations: list[dict[str, Any]]
    matrix: SuccessMatrix | None
    sampled_matrix: SuccessMatrix | None
    videos: tuple[Path, ...]

    @classmethod
    def read(cls, run_path: str | Path) -> "RunRecord":
        """Read a run directory; only its config.json must be there.

        Raises:
            ConfigError: Not a run directory, or a file in it is damaged.
        """
        run = RunDirectory.open(Path(run_path))
        config = run.read_config()
        rounds = config.get("rounds", 1)
        return cls(
            run=run,
            config=config,
            versions=run.read_versions() if run.versions_file.exists() else {},
            iterations=run.read_metrics(),
            matrix=_read_matrix(run.matrix_file, rounds),
            sampled_matrix=_read_matrix(run.sampled_matrix_file, rounds),
            videos=tuple(sorted(run.videos.glob("*.mp4"))),
        )

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.run.path.resolve().name

    @property
    def stages(self) -> dict[int, list[dict[str, Any]]]:
        """The training iterations of every stage begun."""
        stages: dict[int, list[dict[str, Any]]] = {}
        for row in self.iterations:
            stages.setdefault(row["stage"], []).append(row)
        return stages

    @property
    def num_episodes(self) -> int:
        """Training episodes of all stages so far."""
        return sum(max(row["episodes"] for row in rows) for rows in self.stages.values())

    @property
    def wall_s(self) -> float | None:
        """Seconds of training, None before the first iteration ended."""
        return max((row["wall_s"] for row in self.iterations if row.get("wall_s")), default=None)

    @property
    def made(self) -> dict[str, Any]:
        """What the run's numbers depend on, beside its settings."""
        packages = self.versions.get("packages", {})
        return {
            **self.versions.get("conditions", {}),
            **{name: packages[name] for name in PACKAGES if name in packages},
            "vla_crl": self.versions.get("vla_crl"),
            "commit": (self.versions.get("git") or {}).get("commit"),
            "hardware": self.versions.get("cpu_model"),
            "own sources": [record.fingerprint for record in self.sources],
        }

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What of the user's own the run was made with, and what replaced it on the way."""
        return source_records(self.versions, str(self.run.versions_file))

    def differing_settings(self, other: "RunRecord") -> dict[str, tuple[Any, Any]]:
        """Return the settings of the two runs that differ, but for seed and `WITHOUT_EFFECT`."""
        differing = differing_settings(self.config, other.config)
        return {k: v for k, v in differing.items() if k not in ("seed", *WITHOUT_EFFECT)}


def run_names(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return names that tell runs apart: of their folders, with those above where they are equal.

    Raises:
        ConfigError: One is there twice.
    """
    paths = [record.run.path.resolve() for record in records]
    for record, path in zip(records, paths, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"{record.run.path}: is named twice; name each run once")
    depth = 1
    while len(names := {"/".join(path.parts[-depth:]): None for path in paths}) < len(paths):
        depth += 1
    return tuple(names)


def _read_matrix(path: Path, rounds: int) -> SuccessMatrix | None:
    return SuccessMatrix.read(path, rounds=rounds) if path.exists() else None
