"""Demonstrations of one's own, mixed ones, and going on from a checkpoint with new words."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.catalog import policy_path
from vla_crl.cli.main import main
from vla_crl.compute import ComputeConfig
from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.npz import save_demonstrations
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, read_card, save_adapter, save_policy
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.vlm import BackboneConfig
from vla_crl.models.weights import weights_fingerprint
from vla_crl.pretraining import pretrain as pretraining
from vla_crl.pretraining.pretrain import pretrain
from vla_crl.pretraining.recipe import PretrainConfig
from vla_crl.rollout.demonstrations import collect_demonstrations
from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.sim.backends import find_suite

PIXELS = 32
QUICK = SupervisedConfig(num_updates=2, batch_size=8)
Pretrain = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TaskResult("reach", "train", (PlayedEpisode(0, success=False, num_steps=9),))]
    monkeypatch.setattr(pretraining, "evaluate", lambda *arguments, **settings: rows)


@pytest.fixture
def worlds(tmp_path: Path, write_fake_suite: Callable[..., str], make_small_policy) -> Path:
    """Two suites; a checkpoint that knows the words of the first; demonstrations of the second."""
    write_fake_suite("old", train=["red"], heldout=[])
    write_fake_suite("new", train=["red", "yellow"], heldout=[])
    save_policy(make_small_policy(find_suite("old")), tmp_path / "base")
    demonstrations = collect_demonstrations(find_suite("new"), 30, image_size=PIXELS)
    save_demonstrations(demonstrations, find_suite("new"), tmp_path / "mine.npz")
    return tmp_path


@pytest.fixture
def run(worlds: Path) -> Pretrain:
    """Return a function that pretrains in these worlds and returns the card."""

    def run(output: str = "checkpoint", **settings: Any) -> dict[str, Any]:
        config = PretrainConfig(
            **{
                "suite": "new",
                "policy": str(worlds / "base"),
                "data": (str(worlds / "mine.npz"),),
                "supervised": QUICK,
                "num_eval_episodes": 2,
                "compute": ComputeConfig(num_torch_threads=1),
                **settings,
            }
        )
        return pretrain(config, worlds / output, recipe="mine")

    return run


def test_data_teaches_a_new_word_to_a_policy_that_goes_on(
    worlds: Path, run: Pretrain, make_small_policy
):
    suite = find_suite("new")
    config = dataclasses.replace(
        make_small_policy(suite).config,
        vocabulary=("reach", "the", "red", "square"),
        action_horizon=4,
        execution_horizon=4,
        backbone=BackboneConfig(
            vision_width=48, num_vision_heads=2, vision_mlp_width=64, width=64, num_layers=2,
            num_heads=2, num_kv_heads=2, mlp_width=96,
        ),
        head=FlowConfig(expert=ActionExpertConfig(width=48, num_heads=2, mlp_width=96)),
    )  # fmt: skip
    torch.manual_seed(0)
    save_policy(VLAPolicy(config), worlds / "untaught")
    demonstrations = collect_demonstrations(suite, 80, image_size=PIXELS)
    save_demonstrations(demonstrations, suite, worlds / "many.npz")
    settings = {
        "policy": str(worlds / "untaught"),
        "data": (str(worlds / "many.npz"),),
        "dataset": DatasetConfig(tasks=("reach_yellow",)),
        "renormalize": True,
        "num_eval_episodes": 50,
    }
    nothing = SupervisedConfig(num_updates=1, batch_size=1, learning_rate=1e-12)
    before = run("before", supervised=nothing, **settings)
    learnt = SupervisedConfig(num_updates=200, num_warmup_updates=20, learning_rate=2e-3)
    after = run("after", supervised=learnt, **settings)
    assert before["new_words"] == after["new_words"] == ["yellow", "where", "is"]
    success = [card["success_on_test_ids"]["reach_yellow"] for card in (before, after)]
    assert success[1] >= success[0] + 0.2
    assert before["initial_weights"] == after["initial_weights"]
    assert after["initial_weights"] == weights_fingerprint(load_policy(worlds / "untaught"))


def test_a_task_is_collected_learnt_and_evaluated_from_the_command_line(
    worlds: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(worlds)
    recipes = worlds / "catalogue" / "experiments"
    recipes.mkdir()
    (recipes / "more.toml").write_text(
        'suite = "new"\npolicy = "base"\nnum_eval_episodes = 2\n[compute]\nnum_torch_threads = 1\n'
        "[supervised]\nnum_updates = 2\nbatch_size = 8\n"
    )
    collect = "collect --suite new --episodes 4 --image-size 48 --output fresh.npz"
    learn = "pretrain more --data fresh.npz mine.npz --data-weights 3 1 --output learnt"
    evaluate = "evaluate --policy learnt --suite new --episodes 2 --json"
    for command in (collect, learn, evaluate):
        assert main(command.split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in rows] == ["reach_red", "reach_yellow"]
    card = read_card(worlds / "learnt")
    assert card["demonstrations"] == {"fresh.npz": 4, "mine.npz": 30}
    assert card["data_weights"] == [3.0, 1.0]
    assert card["new_words"] == ["yellow"]
    assert main(["pretrain", "more", "--data", "nowhere.npz", "--output", "other"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("vla-crl: error: data: nowhere.npz: no such file or folder; expected a ")
    assert not (worlds / "other").exists()


def test_new_words_are_in_the_checkpoint_its_card_and_its_page(run: Pretrain, worlds, capsys):
    old = load_policy(worlds / "base").config
    card = run(compute=ComputeConfig(num_torch_threads=1, dtype="bfloat16"))
    assert card["new_words"] == ["yellow"]
    assert "new words of the policy: yellow" in capsys.readouterr().err
    assert read_card(worlds / "checkpoint") == card
    stored = json.loads((worlds / "checkpoint" / "policy.json").read_text())
    assert tuple(stored["config"]["vocabulary"]) == (*old.vocabulary, "yellow")
    page = (worlds / "checkpoint" / "README.md").read_text()
    assert "trained on 16 samples of 30 demonstrations of `mine.npz` (together" in page
    assert f"went on from `{worlds / 'base'}` (weights {card['initial_weights']}), with" in page
    assert "the normalisation of the checkpoint." in page
    assert "New words: `yellow`." in page


@pytest.mark.usefixtures("no_evaluation")
def test_words_of_instructions_that_no_task_has_are_learnt(run: Pretrain, worlds, capsys):
    with np.load(worlds / "mine.npz") as file:
        arrays = dict(file)
    said = "seize the yellow one which lies farthest away from you please , if you can"
    arrays["instructions"] = np.array([said] * 30)
    np.savez(worlds / "said.npz", **arrays)
    card = run(data=(str(worlds / "said.npz"),))
    assert set(card["new_words"]) > {"seize", "one", "farthest"}
    told = capsys.readouterr().err
    assert "1 of 1 instructions are of no task of suite 'new', such as 'seize the yellow" in told
    assert f"has 15 words now instead of {load_policy(worlds / 'base').config.max_words}" in told
    assert load_policy(worlds / "checkpoint").config.max_words == 15


@pytest.mark.usefixtures("no_evaluation")
def test_a_policy_goes_on_with_the_statistics_that_it_has_unless_told(run: Pretrain, worlds):
    policy = load_policy(worlds / "base")
    policy.norm_stats.state_mean += 0.25
    shutil.rmtree(worlds / "base")
    save_policy(policy, worlds / "base")
    card = run()
    assert card["norm_stats"] == "checkpoint"
    kept = load_policy(worlds / "checkpoint").norm_stats
    assert torch.equal(kept.state_mean, policy.norm_stats.state_mean)
    assert run("again", renormalize=True)["norm_stats"] == "data"
    with np.load(worlds / "mine.npz") as file:
        expected = file["states"].mean(axis=0)
    new = load_policy(worlds / "again").norm_stats.state_mean
    np.testing.assert_allclose(new.numpy(), expected, rtol=1e-5)


@pytest.mark.usefixtures("no_evaluation")
def test_states_unlike_those_of_the_checkpoint_are_told(run: Pretrain, worlds, capsys):
    run()
    assert "beyond what the checkpoint was normalised for" not in capsys.readouterr().err
    policy = load_policy(worlds / "base")
    policy.norm_stats.state_std[1] = 1e-3
    shutil.rmtree(worlds / "base")
    save_policy(policy, worlds / "base")
    run("again")
    assert "by so many standard deviations, are y (" in capsys.readouterr().err
    run("told", renormalize=True)
    assert "beyond what the checkpoint was normalised for" not in capsys.readouterr().err


@pytest.mark.usefixtures("no_evaluation")
def test_files_and_the_expert_are_mixed(run: Pretrain, worlds):
    shutil.copy(worlds / "mine.npz", worlds / "more.npz")
    mixed = (str(worlds / "mine.npz"), "expert", str(worlds / "more.npz"))
    card = run(data=mixed, data_weights=(1.0, 2.0, 1.0), num_episodes=4)
    assert card["demonstrations"] == dict(zip(mixed, (30, 4, 30), strict=True))
    page = (worlds / "checkpoint" / "README.md").read_text()
    assert (
        "30 demonstrations of `mine.npz` and 4 perturbed scripted demonstrations and 30 "
        "demonstrations of `more.npz` (together"
    ) in page


def interrupt(*arguments: Any, **settings: Any) -> None:
    raise KeyboardInterrupt


def test_a_preset_begins_with_random_weights_and_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "collect_demonstrations", interrupt)
    config = PretrainConfig(suite="tabletop_goal", policy="tiny", supervised=QUICK)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, Path("nowhere"), recipe="mine")
    folder = policy_path("tiny").with_suffix("")
    told = capsys.readouterr().err
    assert "policy 'tiny' begins with random weights; to go on from those that it has, name" in told
    assert f"--policy {folder}" in told
    with pytest.raises(ConfigError, match="renormalize is for going on from a checkpoint, but pol"):
        pretrain(dataclasses.replace(config, renormalize=True), Path("nowhere"), recipe="mine")


def test_adapters_and_policies_with_adapters_are_refused(run: Pretrain, worlds):
    policy = load_policy(worlds / "base")
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, worlds / "stage_1", str(worlds / "base"))
    with pytest.raises(CheckpointError, match="stage_1: holds adapters of the policy '.*base'"):
        run(policy=str(worlds / "stage_1"))
    save_policy(policy, worlds / "whole")
    with pytest.raises(CheckpointError, match="whole: the policy has adapters, but all weights"):
        run(policy=str(worlds / "whole"))


def test_a_checkpoint_of_another_robot_is_refused_before_the_data(run: Pretrain, write_fake_suite):
    robot = {"action": ["delta_x", "delta_y"], "state": ["x", "y"], "cameras": ["top"]}
    write_fake_suite("slider", embodiment=robot)
    with pytest.raises(ConfigError, match=r"suite 'slider': action\[2\] of the suite is missing"):
        run(suite="slider", data=("nowhere.npz",))


def test_data_of_another_robot_is_refused(
    run: Pretrain, worlds, make_small_policy, write_fake_suite
):
    robot = {"action": ["delta_x", "delta_y"], "state": ["x", "y"], "cameras": ["top"]}
    write_fake_suite("slider", embodiment=robot)
    save_policy(make_small_policy(find_suite("slider")), worlds / "sliding")
    with pytest.raises(ConfigError, match=r"action_names\[2\] is 'gripper', but that of suite 's"):
        run(suite="slider", policy=str(worlds / "sliding"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ()}, "data has 0 entries, expected at least 1"),
        ({"data": ("a.npz", "a.npz")}, r"data = \['a.npz', 'a.npz'\], expected each once"),
        ({"data": ("a.npz", "x/../a.npz")}, r"'x/../a.npz'\], expected each once"),
        (
            {"data": ("a.npz", "expert"), "data_weights": (1.0,)},
            "data_weights has 1 numbers, but data names 2: a.npz, expert",
        ),
        ({"data_weights": (0.0,)}, r"data_weights\[0\] = 0.0, expected more than 0"),
        ({"data_weights": (float("nan"),)}, r"data_weights\[0\] = nan, expected a finite number"),
        (
            {"dataset": DatasetConfig(tasks=("one",))},
            r"dataset.tasks = \('one',\) is for recorded demonstrations, but data is expert",
        ),
        (
            {"dataset": DatasetConfig(view="raw"), "data": ("a.npz", "expert")},
            "dataset.view = 'raw' is for files of LIBERO, but data is a.npz, expert",
        ),
    ],
)
def test_settings_of_data_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(suite="new", policy="tiny", supervised=QUICK, **settings)


def test_conventions_may_be_told_where_one_of_several_is_of_libero():
    config = PretrainConfig(
        suite="new", policy="tiny", supervised=QUICK, data=("a.npz", "libero"),
        dataset=DatasetConfig(view="raw"),
    )  # fmt: skip
    assert dataclasses.replace(config, data=("libero",)).dataset.view == "raw"
