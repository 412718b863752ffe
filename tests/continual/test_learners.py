"""Every learner in a stage, and what does not fit it."""

import dataclasses
import logging
import os
from typing import Any

import pytest

from vla_crl.algos.cloning import CloningConfig
from vla_crl.algos.distillation import DistillationConfig
from vla_crl.algos.grpo import GRPOConfig
from vla_crl.algos.gspo import GSPOConfig
from vla_crl.algos.learner import Learner
from vla_crl.algos.learners import find_learner
from vla_crl.algos.ppo import PPOConfig
from vla_crl.algos.reinforce import REINFORCEConfig
from vla_crl.algos.sft import SFTConfig
from vla_crl.compute import ComputeConfig
from vla_crl.continual.experience import check_group_size
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.models.checkpoint import save_policy
from vla_crl.own_code import in_a_line
from vla_crl.recipes import load_recipe
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.runs.directory import RunDirectory
from vla_crl.testing import fake_suite

SMALL: dict[str, Any] = {"minibatch_size": 32, "num_epochs": 1}


@pytest.fixture
def recipe(make_small_policy, write_fake_suite, tmp_path):
    """A recipe in worlds of points, where a random policy sometimes succeeds."""
    folder = tmp_path / "base"
    write_fake_suite(train=["red", "blue"], heldout=[], horizon=9)
    save_policy(make_small_policy(fake_suite(train=["red", "blue"], heldout=[])), folder)

    def make(learner: Any, **changes: Any) -> TrainConfig:
        return TrainConfig(
            suite="fake", policy=str(folder), episodes_per_task=16, learner=learner,
            collector=CollectorConfig(num_envs=8, num_chunks=3), video_episodes=0,
            evaluation=EvaluationConfig(num_episodes=1, num_sampled_episodes=1, num_envs=4),
            compute=ComputeConfig(num_torch_threads=1, num_sim_threads=1), **changes,
        )  # fmt: skip

    return make


CONFIGS = {
    "ppo": PPOConfig(**SMALL, value_warmup_iterations=0),
    "grpo": GRPOConfig(**SMALL, group_size=4),
    "gspo": GSPOConfig(**SMALL, group_size=2, num_resamples=1),
    "reinforce": REINFORCEConfig(**SMALL, kl_coef=0.1, reference="previous_task"),
    "sft": SFTConfig(**SMALL),
    "cloning": CloningConfig(**SMALL, failure_weight=0.1),
    "distillation": DistillationConfig(**SMALL, teacher="base"),
    "hybrid": DistillationConfig(**SMALL, teacher="previous_task", group_size=4),
}


def interrupt_in_second_iteration(patch: pytest.MonkeyPatch) -> None:
    update = Learner.update

    def interrupted(self: Learner, *arguments: Any) -> dict[str, float]:
        if self.iteration == 1:
            raise KeyboardInterrupt
        return update(self, *arguments)

    patch.setattr(Learner, "update", interrupted)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_learner_goes_through_a_stage_and_on_from_its_middle(
    recipe, name, run_all, assert_same_run, tmp_path, monkeypatch
):
    config = recipe(CONFIGS[name], checkpoint_every=1, tasks=("reach_red",), heldout_tasks=())
    whole = run_all(config, tmp_path / "whole")
    rows = whole.read_metrics()
    assert name in ("grpo", "gspo") or all(row["optimizer_steps"] > 0 for row in rows)
    assert {"policy_loss", "kl", "clip_fraction", "success", "episodes"} <= rows[0].keys()
    assert rows[-1]["episodes"] >= 16
    if name not in ("sft", "hybrid"):
        return  # what they store is no other than what these do
    with monkeypatch.context() as patch:
        interrupt_in_second_iteration(patch)
        with pytest.raises(KeyboardInterrupt):
            run_all(config, tmp_path / "part")
    resumed = run_all(config, tmp_path / "part", resume=True)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--learner.kind", "grpo"],
        ["--learner.kind", "gspo"],
        ["--learner.kind", "reinforce"],
        ["--learner.kind", "sft"],
        ["--learner.kind", "cloning"],
        ["--learner.kind", "distillation", "--learner.teacher", "base"],
    ],
)
def test_the_recipe_of_two_skills_takes_every_learner(flags: list[str]):
    config = load_recipe("train", "learners_two_skills", flags)
    assert config.learner.kind == (flags[1] if flags else "ppo")
    assert (len(config.tasks), config.episodes_per_task) == (2, 1024)


