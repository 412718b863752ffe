"""A policy is pretrained on what others recorded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.compute import ComputeConfig
from vla_crl.datasets.config import DatasetConfig
from vla_crl.errors import ConfigError
from vla_crl.flags import override
from vla_crl.models.checkpoint import load_policy
from vla_crl.pretraining import pretrain as pretraining
from vla_crl.pretraining.pretrain import pretrain
from vla_crl.pretraining.recipe import PretrainConfig
from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.sim.backends import find_suite

MEMORY = SupervisedConfig(num_updates=80, batch_size=8, num_warmup_updates=10, learning_rate=3e-3)
SMALL = """
image_size = 32
max_words = 24
action_horizon = 2
execution_horizon = 2
[backbone]
vision_width = 32
num_vision_layers = 1
num_vision_heads = 2
vision_mlp_width = 32
width = 32
num_layers = 2
num_heads = 2
num_kv_heads = 2
mlp_width = 32
[head.expert]
width = 32
num_heads = 2
mlp_width = 64
"""


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluating needs tasks that are baked, which takes a minute."""
    played = PlayedEpisode(0, success=False, num_steps=9)
    rows = [TaskResult("libero_spatial.pick", "train", (played,))]
    monkeypatch.setattr(pretraining, "evaluate", lambda *arguments, **settings: rows)


@pytest.fixture
def preset(tmp_path: Path) -> str:
    """A policy of few weights that knows the words of the suite."""
    suite = find_suite("libero_spatial")
    said = [task.instruction for task in suite.tasks] + ["where is the", *suite.things]
    words = list(dict.fromkeys(" ".join(said).split()))
    (tmp_path / "mine.toml").write_text(f"vocabulary = {words}\n{SMALL}")
    return str(tmp_path / "mine.toml")


def recipe(preset: str, path: Path, supervised: SupervisedConfig, **settings: Any):
    return PretrainConfig(
        suite="libero_spatial",
        policy=preset,
        supervised=supervised,
        num_eval_episodes=1,
        compute=ComputeConfig(num_torch_threads=1),
        data=(str(path),),
        dataset=DatasetConfig(**settings),
    )


@pytest.mark.parametrize("kind", ["hdf5", "v2.1", "v3.0 video"])
def test_a_policy_learns_from_recorded_demonstrations(
    preset, write_hdf5, write_lerobot, tmp_path, capsys, kind: str
):
    if kind == "hdf5":
        path = write_hdf5(lengths=(6, 5))
    else:
        version, *video = kind.split()
        path = write_lerobot(version=version, codec="libx264" if video else None)
    card = pretrain(recipe(preset, path, MEMORY), tmp_path / "checkpoint", recipe="mine")
    told = capsys.readouterr().err
    assert "no questions are asked, and left out are the losses answer_tokens, named_offset" in told
    losses = [
        float(line.split("imitation ")[1].split()[0])
        for line in told.splitlines()
        if "imitation " in line
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert "presence" not in told.split("left out are the losses")[1].split("update")[1]
    num = 2 if kind == "hdf5" else 3
    assert card["demonstrations"] == {str(path): num}
    page = (tmp_path / "checkpoint" / "README.md").read_text()
    assert f"{num} demonstrations of `{path.name}` (together" in page
    state_mean = load_policy(tmp_path / "checkpoint").norm_stats.state_mean
    assert not torch.equal(state_mean, torch.zeros(8))


def test_losses_of_which_no_label_is_left_are_refused(preset, write_hdf5, tmp_path):
    settings = SupervisedConfig(num_updates=1, loss_weights={"pointer": 1.0, "presence": 1.0})
    with pytest.raises(ConfigError, match="names pointer, presence, but the demonstrations do not"):
        pretrain(recipe(preset, write_hdf5(), settings), tmp_path / "checkpoint", recipe="mine")
    assert not (tmp_path / "checkpoint").exists()


def test_losses_that_need_no_grounding_are_not_spoken_of(preset, write_hdf5, tmp_path, capsys):
    settings = SupervisedConfig(num_updates=1, batch_size=4, loss_weights={"imitation": 1.0})
    pretrain(recipe(preset, write_hdf5(), settings), tmp_path / "checkpoint", recipe="mine")
    assert "left out are the losses" not in capsys.readouterr().err


def test_every_setting_is_a_flag(preset):
    config = recipe(preset, Path("here"), MEMORY)
    flags = "--dataset.view raw --dataset.gripper opens --dataset.seen after --data there mine.npz"
    more = "--dataset.episodes-per-task 3 --dataset.tasks one two --data-weights 2 1"
    changed = override(config, f"{flags} {more}".split(), "mine")
    dataset = DatasetConfig(
        view="raw", gripper="opens", seen="after", episodes_per_task=3, tasks=("one", "two")
    )
    assert changed == dataclasses.replace(
        config, data=("there", "mine.npz"), data_weights=(2.0, 1.0), dataset=dataset
    )
