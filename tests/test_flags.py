from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import Interval

from vla_crl.config import Chosen, Settings
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.flags import flag_value, override


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    kind: str = "adam"
    learning_rate: Annotated[float, Interval(gt=0, lt=1)] = 1e-3
    """Step size."""
    target_kl: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Settings):
    kind: str = "schedule"
    steps: Annotated[int, Interval(ge=1)]
    """How many."""


class Adam:
    config_class = OptimizerConfig


class Schedule:
    config_class = ScheduleConfig


KINDS = {"adam": Adam, "schedule": Schedule}


def find(name: str) -> type:
    if name not in KINDS:
        raise unknown_name("optimizer", "kind", name, KINDS)
    return KINDS[name]


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    suite: str = "tabletop"
    method: Literal["sequential", "replay"] = "sequential"
    insulation: Literal["full", "none"] | float = "full"
    size: tuple[int, int] = (64, 64)
    optimizer: Annotated[Settings, Chosen("optimizer", find)] = field(
        default_factory=OptimizerConfig
    )
    record: bool = True


def test_flags_override_the_file() -> None:
    flags = ["--optimizer.learning-rate", "1e-4", "--optimizer.target-kl", "0.1", "--no-record"]
    config = override(RunConfig(), [*flags, "--insulation", "0.5", "--size", "8", "9"], "prog")

    assert config.optimizer == OptimizerConfig(learning_rate=1e-4, target_kl=0.1)
    assert (config.insulation, config.size, config.record) == (0.5, (8, 9), False)


def test_no_flags_leave_the_config_as_it_is() -> None:
    config = RunConfig()
    assert override(config, [], "prog") is config


def test_a_flag_chooses_other_settings_whose_flags_are_there_then() -> None:
    flags = ["--optimizer.kind", "schedule", "--optimizer.steps", "3", "--suite", "other"]
    config = override(RunConfig(), flags, "prog")
    assert config == RunConfig(suite="other", optimizer=ScheduleConfig(steps=3))
    same = override(config, ["--optimizer.kind=schedule", "--optimizer.steps=4"], "prog")
    assert same.optimizer == ScheduleConfig(steps=4)
    back = override(config, ["--optimizer.kind", "adam"], "prog")
    assert back.optimizer == OptimizerConfig()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer.learning-rat", "1"], "--optimizer.learning-rate"),
        (["--optimizer.learning-rate", "fast"], "--optimizer.learning-rate"),
        (["--optimizer.learning-rate", "3"], "expected more than 0 and less than 1"),
        (["--method", "replya"], "replay"),
        (["--optimizer.kind", "schedule"], "--optimizer.steps"),
    ],
)
def test_a_wrong_flag_is_told_in_a_line_with_the_nearest_flag(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        override(RunConfig(), flags, "prog")
    told = str(error.value)
    assert told.startswith("prog: ")
    assert told.endswith(" (see prog --help)")
    assert message in told
    assert "\n" not in told
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer.kind", "adan"], "prog: --optimizer.kind: .*unknown kind 'adan'. Did you me"),
        (
            ["--optimizer.kind", "schedule", "--optimizer.steps", "0"],
            "prog:optimizer: steps = 0, expected at least 1",
        ),
        (
            ["--optimizer.kind=schedule", "--optimizer.steps=1", "--optimizer.learning-rate=0.1"],
            "prog: .*--optimizer.learning-rate",
        ),
    ],
)
def test_what_flags_cannot_choose_is_told(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(), flags, "prog")


def test_help_shows_the_string_under_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        override(RunConfig(), ["--help"], "prog")
    assert exit_info.value.code == 0
    assert "Step size." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        override(RunConfig(), ["--optimizer.kind", "schedule", "--help"], "prog")
    told = capsys.readouterr().out
    assert "How many." in told
    assert "Step size." not in told


def test_a_range_is_kept_in_a_flag() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate = 1.5, expected more than 0"):
        override(RunConfig(), ["--optimizer.learning-rate", "1.5"], "prog")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["--a", "1"], "1"), (["--a=1"], "1"), (["--ab", "1"], None), ([], None)],
)
def test_the_value_of_a_flag_is_what_is_behind_it(arguments: list[str], value: str | None) -> None:
    assert flag_value("--a", arguments) == value