def test_a_learner_that_never_learnt_anything_is_told_when_the_stage_ends(
    recipe, run_all, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("vla_crl.testing.fake_sim.NEAR", -1.0)  # nothing succeeds
    with caplog.at_level(logging.WARNING):
        run_all(recipe(GRPOConfig(**SMALL, group_size=4), tasks=("reach_red",)), tmp_path / "run")
    assert "GRPO iteration 0: in 2 of 2 groups all episodes have the same return" in caplog.text
    assert "stage 1: the policy is as it was, as the GRPO of none of its 16 episodes" in caplog.text


def test_a_group_size_that_does_not_divide_is_told_before_anything_is_trained(recipe, tmp_path):
    config = recipe(GRPOConfig(group_size=3))
    message = (
        "learner.group_size = 3 does not divide collector.num_envs = 8, of which the lanes have 4 "
        "and 4; choose collector.num_envs = 6, or another group size"
    )
    with pytest.raises(ConfigError, match=message):
        Trainer(config, RunDirectory(tmp_path / "run"))
    check_group_size(4, [4, 8])


OWN = """
from vla_crl.algos.sft import SFT, SFTConfig
from vla_crl.algos.learner import Terms
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class MineConfig(SFTConfig): ...

class Mine(SFT):
    config_class = MineConfig
    def terms(self, batch, evaluation):
        return Terms(super().terms(batch, evaluation).policy_loss.mean())

class Alone(Mine):
    @classmethod
    def group_size(cls, config):
        return 0
"""


def test_what_a_learner_of_ones_own_returns_is_told_in_a_line_with_its_place(
    recipe, run_all, own_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLA_CRL_PATH", f"{own_folder}{os.pathsep}{tmp_path / 'catalogue'}")
    file = own_folder / "mine.py"
    file.write_text(OWN)
    mine, alone = (
        recipe(find_learner(kind).config_class(**SMALL, kind=kind))
        for kind in ("mine:Mine", "mine:Alone")
    )
    with pytest.raises(SpecError) as caught:
        run_all(mine, tmp_path / "run")
    told = f"learner 'mine:Mine': Mine.terms ({file}:11) has a policy_loss that is a Tensor of sh"
    assert str(caught.value).startswith(told)
    assert told in str(in_a_line(caught.value))
    with pytest.raises(SpecError, match=r"Alone.group_size \(.*mine.py:15\) returned 0, expected"):
        Trainer(alone, RunDirectory(tmp_path / "other"))


def test_demonstrations_need_an_expert(recipe, tmp_path, write_fake_suite):
    backend = "vla_crl.testing.fake_worlds:WITHOUT_EXPERT"
    write_fake_suite("mute", backend=backend, train=["red", "blue"], heldout=[], horizon=9)
    config = dataclasses.replace(recipe(SFTConfig()), suite="mute")
    with pytest.raises(ConfigError, match="expert"):
        Trainer(config, RunDirectory(tmp_path / "run"))


def test_a_teacher_that_is_missing_is_told_before_anything_is_trained(recipe, tmp_path):
    config = recipe(DistillationConfig(teacher=str(tmp_path / "nowhere")))
    with pytest.raises((ConfigError, CheckpointError), match="nowhere"):
        Trainer(config, RunDirectory(tmp_path / "run"))
