"""Recipes that build on one another, and the flags of a method's own settings."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_crl import catalog
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.cli import main as cli
from vla_crl.continual.recipe import TrainConfig
from vla_crl.errors import ConfigError
from vla_crl.recipes import RECIPE_CLASSES, load_recipe, read_recipe

Write = Callable[..., Path]
TRAIN = 'suite = "s"\npolicy = "p"\nepisodes_per_task = 8\n'
METHOD = '''
from dataclasses import dataclass
from pathlib import Path
from vla_crl.continual.method import ContinualMethod
from vla_crl.errors import ConfigError

@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Settings of `Anchor`."""

    strength: float = 1.0
    """How strongly the weights are held, > 0."""
    kept: tuple[str, ...] = ("a", "b")
    start: Path | None = None

    def __post_init__(self):
        if self.strength <= 0:
            raise ConfigError(f"strength is {self.strength}, expected > 0")
        if self.strength > 1e3:
            raise ValueError("strength is too large")


class Anchor(ContinualMethod):
    """Hold on."""

    config_class = AnchorConfig


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    samples: int
    """Without a default."""
    decay: float = 0.9


class Fisher(ContinualMethod):
    config_class = FisherConfig


class Settled(ContinualMethod):
    config_class = dict


@dataclass(frozen=True)
class OddConfig:
    odd: frozenset = frozenset()


class Odd(ContinualMethod):
    config_class = OddConfig
