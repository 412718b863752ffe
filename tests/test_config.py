import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, MaxLen, MultipleOf

from vla_crl.config import (
    Chosen,
    Fraction,
    Names,
    Settings,
    as_record,
    differing_settings,
    from_mapping,
    load_toml,
    read_toml,
    save_json,
    to_mapping,
)
from vla_crl.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    """Step size."""
    num_epochs: int = 4
    target_kl: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected 0 < ... < 1")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    task: str
    num_episodes: int = 8


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    suite: str
    method: Literal["sequential", "replay"] = "sequential"
    insulation: Literal["full", "none"] | float = "full"
    size: tuple[int, int] = (64, 64)
    stages: tuple[StageConfig, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    record: bool = True
    checkpoint: Path | None = None


FULL = {
    "suite": "tabletop",
    "method": "replay",
    "insulation": 0.5,
    "size": [32, 48],
    "stages": [{"task": "a"}, {"task": "b", "num_episodes": 2}],
    "weights": {"flow": 1, "value": 0.5},
    "optimizer": {"learning_rate": 0.01, "target_kl": 0.02},
    "record": False,
    "checkpoint": "base.safetensors",
}


def build(**changes: Any) -> RunConfig:
    return from_mapping(RunConfig, {"suite": "tabletop"} | changes, "run.toml")


def test_every_kind_of_field_is_read() -> None:
    assert from_mapping(RunConfig, FULL, "run.toml") == RunConfig(
        suite="tabletop",
        method="replay",
        insulation=0.5,
        size=(32, 48),
        stages=(StageConfig(task="a"), StageConfig(task="b", num_episodes=2)),
        weights={"flow": 1.0, "value": 0.5},
        optimizer=OptimizerConfig(learning_rate=0.01, target_kl=0.02),
        record=False,
        checkpoint=Path("base.safetensors"),
    )


def test_a_toml_file_names_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('suite = "tabletop"\n[optimizer]\nlearning_rate = 1e-4\n')
    expected = RunConfig(suite="tabletop", optimizer=OptimizerConfig(learning_rate=1e-4))
    assert load_toml(RunConfig, path) == expected


def test_a_config_survives_json(tmp_path: Path) -> None:
    config = build(stages=[{"task": "a"}], optimizer={"target_kl": 0.1})
    save_json(config, tmp_path / "config.json")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert from_mapping(RunConfig, stored, "config.json") == config


def test_to_mapping_is_plain_data() -> None:
    assert to_mapping(OptimizerConfig()) == {
        "learning_rate": 1e-3,
        "num_epochs": 4,
        "target_kl": None,
    }


def test_none_in_a_file_switches_an_optional_setting_off() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Limits:
        target_kl: float | None = 0.1
        name: str | None = "a"

    assert from_mapping(Limits, {"target_kl": "None"}, "x") == Limits(target_kl=None)
    assert from_mapping(Limits, {"target_kl": None}, "x") == Limits(target_kl=None)
    assert from_mapping(Limits, {"name": "None"}, "x") == Limits(name="None")


def test_a_whole_number_is_taken_as_a_float() -> None:
    rate = from_mapping(OptimizerConfig, {"target_kl": 1}, "x").target_kl
    assert rate == 1.0
    assert type(rate) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methd": "replay"},
            r"^run.toml: unknown key 'methd' in RunConfig. Did you mean 'method'",
        ),
        ({"zzz": 1}, r"^run.toml: unknown key 'zzz' in RunConfig. Known: suite, method"),
        (
            {"optimizer": {"learning_rat": 1e-3}},
            r"^run.toml:optimizer: unknown key 'learning_rat' in OptimizerConfig. Did you mean 'le",
        ),
        ({"suite": 3}, r"^run.toml: suite = 3 \(int\), expected str"),
        ({"optimizer": {"num_epochs": True}}, r"num_epochs = True \(bool\), expected int"),
        ({"optimizer": {"num_epochs": 2.0}}, r"num_epochs = 2.0 \(float\), expected int"),
        ({"optimizer": {"learning_rate": True}}, r"learning_rate = True \(bool\), expected float"),
        ({"optimizer": {"learning_rate": "1e-4"}}, r"learning_rate = '1e-4' \(str\), expected flo"),
        ({"optimizer": {"target_kl": "off"}}, r"^run.toml:optimizer: target_kl = 'off' \(str\), "),
        ({"optimizer": 3}, r"optimizer = 3 \(int\), expected OptimizerConfig"),
        ({"record": 1}, r"record = 1 \(int\), expected bool"),
        ({"record": None}, r"record = None \(NoneType\), expected bool"),
        ({"size": [64]}, r"^run.toml: size has 1 entries, expected 2"),
        ({"size": [64, "a"]}, r"size\[1\] = 'a' \(str\), expected int"),
        ({"size": 64}, r"size = 64 \(int\), expected a list of int, int$"),
        ({"stages": 1}, r"stages = 1 \(int\), expected a list of StageConfig$"),
        ({"weights": 1}, r"weights = 1 \(int\), expected a table of float$"),
        ({"weights": {"flow": "a"}}, r"weights.flow = 'a' \(str\), expected float"),
        (
            {"method": "replya"},
            r"method = 'replya', expected 'sequential' or 'replay'. Did you mean 'replay'\?",
        ),
        ({"method": 3}, r"method = 3 \(int\), expected 'sequential' or 'replay'"),
        ({"insulation": "ful"}, r"insulation = 'ful' \(str\), expected 'full' or 'none' \| float"),
        ({"stages": [{}]}, r"^run.toml:stages\[0\]: key 'task' of StageConfig is missing"),
        (
            {"optimizer": {"learning_rate": 3.0}},
            r"^run.toml:optimizer: learning_rate is 3.0, expected 0 < ... < 1",
        ),
    ],
)
def test_a_wrong_entry_is_an_error_that_says_where(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


def test_a_missing_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^run.toml: key 'suite' of RunConfig is missing"):
        from_mapping(RunConfig, {}, "run.toml")


def test_a_nested_error_names_file_section_and_subsection() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Outer:
        run: RunConfig

    message = r"^a.toml:run.optimizer: unknown key 'x'"
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, {"run": {"suite": "s", "optimizer": {"x": 1}}}, "a.toml")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.toml: cannot be read \(No such file"):
        read_toml(tmp_path / "nothing.toml")


def test_a_broken_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("a = 1\nb =\n")
    with pytest.raises(ConfigError, match=r"broken.toml: not a TOML file: .*line 2"):
        read_toml(path)


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save_json({"x": float("nan")}, tmp_path / "a.json")


def test_settings_that_differ_are_told_by_their_whole_key() -> None:
    one = {"seed": 0, "learner": {"epochs": 8, "clip": {"low": 0.2}}, "old": None}
    other = {"seed": 1, "learner": {"epochs": 8, "clip": {"low": 0.3}}, "new": 2}
    expected = {"new": (None, 2), "learner.clip.low": (0.2, 0.3), "seed": (0, 1)}
    assert differing_settings(one, other) == expected
    assert [*differing_settings(one, other)] == sorted(expected)
    assert differing_settings(one, one) == {}


@dataclass(frozen=True, kw_only=True)
class Declared(Settings):
    rank: Annotated[int, Interval(ge=1, le=64)] = 8
    rate: Annotated[float, Interval(gt=0, lt=1)] | None = None
    width: Annotated[int, MultipleOf(2)] = 4
    insulation: Literal["full"] | Fraction = "full"
    names: Names = ("a",)
    sizes: Annotated[tuple[Annotated[int, Interval(ge=0)], ...], MaxLen(2)] = ()
    start: dict[str, Fraction] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank = 0, expected at least 1 and at most 64$"),
        ({"rank": 65}, "rank = 65, expected at least 1 and at most 64$"),
        ({"rank": "8"}, r"rank = '8' \(str\), expected int$"),
        ({"rate": 1.0}, "rate = 1.0, expected more than 0 and less than 1$"),
        ({"rate": float("nan")}, "rate = nan, expected a finite number$"),
        ({"width": 5}, "width = 5, expected a multiple of 2$"),
        (
            {"insulation": 2.0},
            r"insulation = 2.0 \(float\), expected 'full' \| float at least 0 and at",
        ),
        ({"names": ()}, "names has 0 entries, expected at least 1$"),
        ({"names": ("a\0",)}, r"names\[0\] = 'a.x00', expected a text without NUL$"),
        ({"sizes": (1, -1)}, r"sizes\[1\] = -1, expected at least 0$"),
        ({"sizes": (1, 1, 1)}, "sizes has 3 entries, expected at most 2$"),
        ({"start": {"a": 2.0}}, "start.a = 2.0, expected at least 0 and at most 1$"),
        ({"rest": {"a": [float("inf")]}}, r"rest.a\[0\] = inf, expected a finite number$"),
        ({"rest": {"a": 2**64}}, "rest.a = 18446744073709551616, expected a number of 64 bits$"),
    ],
)
def test_a_range_is_kept_wherever_a_value_comes_from(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^f: {message}"):
        from_mapping(Declared, changes, "f")
    with pytest.raises(ConfigError, match=f"^Declared: {message}"):
        Declared(**changes)


@dataclass(frozen=True)
class NotedConfig(Settings):
    rate: Annotated[float, "of the optimizer", Interval(gt=0)] = 1.0
    name: Annotated[str, "plain"] = "adam"


def test_notes_for_others_beside_a_type_are_no_range() -> None:
    assert from_mapping(NotedConfig, {"rate": 2}, "note.toml") == NotedConfig(rate=2.0)
    with pytest.raises(ConfigError, match=r"note.toml: rate = 0.0, expected more than 0$"):
        from_mapping(NotedConfig, {"rate": 0}, "note.toml")
    with pytest.raises(ConfigError, match=r"name = 3 \(int\), expected str$"):
        from_mapping(NotedConfig, {"name": 3}, "note.toml")


def test_a_record_may_say_more_than_is_declared_but_nothing_else() -> None:
    given = {"rank": 1, "rate": "None", "more": None}
    assert as_record(Declared, given, "f") == {"rank": 1, "rate": None, "more": None}
    nested = as_record(RunConfig, {"suite": "s", "optimizer": {"target_kl": 1}}, "f")["optimizer"]
    assert nested == {"learning_rate": 1e-3, "num_epochs": 4, "target_kl": 1.0}
    with pytest.raises(ConfigError, match="^f: rank = 0, expected"):
        as_record(Declared, {"rank": 0, "more": None}, "f")
    with pytest.raises(ConfigError, match="^f: key 'suite' of RunConfig is missing"):
        as_record(RunConfig, {}, "f")
    with pytest.raises(ConfigError, match="^f: got 3, expected settings of Declared"):
        as_record(Declared, 3, "f")  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Adam(Settings):
    kind: str = "adam"
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Annealing(Settings):
    kind: str = "annealing"
    steps: int


class Optimizers:
    """Stands for classes with settings of their own."""

    def __init__(self, config_class: type[Settings]) -> None:
        self.config_class = config_class


OPTIMIZERS = {"adam": Optimizers(Adam), "annealing": Optimizers(Annealing)}


def find_optimizer(name: str) -> Optimizers:
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", "optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


@dataclass(frozen=True, kw_only=True)
class Choosing(Settings):
    optimizer: Annotated[Settings, Chosen("optimizer", find_optimizer)] = field(
        default_factory=Adam
    )


def test_a_name_chooses_of_which_class_settings_are() -> None:
    config = from_mapping(Choosing, {"optimizer": {"kind": "annealing", "steps": 3}}, "f")
    assert config.optimizer == Annealing(steps=3)
    assert from_mapping(Choosing, to_mapping(config), "f") == config
    assert from_mapping(Choosing, {"optimizer": {"rate": 0.5}}, "f").optimizer == Adam(rate=0.5)
    assert Choosing().optimizer == Adam()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"kind": "adan"}, "f:optimizer: optimizer: unknown optimizer 'adan'. Did you mean 'adam'"),
        ({"kind": "annealing"}, "f:optimizer: key 'steps' of Annealing is missing"),
        (
            {"kind": "annealing", "steps": 1, "rate": 0.1},
            "f:optimizer: unknown key 'rate' in Annealing",
        ),
        ({"kind": 3}, "f: optimizer.kind = 3, expected the name of a optimizer"),
        ("adam", r"f: optimizer = 'adam' \(str\), expected settings of a optimizer: a table with"),
    ],
)
def test_what_cannot_be_chosen_is_told(optimizer: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        from_mapping(Choosing, {"optimizer": optimizer}, "f")


def test_settings_have_to_be_those_of_their_kind() -> None:
    with pytest.raises(ConfigError, match=r"optimizer = Adam\(kind='annealing', rate=0.001\)"):
        Choosing(optimizer=Adam(kind="annealing"))
