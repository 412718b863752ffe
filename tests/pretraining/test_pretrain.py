import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.catalog import catalog_dir, policy_path
from vla_crl.contracts import ARM
from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError
from vla_crl.models.checkpoint import build_policy, load_policy, read_card
from vla_crl.pretraining import pretrain as pretraining
from vla_crl.pretraining.pretrain import pretrain, train_supervised
from vla_crl.pretraining.recipe import PretrainConfig
from vla_crl.rollout.demonstrations import collect_demonstrations
from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.sim.native.suite import load_suite
from vla_crl.testing.strict_device import strict_device

SUITE = "tabletop_30"
CONFIG = PretrainConfig(
    suite=SUITE,
    policy="tiny",
    num_episodes=10,
    num_eval_episodes=1,
    question_fraction=0.5,
    supervised=SupervisedConfig(num_updates=2, batch_size=16),
)


KNOWN = [thing for thing in load_suite(SUITE).things if thing not in ("cupboard", "door")]


def write_preset(path: Path, old: str, new: str) -> None:
    """Write the tiny preset with a change."""
    text = policy_path("tiny").read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def interrupt(*arguments, **settings):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def demonstrations():
    return collect_demonstrations(load_suite(SUITE), 10, seed=1)


def test_pretraining_leaves_a_checkpoint_whose_card_tells_how_it_was_made(tmp_path):
    card = pretrain(CONFIG, tmp_path / "checkpoint", recipe="mine")
    assert read_card(tmp_path / "checkpoint") == card
    assert card["samples"] == 32
    page = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "vla-crl pretrain mine" in page
    assert "| `tabletop_object.red_cube_in_basket` | 0 % |" in page
    assert set(card["success_on_test_ids"]) == {task.name for task in load_suite(SUITE).tasks}
    assert not torch.equal(
        load_policy(tmp_path / "checkpoint").norm_stats.state_mean, torch.zeros(8)
    )


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    with pytest.raises(ConfigError, match="exists; remove it or give another --output"):
        pretrain(CONFIG, tmp_path, recipe="mine")


def test_things_that_the_policy_does_not_know_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "collect_demonstrations", interrupt)
    write_preset(tmp_path / "mine.toml", "max_words = 16", f"max_words = 16\nthings = {KNOWN}")
    wrong = dataclasses.replace(CONFIG, policy=str(tmp_path / "mine.toml"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(wrong, tmp_path / "checkpoint", recipe="mine")
    assert "without grounding labels remain cupboard, door" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_eval_episodes": 201}, "num_eval_episodes is 201, but suite .* has 200 test states"),
        (
            {"num_check_episodes": 5000, "target_success": 0.5},
            "num_check_episodes is 5000, but suite 'tabletop_30' has 4000 training states",
        ),
        (
            {"supervised": dataclasses.replace(CONFIG.supervised, loss_weights={"imitatio": 1.0})},
            "supervised.loss_weights: unknown loss term 'imitatio'. Did you mean 'imitation'",
        ),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(
    tmp_path, monkeypatch, setting, message
):
    monkeypatch.delattr(pretraining, "collect_demonstrations")
    with pytest.raises(ConfigError, match=message):
        pretrain(dataclasses.replace(CONFIG, **setting), tmp_path / "checkpoint", recipe="mine")


def test_a_sentence_too_long_for_the_policy_gets_its_room_and_is_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pretraining, "collect_demonstrations", interrupt)
    write_preset(tmp_path / "terse.toml", "max_words = 16", "max_words = 4")
    terse = dataclasses.replace(CONFIG, policy=str(tmp_path / "terse.toml"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(terse, tmp_path / "checkpoint", recipe="mine")
    assert "longest sentence of the policy has 14 words now instead" in capsys.readouterr().err


def test_another_robot_is_refused_before_the_demonstrations(tmp_path, monkeypatch):
    monkeypatch.delattr(pretraining, "collect_demonstrations")
    robot = 'action = ["x"]\nstate = ["x"]\ncameras = ["top"]'
    write_preset(tmp_path / "other.toml", "[backbone]", f"[embodiment]\n{robot}\n[backbone]")
    wrong = dataclasses.replace(CONFIG, policy=str(tmp_path / "other.toml"))
    message = r"suite 'tabletop_30': action\[0\] of the suite is 'delta_x', the policy .* with 'x'"
    with pytest.raises(ConfigError, match=message):
        pretrain(wrong, tmp_path / "checkpoint", recipe="mine")


def test_a_policy_of_other_pixels_is_shown_them(tmp_path, monkeypatch):
    sizes = []

    def collect(*arguments, **settings):
        demonstrations = collect_demonstrations(*arguments, **settings)
        sizes.append(demonstrations.images.shape[2:4])
        return demonstrations

    monkeypatch.setattr(pretraining, "collect_demonstrations", collect)
    write_preset(tmp_path / "sharp.toml", "image_size = 64", "image_size = 96")
    config = dataclasses.replace(CONFIG, policy=str(tmp_path / "sharp.toml"), num_episodes=2)
    pretrain(config, tmp_path / "checkpoint", recipe="mine")
    assert sizes == [(96, 96)]
    assert load_policy(tmp_path / "checkpoint").config.image_size == 96


def test_an_interrupted_evaluation_leaves_the_trained_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, tmp_path / "checkpoint", recipe="mine")
    load_policy(tmp_path / "checkpoint")
    assert "success_on_test_ids" not in read_card(tmp_path / "checkpoint")


def test_the_question_fraction_is_checked():
    with pytest.raises(ConfigError, match=r"question_fraction = 1\.0"):
        dataclasses.replace(CONFIG, question_fraction=1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target_success": 0.0}, r"target_success = 0\.0, expected more than 0 and at most 1"),
        ({"check_every": 0}, "check_every = 0, expected at least 1"),
        ({"num_check_episodes": 0}, "num_check_episodes = 0, expected at least 1"),
    ],
)
def test_the_settings_of_an_early_stop_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **setting)