'''


@pytest.fixture
def write(own_folder: Path, write_recipe: Write) -> Write:
    """Return a function that writes a recipe into a folder of one's own, which has a method too."""
    (own_folder / "anchoring.py").write_text(METHOD)
    return write_recipe


def test_a_recipe_builds_on_another_whose_settings_it_overrides(write: Write) -> None:
    base = write("base", TRAIN + 'tasks = ["a"]\n[learner]\nnum_epochs = 2\nminibatch_size = 8\n')
    long = write("long", 'extends = "base"\nepisodes_per_task = 80\n[learner]\nnum_epochs = 3\n')
    recipe = read_recipe("long")
    assert recipe.files == (long, base)
    assert recipe.settings == {
        "suite": "s",
        "policy": "p",
        "tasks": ["a"],
        "episodes_per_task": 80,
        "learner": {"num_epochs": 3, "minibatch_size": 8},
    }
    assert recipe.origins == {
        ("suite",): base,
        ("policy",): base,
        ("tasks",): base,
        ("episodes_per_task",): long,
        ("learner", "num_epochs"): long,
        ("learner", "minibatch_size"): base,
    }
    config = load_recipe("train", "long", ["--learner.minibatch-size", "4"])
    assert (config.episodes_per_task, config.learner.num_epochs, config.learner.minibatch_size) == (
        80,
        3,
        4,
    )


def test_a_list_and_a_section_that_is_none_any_more_replace_what_was(write: Write) -> None:
    write("base", TRAIN + 'tasks = ["a", "b"]\n')
    write("other", 'extends = "base"\ntasks = "None"\n')
    assert load_recipe("train", "other").tasks is None
    write("flat", 'extends = "base"\ntasks = ["c"]\nlearner = 3\n')
    with pytest.raises(ConfigError, match="learner = 3 .int., expected settings of a learner"):
        load_recipe("train", "flat")


def test_a_path_leads_from_the_folder_of_the_recipe(write: Write, tmp_path: Path) -> None:
    write("base", TRAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.toml").write_text('extends = "b.toml"\nseed = 1\n')
    (tmp_path / "mine/b.toml").write_text('extends = "../own/experiments/base.toml"\nseed = 2\n')
    recipe = read_recipe(str(tmp_path / "mine/a.toml"))
    assert (recipe.settings["seed"], recipe.settings["suite"]) == (1, "s")
    assert [file.name for file in recipe.files] == ["a.toml", "b.toml", "base.toml"]


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (
            {"a": 'extends = "b"\n', "b": 'extends = "a"\n'},
            r"a.toml -> .*b.toml -> .*a.toml: a recipe cannot build on itself",
        ),
        ({"a": 'extends = "a"\n'}, r"a.toml -> .*a.toml: a recipe cannot build on itself"),
        (
            {"a": 'extends = "b"\n', "b": 'extends = "demoo"\n'},
            "a.toml -> .*b.toml: extends = 'demoo': catalog: unknown recipe 'demoo'. Did you mean "
            "'demo'",
        ),
        (
            {"a": 'extends = "./none.toml"\n'},
            "a.toml: extends = './none.toml': .*none.toml: no such recipe, looked for at /",
        ),
        ({"a": "extends = 3\n"}, "a.toml: extends = 3, expected the name of a recipe"),
        (
            {"a": 'extends = "b"\n', "b": TRAIN + "sed = 3\n"},
            "a.toml -> .*b.toml: unknown key 'sed' in TrainConfig. Did you mean 'seed'",
        ),
        ({"a": 'extends = "b"\n', "b": "= 3\n"}, "b.toml: not a TOML file"),
    ],
)
def test_what_a_recipe_cannot_build_on_is_named_with_the_chain(
    write: Write, recipes: dict[str, str], message: str
) -> None:
    for name, text in recipes.items():
        write(name, text)
    with pytest.raises(ConfigError, match=message):
        load_recipe("train", "a")


def test_a_file_beside_a_recipe_is_extended_by_its_path(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "nothing"\n')
    (tmp_path / "nothing.toml").touch()
    message = "unknown recipe 'nothing'.* Beside it lies nothing.toml: name it so."
    with pytest.raises(ConfigError, match=message):
        read_recipe(str(tmp_path / "a.toml"))


def test_a_recipe_that_builds_on_one_of_another_command_is_told(write: Write) -> None:
    write("base", TRAIN)
    path = write("more", 'extends = "base"\n')
    message = f"{path}: is a recipe of 'vla-crl train', not of 'vla-crl pretrain'"
    with pytest.raises(ConfigError, match=message):
        load_recipe("pretrain", "more")


def test_what_is_shown_of_a_recipe_is_a_recipe(write: Write) -> None:
    text = TRAIN + (
        'tasks = ["a \\"b\\"", "c\\\\d", "\\u007f\\u2028é"]\nrounds = 2\n'
        '[method_settings]\n"odd key" = [1.5, 1e-7]\nflag = true\ntable = [{ a = 1 }, {}]\n'
        "empty = {}\n"
    )
    write("base", text)
    write("more", 'extends = "base"\nseed = 3\n')
    shown = read_recipe("more").as_toml()
    assert tomllib.loads(shown) == tomllib.loads(text) | {"seed": 3}
    assert "seed = 3  # more.toml\n" in shown
    assert "rounds = 2  # base.toml\n" in shown


RESOLVED: dict[str, dict[str, Any]] = {
    "sequential_2k": {"suite": "tabletop_object", "policy": "tiny", "episodes_per_task": 2048},
    "sequential_10k": {"suite": "tabletop_object", "policy": "tiny", "episodes_per_task": 10240},
    "cw10": {"suite": "metaworld_cw10", "policy": "tiny_metaworld", "episodes_per_task": 10240},
    "cw20": {
        **{"suite": "metaworld_cw10", "policy": "tiny_metaworld"},
        **{"episodes_per_task": 10240, "rounds": 2},
    },
    "libero_object": {
        **{"suite": "libero_object@fast", "policy": "tiny_libero", "episodes_per_task": 1024},
        "evaluation": {"num_episodes": 50, "num_sampled_episodes": 0},
    },
    "libero_spatial": {
        **{"suite": "libero_spatial@fast", "policy": "tiny_libero", "episodes_per_task": 1024},
        "evaluation": {"num_episodes": 50, "num_sampled_episodes": 0},
    },
}


@pytest.mark.parametrize("name", RESOLVED)
def test_shipped_recipes_that_build_on_others_say_what_they_said_alone(name: str) -> None:
    assert read_recipe(name).settings == RESOLVED[name]


def test_every_shipped_recipe_is_one_of_a_command() -> None:
    for name in catalog.list_recipes():
        prefix = name.partition("_")[0]
        command = {"pretrain": "pretrain", "sb3": "baseline"}.get(prefix, "train")
        assert type(load_recipe(command, name)).__name__ in RECIPE_CLASSES[command]


def test_settings_of_a_method_are_flags_with_its_types(write: Write) -> None:
    write("base", TRAIN)
    method = ["--method", "anchoring:Anchor"]
    config = load_recipe("train", "base", [*method, "--method-settings.strength", "3"])
    assert type(config) is TrainConfig
    assert config.method == "anchoring:Anchor"
    assert config.method_settings == {"strength": 3.0, "kept": ["a", "b"], "start": None}
    flags = ["--method=anchoring:Anchor", "--seed", "3"]
    flags += ["--method-settings.kept", "x", "--method-settings.start", "a/b"]
    config = load_recipe("train", "base", flags)
    assert config.seed == 3
    assert config.method_settings == {"strength": 1.0, "kept": ["x"], "start": "a/b"}
    assert json.dumps(config.method_settings)


def test_settings_in_a_recipe_are_checked_and_overridden_by_flags(write: Write) -> None:
    text = TRAIN + 'method = "anchoring:Anchor"\n[method_settings]\n'
    path = write("base", text + "strength = 2\n")
    assert load_recipe("train", "base").method_settings["strength"] == 2.0
    flags = ["--method-settings.strength", "4"]
    assert load_recipe("train", "base", flags).method_settings["strength"] == 4.0
    for wrong, message in (
        ("strenght = 2", "unknown key 'strenght' in AnchorConfig. Did you mean 'strength'"),
        ("strength = 'x'", "strength = 'x' .str., expected float"),
        ("strength = -1", "strength is -1.0, expected > 0"),
    ):
        write("base", f"{text}{wrong}\n")
        for flags in ([], ["--seed", "1"]):
            with pytest.raises(ConfigError, match=message) as error:
                load_recipe("train", "base", flags)
            assert "method_settings" in str(error.value)
        with pytest.raises(ConfigError, match=f"{path}:method_settings"):
            load_recipe("train", "base")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method-settings.strength -2", "demo: method_settings: strength is -2.0, expected > 0"),
        (
            "--method-settings.strength 1e4",
            "anchoring.py:2[0-9]: ValueError: strength is too large",
        ),
    ],
)
def test_a_range_of_a_method_is_checked_whoever_raises(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: str, message: str
) -> None:
    path = ["--run-dir", str(tmp_path / "new")]
    command = ["train", "demo", "--method", "anchoring:Anchor", *flags.split(), *path]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method-settings.strenght 3", "Did you mean --method-settings.strength?"),
        ("--method-settings.strength x", "could not convert string to float"),
    ],
)
def test_a_wrong_setting_of_a_method_names_the_nearest_flag(
    write: Write, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    write("base", TRAIN)
    assert cli.main(["train", "base", "--method", "anchoring:Anchor", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("order", [["--method", "anchoring:Anchor", "--help"], None])
def test_help_lists_the_settings_of_the_method(
    write: Write, capsys: pytest.CaptureFixture[str], order: list[str] | None
) -> None:
    write("base", TRAIN)
    flags = order or ["--help", "--method", "anchoring:Anchor"]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", "base", *flags])
    words = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    assert "--method-settings.strength FLOAT" in words
    assert "How strongly the weights are held, > 0. (default: 1.0)" in words
    assert "--learner.learning-rate" in words


def test_settings_of_the_exploration_are_flags_of_the_policys_head(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("base", TRAIN.replace('"p"', '"tiny"') + "[exploration]\nnoise_level = 0.5\n")
    flags = ["--exploration.stochastic-step", "random", "--seed", "1"]
    config = load_recipe("train", "base", flags)
    assert config.exploration == {"noise_level": 0.5, "stochastic_step": "random"}
    assert load_recipe("train", "base", ["--seed", "1"]).exploration == {"noise_level": 0.5}
    with pytest.raises(ConfigError, match="noise_level = 0.0, expected more than 0"):
        load_recipe("train", "base", ["--exploration.noise-level", "0"])
    with pytest.raises(ConfigError, match="--exploration.num-steps"):
        load_recipe("train", "base", ["--exploration.num-steps", "1"])
    with pytest.raises(ConfigError, match="there is no policy 'p'|unknown policy 'p'"):
        load_recipe("train", "base", ["--policy", "p", "--exploration.noise-level", "1"])
    with pytest.raises(SystemExit):
        load_recipe("train", "base", ["--help"])
    told = capsys.readouterr().out
    assert "--exploration.noise-level" in told
    assert "Noise level of the one stochastic step" in told
    assert "--exploration.num-steps" not in told


HEADS_OF_POLICIES = {
    "tiny": ("noise_level", 0.5),
    "tiny_noise": ("max_std", 0.7),
    "tiny_gaussian": ("std", 0.2),
    "tiny_parallel": ("temperature", 0.9),
    "tiny_tokens": ("temperature", 0.9),
}
"""A setting of the head of each shipped kind that says how it samples."""
OWN_HEAD_AND_LEARNER = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from vla_crl.algos.grpo import GRPO, GRPOConfig
from vla_crl.models.heads.gaussian import GaussianConfig, GaussianHead


@dataclass(frozen=True, kw_only=True)
class LaxConfig(GRPOConfig):
    kind: str = "lax:Lax"
    slack: Annotated[float, Interval(gt=0)]
    """Has no default."""


class Lax(GRPO):
    """Forgive."""

    config_class = LaxConfig


@dataclass(frozen=True, kw_only=True)
class WideConfig(GaussianConfig):
    kind: str = "lax:Wide"
    width: Annotated[float, Interval(gt=0), "of what it draws"] = 1.0


class Wide(GaussianHead):
    """Draw widely."""

    config_class = WideConfig
    exploration: ClassVar[tuple[str, ...]] = ("std", "width")
'''


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *((kind, "tiny") for kind in [*LEARNERS, "lax:Lax"]),
        *(("grpo", policy) for policy in [*HEADS_OF_POLICIES, "wide"] if policy != "tiny"),
    ],
)
def test_flags_of_learner_head_and_method_work_together(
    write: Write, own_folder: Path, kind: str, policy: str
) -> None:
    (own_folder / "lax.py").write_text(OWN_HEAD_AND_LEARNER)
    (own_folder / "policies").mkdir()
    wide = 'vocabulary = ["open"]\n[head]\nkind = "lax:Wide"\n'
    (own_folder / "policies/wide.toml").write_text(wide)
    write("base", TRAIN)
    name, value = {**HEADS_OF_POLICIES, "wide": ("width", 3.0)}[policy]
    flags = ["--policy", policy, f"--exploration.{name.replace('_', '-')}", str(value)]
    flags += ["--learner.kind", kind, "--learner.minibatch-size", "4", "--method", "ewc"]
    flags += ["--method-settings.strength", "3"]
    flags += {"lax:Lax": ["--learner.slack=2"], "distillation": ["--learner.teacher=base"]}.get(
        kind, []
    )
    config = load_recipe("train", "base", flags)
    assert (type(config.learner), config.learner.kind) == (find_learner(kind).config_class, kind)
    assert config.learner.minibatch_size == 4
    assert config.exploration == {name: value}
    assert config.method_settings["strength"] == 3.0
    with pytest.raises(ConfigError, match=f"train base.*exploration: {name} = -1"):
        load_recipe("train", "base", [*flags, f"--exploration.{name.replace('_', '-')}", "-1"])
    with pytest.raises(ConfigError, match="train base.*minibatch_size = 0, expected at l"):
        load_recipe("train", "base", [*flags, "--learner.minibatch-size", "0"])
    with pytest.raises(ConfigError, match="train base: .*seed = -1"):
        load_recipe("train", "base", [*flags, "--seed", "-1"])


