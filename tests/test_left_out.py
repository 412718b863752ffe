"""Settings of a learner or a method in whose place another one is chosen: left out, and told."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_crl.cli import main as cli
from vla_crl.errors import ConfigError
from vla_crl.left_out import LEARNER, METHOD
from vla_crl.recipes import load_recipe

Write = Callable[[str, str], Path]
TRAIN = 'suite = "s"\npolicy = "p"\nepisodes_per_task = 8\n'


def told_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [*caplog.messages]
    caplog.clear()
    return told


def test_settings_of_another_learner_are_not_taken_over_and_it_is_told(
    write_recipe: Write, caplog: pytest.LogCaptureFixture
) -> None:
    section = "[learner]\nlearning_rate = 1e-3\nnum_epochs = 8\nclip_high = 0.1\n"
    base = write_recipe("base", TRAIN + section)
    other = write_recipe("other", 'extends = "base"\n[learner]\nkind = "grpo"\n')
    told = (
        "learner 'grpo' in the place of 'ppo': learning_rate = 0.001 and clip_high = 0.1 are not "
        "taken over; as flags: --learner.learning-rate and --learner.clip-high"
    )
    flags = ["--learner.kind", "grpo"]
    for name, arguments, where in (
        ("base", flags, "vla-crl train base"),
        ("other", [], f"{other} -> {base}"),
        ("other", ["--seed", "1"], f"{other} -> {base}"),
    ):
        config = load_recipe("train", name, arguments)
        assert (config.learner.kind, config.learner.learning_rate) == ("grpo", 5e-4)
        assert told_of(caplog) == [f"{where}: {told}"]  # the epochs are those of GRPO, too
    # Said anew, by flags or by the recipe that chooses.
    load_recipe("train", "base", [*flags, "--learner.learning_rate=2e-4"])
    assert told_of(caplog) == [
        "vla-crl train base: learner 'grpo' in the place of 'ppo': clip_high = 0.1 is not taken "
        "over; as flags: --learner.clip-high"
    ]
    write_recipe("said", other.read_text() + "learning_rate = 2e-4\nclip_high = 0.1\n")
    assert load_recipe("train", "said").learner.learning_rate == 2e-4
    assert told_of(caplog) == []
    # Another one again: of the first there is still nothing, and what it has no flag for is told.
    load_recipe("train", "other", ["--learner.kind", "sft"])
    assert told_of(caplog) == [
        "vla-crl train other: learner 'sft' in the place of 'ppo': learning_rate = 0.001, "
        "num_epochs = 8 and clip_high = 0.1 are not taken over; as flags: --learner.learning-rate "
        "and --learner.num-epochs"
    ]
    write_recipe("plain", TRAIN)
    load_recipe("train", "plain", flags)
    load_recipe("train", "base", ["--learner.kind", "ppo"])
    assert told_of(caplog) == []
    with pytest.raises(ConfigError, match="--learner.kind: .*unknown learner 'grppo'"):
        load_recipe("train", "base", ["--learner.kind", "grppo"])
    assert told_of(caplog) == []


def test_a_recipe_that_names_the_learner_there_is_already_keeps_its_settings(
    write_recipe: Write,
) -> None:
    write_recipe("base", TRAIN + "[learner]\nlearning_rate = 1e-3\n")
    write_recipe("same", 'extends = "base"\n[learner]\nkind = "ppo"\n')
    assert load_recipe("train", "same").learner.learning_rate == 1e-3
    config = load_recipe("train", "demo")
    assert (config.learner.kind, config.method) == (LEARNER.default, METHOD.default)


def test_settings_of_a_method_that_is_composed_anew_are_told_with_their_flags(
    write_recipe: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_recipe("base", TRAIN + 'method = "ewc"\n[method_settings]\nstrength = 2\n')
    load_recipe("train", "base", ["--method", "ewc+own_replay"])
    assert told_of(caplog) == [
        "vla-crl train base: method 'ewc+own_replay' in the place of 'ewc': strength = 2 is not "
        "taken over; as flags: --method-settings.ewc.strength"
    ]
    write_recipe("two", TRAIN + 'method = "ewc+own_replay"\n[method_settings.ewc]\nstrength = 2\n')
    load_recipe("train", "two", ["--method=ewc"])
    assert told_of(caplog) == [
        "vla-crl train two: method 'ewc' in the place of 'ewc+own_replay': ewc.strength = 2 is not "
        "taken over; as flags: --method-settings.strength"
    ]


def test_what_is_left_out_of_a_recipe_is_shown_as_a_remark(
    write_recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe("base", TRAIN + "[learner]\nlearning_rate = 1e-3\n")
    write_recipe("other", 'extends = "base"\n[learner]\nkind = "grpo"\n')
    assert cli.main(["show", "recipe", "other"]) == 0
    shown = capsys.readouterr().out
    assert "# left out: learner.learning_rate = 0.001  # of learner 'ppo', not 'grpo'\n" in shown
    assert tomllib.loads(shown) == tomllib.loads(TRAIN) | {"learner": {"kind": "grpo"}}
    assert cli.main(["show", "recipe", "other", "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert left_out == {"learner.learning_rate": 0.001}
