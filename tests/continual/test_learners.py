"""Every learner in a stage, and what does not fit it."""

import dataclasses
import logging
import os
from typing import Any

import pytest
import torch

from vla_crl.algos.cloning import CloningConfig
from vla_crl.algos.distillation import DistillationConfig
from vla_crl.algos.grpo import GRPOConfig
from vla_crl.algos.gspo import GSPOConfig
from vla_crl.algos.learner import Learner, policy_parameters
from vla_crl.algos.learners import find_learner
from vla_crl.algos.ppo import PPOConfig
from vla_crl.algos.protocols import Batch
from vla_crl.algos.reinforce import REINFORCEConfig
from vla_crl.algos.sft import SFTConfig
from vla_crl.compute import ComputeConfig
from vla_crl.continual.experience import check_group_size
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.reference import make_reference
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import save_policy
from vla_crl.models.lora import LoRAConfig
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


@pytest.fixture
def make_adapted(make_small_policy):
    """Return a function that builds a policy with adapters that do something."""

    def make(suite=None, **settings: Any):
        policy = make_small_policy(
            suite or fake_suite(train=["red", "blue"], heldout=[]), **settings
        )
        add_lora(policy, LoRAConfig(rank=2))
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator())
        return policy

    return make


def seen_by(policy) -> Batch:
    """A batch of what a policy has done, as far as references look at it."""
    with torch.no_grad():
        context = policy.encode(policy.example_observation())
        chunk = policy.act(context, deterministic=False, generator=torch.Generator())
    none = chunk.value
    return Batch(
        index=none, seen=None, context=context, trace=chunk.trace, actions=chunk.actions,
        log_probs=chunk.log_prob, values=none, advantages=none, returns=none, reward=none,
        task=none, state_id=none, episode=none, group=none, episode_return=none, success=none,
    )  # fmt: skip


def density_of(policy, batch: Batch):
    return policy.evaluate_actions(batch.context, batch.trace).density


def test_the_policy_of_the_previous_task_stays_as_it_was_and_the_graph_whole(make_adapted):
    policy = make_adapted()
    batch = seen_by(policy)
    reference = make_reference("previous_task", policy, ComputeConfig(), "stored")
    before = density_of(policy, batch).detach()
    with torch.no_grad():
        for parameter in policy_parameters(policy).values():
            parameter.add_(0.1)
    now = density_of(policy, batch)
    alone = torch.autograd.grad(now.log_prob().sum(), [*policy_parameters(policy).values()])
    now = density_of(policy, batch)
    torch.testing.assert_close(reference(batch).log_prob(), before.log_prob())
    assert not torch.allclose(now.log_prob(), before.log_prob())
    after = torch.autograd.grad(now.log_prob().sum(), [*policy_parameters(policy).values()])
    for one, other in zip(alone, after, strict=True):
        assert torch.equal(one, other)
    assert not reference(batch).log_prob().requires_grad


def test_the_base_is_the_policy_without_adapters(make_adapted, make_small_policy):
    policy = make_adapted()
    batch = seen_by(policy)
    reference = make_reference("base", policy, ComputeConfig(), "stored")
    plain = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    expected = density_of(plain, batch).log_prob()
    torch.testing.assert_close(reference(batch).log_prob(), expected)
    assert not torch.allclose(density_of(policy, batch).log_prob(), expected)


def test_a_policy_without_adapters_has_no_base_to_refer_to(make_small_policy):
    policy = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    with pytest.raises(ConfigError, match="learner.reference is 'base', .* but it has none; name"):
        make_reference("base", policy, ComputeConfig(), "stored")


def test_a_checkpoint_teaches_by_stored_contexts_where_it_sees_with_the_same_backbone(
    make_adapted, make_small_policy, tmp_path
):
    policy = make_adapted()
    batch = seen_by(policy)
    teacher = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    with torch.no_grad():
        for parameter in teacher.head.parameters():
            parameter.mul_(1.1)
    save_policy(teacher, tmp_path / "teacher")
    policy.explore({"noise_level": 0.3})
    reference = make_reference(str(tmp_path / "teacher"), policy, ComputeConfig(), "stored")
    teacher.explore({"noise_level": 0.3})  # a teacher judges as the student explores
    expected = density_of(teacher, batch).log_prob()
    torch.testing.assert_close(reference(batch).log_prob(), expected)
    with torch.no_grad():
        teacher.state_in.bias.add_(1.0)
    save_policy(teacher, tmp_path / "other")
    which = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="other' of the learner: has another backbone"):
        make_reference(which, policy, ComputeConfig(), "stored")
    seen = policy.tokenize(policy.example_observation())
    kept = dataclasses.replace(batch, seen=seen)
    found = make_reference(which, policy, ComputeConfig(), "every_epoch")(kept)
    with torch.no_grad():
        expected = teacher.evaluate_actions(teacher.encode(seen), batch.trace).density.log_prob()
    torch.testing.assert_close(found.log_prob(), expected)


def test_a_teacher_of_another_body_head_or_sight_is_refused(
    make_adapted, make_small_policy, tmp_path
):
    policy, suite = make_adapted(), fake_suite(train=["red", "blue"], heldout=[])
    robot = dataclasses.replace(suite.embodiment, action=("delta_x", "delta_y", "claw"))
    body = fake_suite(train=["red", "blue"], heldout=[], embodiment=robot)
    cases = {"body": make_small_policy(body), "sight": make_small_policy(suite, image_size=64)}
    cases["scale"] = make_small_policy(suite)
    cases["scale"].norm_stats.action_std.fill_(2.0)
    cases["steps"] = make_small_policy(suite)
    head = dataclasses.replace(cases["steps"].config.head, num_steps=7)
    cases["steps"].config = dataclasses.replace(cases["steps"].config, head=head)
    messages = {
        "body": "reference .*body' of the learner.*'claw'",
        "sight": "its image_size is 64, that of the policy 32; it would not see",
        "scale": "its norm_stats.action_std is another than the policy's",
        "steps": r"its head is 'flow' in 7 steps \(.*\), that of the policy 'flow' in 4 steps",
    }
    for name, teacher in cases.items():
        save_policy(teacher, tmp_path / name)
        with pytest.raises(ConfigError, match=messages[name]):
            make_reference(str(tmp_path / name), policy, ComputeConfig(), "stored")


def test_a_teacher_that_is_missing_is_told_before_anything_is_trained(recipe, tmp_path):
    config = recipe(DistillationConfig(teacher=str(tmp_path / "nowhere")))
    with pytest.raises((ConfigError, CheckpointError), match="nowhere"):
        Trainer(config, RunDirectory(tmp_path / "run"))