@pytest.mark.parametrize("recipe", ["demo", "cw20", "pretrain_tiny", "pretrain_libero"])
def test_every_setting_is_a_flag(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    def flags(config: Any, section: str = "") -> list[str]:
        found: list[str] = []
        for setting in dataclasses.fields(config):
            name, value = f"{section}{setting.name}", getattr(config, setting.name)
            is_section = dataclasses.is_dataclass(value)
            found += flags(value, f"{name}.") if is_section else [name.replace("_", "-")]
        return found

    command = "pretrain" if recipe.startswith("pretrain") else "train"
    settings = flags(load_recipe(command, recipe))
    with pytest.raises(SystemExit):
        load_recipe(command, recipe, ["--help"])
    listed = re.findall(r"--([\w.-]+)", capsys.readouterr().out)
    missing = {name for name in settings if not any(flag.startswith(name) for flag in listed)}
    assert missing == ({"method-settings"} if command == "train" else set())  # has none
    assert len(settings) > 30


def test_a_setting_without_a_default_is_asked_for(write: Write) -> None:
    write("base", TRAIN + 'method = "anchoring:Fisher"\n')
    with pytest.raises(ConfigError, match="method_settings: key 'samples' of FisherConfig is miss"):
        load_recipe("train", "base")
    with pytest.raises(ConfigError, match="Missing .*--method-settings.samples INT"):
        load_recipe("train", "base", ["--seed", "3"])
    config = load_recipe("train", "base", ["--method-settings.samples", "8"])
    assert config.method_settings == {"samples": 8, "decay": 0.9}


def test_settings_are_those_of_their_method_alone(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("base", TRAIN + 'method = "anchoring:Anchor"\n[method_settings]\nstrength = 2\n')
    assert load_recipe("train", "base", ["--method", "sequential"]).method_settings == {}
    assert caplog.messages == [
        "vla-crl train base: method 'sequential' in the place of 'anchoring:Anchor': strength = 2 "
        "is not taken over"
    ]
    write(
        "other", 'extends = "base"\nmethod = "anchoring:Fisher"\n[method_settings]\nsamples = 2\n'
    )
    assert load_recipe("train", "other").method_settings == {"samples": 2, "decay": 0.9}
    told = "method 'anchoring:Fisher' in the place of 'anchoring:Anchor': strength = 2 is not taken"
    assert told in caplog.messages[1]
    write("same", 'extends = "base"\n[method_settings]\nkept = []\n')
    settings = {"strength": 2.0, "kept": [], "start": None}
    assert load_recipe("train", "same").method_settings == settings


def test_settings_of_composed_methods_are_sections_and_flags_of_their_names(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        "both",
        TRAIN + 'method = "ewc+anchoring:Anchor"\n'
        '[method_settings.ewc]\nstrength = 2\n[method_settings.Anchor]\nkept = ["a"]\n',
    )
    settings = load_recipe("train", "both").method_settings
    assert (settings["ewc"]["strength"], settings["Anchor"]["kept"]) == (2.0, ["a"])
    flags = ["--method-settings.ewc.strength", "3", "--method-settings.Anchor.strength", "5"]
    settings = load_recipe("train", "both", flags).method_settings
    assert (settings["ewc"]["strength"], settings["Anchor"]["strength"]) == (3.0, 5.0)
    assert settings["Anchor"]["kept"] == ["a"]
    with pytest.raises(ConfigError, match="method-settings.strength.*method-settings.*strength"):
        load_recipe("train", "both", ["--method-settings.strength", "3"])
    with pytest.raises(SystemExit):
        load_recipe("train", "both", ["--method", "ewc+own_replay", "--help"])
    assert "--method-settings.own-replay.coefficient FLOAT" in capsys.readouterr().out
    one = load_recipe("train", "both", ["--method", "ewc", "--method-settings.strength", "3"])
    assert one.method_settings["strength"] == 3.0


def test_a_method_whose_settings_cannot_be_kept_is_told(write: Write) -> None:
    write("base", TRAIN)
    with pytest.raises(
        ConfigError, match="a setting is of the type frozenset, which a file cannot"
    ):
        load_recipe("train", "base", ["--method", "anchoring:Odd"])
    with pytest.raises(ConfigError, match="config_class is <class 'dict'>, expected a dataclass"):
        load_recipe("train", "base", ["--method", "anchoring:Settled"])


def test_a_section_is_switched_off_and_on_by_flags() -> None:
    for flags in (
        ["--lora", "None"],
        ["--lora=None", "--seed", "3"],
        ["--seed", "3", "--lora", "None"],
    ):
        config = load_recipe("train", "sequential_goal", flags)
        assert config.lora is None
        assert config.seed == 3 * ("--seed" in flags)
    on = load_recipe("train", "full_finetuning", ["--lora.rank", "4", "--lora.alpha", "8"])
    assert (on.lora.rank, on.lora.alpha) == (4, 8)
    assert load_recipe("train", "full_finetuning", ["--seed", "3"]).lora is None
    with pytest.raises(ConfigError, match="train from_scratch: train is .*, but adapters are trai"):
        load_recipe("train", "from_scratch", ["--lora.rank", "4"])
    with pytest.raises(ConfigError, match="Unrecognized options: --lora.rank"):
        load_recipe("train", "sequential_goal", ["--lora", "None", "--lora.rank", "4"])


def test_recipes_of_a_command_without_methods_take_flags(write: Write) -> None:
    config = load_recipe("pretrain", "pretrain_tiny", ["--seed", "3", "--num-episodes", "5"])
    assert (config.seed, config.num_episodes) == (3, 5)
