"""What the files of a run directory say, as far as anything is made of it; they may say more."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval

from vla_crl.config import Count, Seed, Settings

Number = Annotated[int, Interval(ge=0, le=10**12)]
"""Of a stage or an iteration, or how many there were."""


@dataclass(frozen=True, kw_only=True)
class ConfigRecord(Settings):
    """Settings of config.json that a report names; the others are shown as they are."""

    suite: str = ""
    policy: str = ""
    method: str = ""
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 1
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class GitState(Settings):
    """The commit that ran."""

    commit: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class VersionsRecord(Settings):
    """What versions.json says; older runs say less."""

    vla_crl: str = ""
    git: GitState | None = None
    python: str = ""
    platform: str = ""
    cpu_model: str = ""
    num_cores: Count = 1
    seed: Seed = 0
    command: tuple[str, ...] = ()
    packages: dict[str, str] = field(default_factory=dict[str, str])
    conditions: dict[str, Any] = field(default_factory=dict[str, Any])
    policy_weights: str = ""
    command_s: Annotated[float, Interval(ge=0)] | None = None
    """Seconds of the whole command, evaluations and films included; None if it was resumed."""


@dataclass(frozen=True, kw_only=True)
class MetricsRow(Settings):
    """A line of metrics.jsonl; what was not finite is None."""

    stage: Number = 0
    iteration: Number = 0
    episodes: Number = 0
    """Of the stage so far."""
    task: str = ""
    success: float | None = None
    wall_s: float | None = None
    """Since training began."""
    kl: float | None = None
    clip_fraction: float | None = None
    value_loss: float | None = None
    grad_norm: float | None = None
    steps_per_s: float | None = None