def test_pretraining_stops_at_the_first_look_that_finds_the_target(
    demonstrations, untrained_policy, make_lanes, monkeypatch
):
    looks = []

    def evaluate(agent, sims, **settings):
        assert not policy.training
        looks.append(settings)
        num = [1, 3, 4][len(looks) - 1]
        played = [PlayedEpisode(state, success=state < num, num_steps=9) for state in range(10)]
        return [TaskResult("lift", "train", tuple(played))]

    monkeypatch.setattr(pretraining, "evaluate", evaluate)
    config = dataclasses.replace(
        CONFIG,
        target_success=0.3,
        check_every=2,
        num_check_episodes=7,
        supervised=SupervisedConfig(num_updates=9, batch_size=4),
    )
    policy = copy.deepcopy(untrained_policy)
    sims = make_lanes(load_suite(SUITE), 1)
    assert train_supervised(policy, [demonstrations], sims, config) == 4
    assert looks == [{"num_episodes": 7, "states": "train"}] * 2
    assert not policy.training


def test_training_leaves_nothing_on_the_cpu_where_the_policy_is_elsewhere(
    demonstrations, make_lanes
):
    suite = load_suite(SUITE)
    with strict_device() as device:
        policy = build_policy("tiny", embodiment=ARM, things=suite.things, device=device)
        policy.norm_stats.set(demonstrations.state, demonstrations.label)
        before = policy.backbone.image_position.detach().clone()
        assert train_supervised(policy, [demonstrations], make_lanes(suite, 1), CONFIG) == 2
        assert not torch.equal(policy.backbone.image_position, before)
        assert {parameter.device.type for parameter in policy.parameters()} == {device}


def test_the_example_in_the_documents_records_what_is_read(tmp_path, monkeypatch):
    text = (catalog_dir("policies") / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Your own demonstrations")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    assert "range(20)" in code
    rng, shown = np.random.default_rng(0), []

    def read_gamepad(obs):
        shown.append(obs)
        return np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0]))

    monkeypatch.chdir(tmp_path)
    exec(code.replace("range(20)", "range(2)"), {"read_gamepad": read_gamepad})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    suite = load_suite("tabletop_goal")
    found = read_demonstrations(tmp_path / "mine.npz", DatasetConfig(), suite, pixels=64)
    assert found.num_episodes == 2
    assert len(found) == len(shown) == 2 * suite.horizon
    assert found.instructions == ("yank out the compartment",)
    assert np.array_equal(found.images, [obs["images"] for obs in shown])
    assert np.array_equal(found.state, [obs["state"] for obs in shown])
