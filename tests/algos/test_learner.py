import copy
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vla_crl.algos.cloning import Cloning, CloningConfig
from vla_crl.algos.distillation import Distillation, DistillationConfig
from vla_crl.algos.grpo import GRPO, GRPOConfig
from vla_crl.algos.gspo import GSPO, GSPOConfig
from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import Batch, ParamGroup
from vla_crl.algos.reinforce import REINFORCE, REINFORCEConfig
from vla_crl.algos.sft import SFT, SFTConfig
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.density import Density
from vla_crl.errors import ConfigError
from vla_crl.testing.toy_learning import GaussianToy, TokenToy, Toy, ToyLabels, play, target

NO_METHOD = ContinualMethod(NoSettings())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error_of(toy: GaussianToy | TokenToy) -> float:
    """Mean distance of the mode from what should be learnt."""
    seen = torch.randn(500, 3, generator=seeded(99))
    with torch.no_grad():
        if isinstance(toy, GaussianToy):
            found = toy.linear(seen)
        else:
            found = toy.logits(seen).unflatten(1, (2, 5)).argmax(dim=2) / 2.0 - 1.0
    return float((found - target(seen)[:, 0]).square().sum(dim=1).sqrt().mean())


def trained(toy: Toy, learner: Any, num_updates: int = 30) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for seed in range(num_updates):
        data = (
            ToyLabels(toy, seeded(seed))
            if learner.data == "demonstrations"
            else play(toy, seeded(seed), num_slots=64, group_size=8)
        )
        metrics = learner.update(data, NO_METHOD, seeded(1000 + seed))
    return metrics


FAST: dict[str, Any] = {"learning_rate": 0.02, "minibatch_size": 64}
GROUPED: dict[str, Any] = FAST | {"group_size": 8, "num_epochs": 4}
CASES = [
    (PPO, PPOConfig(**FAST, value_learning_rate=0.02)),
    (GRPO, GRPOConfig(**GROUPED)),
    (GRPO, GRPOConfig(**GROUPED, ratio="part")),
    (GSPO, GSPOConfig(**GROUPED)),
    (REINFORCE, REINFORCEConfig(**FAST)),
    (SFT, SFTConfig(**FAST)),
    (Cloning, CloningConfig(**FAST, num_epochs=4)),
    (Cloning, CloningConfig(**FAST, num_epochs=4, loss="imitation")),
]


@pytest.mark.parametrize("make_toy", [GaussianToy, TokenToy])
@pytest.mark.parametrize(("learner_class", "config"), CASES)
def test_every_learner_learns_a_toy(learner_class: Any, config: Any, make_toy: Any):
    toy = make_toy()
    before = error_of(toy)
    metrics = trained(toy, learner_class(toy, config))
    assert error_of(toy) < 0.8 * before, metrics


def teacher_of(toy: Any) -> Any:
    """A teacher that acts as it should."""
    teacher = GaussianToy()
    weights = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.5, 0.5]])
    teacher.linear.load_state_dict({"weight": weights, "bias": torch.zeros(2)})
    teacher.log_std.data[:] = toy.log_std.detach()

    def density(batch: Any) -> Density:
        with torch.no_grad():
            return teacher.evaluate_actions(batch.context, batch.trace).density

    return density


@pytest.mark.parametrize("changes", [{}, {"exact": True}])
def test_a_distilled_student_acts_as_its_teacher(changes: dict[str, Any]):
    toy = GaussianToy()
    config = DistillationConfig(teacher="t", **FAST, num_epochs=4, **changes)
    metrics = trained(toy, Distillation(toy, config, reference=teacher_of(toy)), 60)
    wanted = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(toy.linear.weight.detach(), wanted, rtol=0, atol=0.05)
    assert abs(metrics["teacher_gap"]) < 0.05


def test_the_gap_of_a_teacher_is_minus_the_kl_in_the_mean():
    # N(0, s) against N(d, s), s = exp(-1): KL = |d|^2 / (2 s^2), over many samples of the student.
    toy = GaussianToy()
    for parameter in toy.linear.parameters():
        torch.nn.init.zeros_(parameter)
    teacher = copy.deepcopy(toy)
    teacher.linear.bias.data[:] = torch.tensor([0.1, -0.2])

    def reference(batch: Any) -> Density:
        return teacher.evaluate_actions(batch.context, batch.trace).density.detach()

    config = DistillationConfig(teacher="t", minibatch_size=60_000, num_epochs=1)
    learner = Distillation(toy, config, reference=reference)
    rollout = play(toy, seeded(), num_slots=20_000)
    metrics = learner.update(rollout, NO_METHOD, seeded())
    assert metrics["teacher_gap"] == pytest.approx(-0.05 / (2 * math.exp(-2)), rel=0.1)


def test_the_hybrid_takes_reward_where_there_is_one_and_else_the_teacher():
    toy = GaussianToy()
    rollout = play(toy, seeded(), num_slots=64, group_size=8)
    config = DistillationConfig(teacher="t", group_size=8, teacher_coef=0.5, minibatch_size=999)
    learner = Distillation(toy, config, reference=teacher_of(toy))
    learner.prepare(rollout, seeded())
    (batch,) = [*learner.minibatches(rollout, seeded())]
    evaluation = toy.evaluate_actions(batch.context, batch.trace)
    loss = learner.terms(batch, evaluation).policy_loss  # at ratio 1: minus the advantage
    won = batch.episode_return > 0
    assert 0 < won.sum() < len(batch)
    torch.testing.assert_close(loss[won], -batch.advantages[won])
    everything = [*rollout.minibatches(999, seeded())]
    (told,) = [teacher_of(toy)(b).log_prob() - b.log_probs for b in everything]
    gap = (teacher_of(toy)(batch).log_prob() - batch.log_probs)[:, 0]
    norm = (gap - told.mean()) / told.std(correction=0)
    torch.testing.assert_close(loss[~won], -0.5 * norm[~won], rtol=1e-4, atol=1e-5)


def test_reinforce_takes_the_gradient_of_the_weighted_log_probability():
    # In its first step: mean of -G_t log pi, G_t the discounted return, here without a baseline.
    toy = GaussianToy()
    config = REINFORCEConfig(gamma=0.5, normalize_advantage=False, minibatch_size=999)
    learner, rollout = REINFORCE(toy, config), play(toy, seeded())
    learner.prepare(rollout, seeded())
    (batch,) = [*learner.minibatches(rollout, seeded())]
    evaluation = toy.evaluate_actions(batch.context, batch.trace)
    returns = torch.zeros(len(batch))
    for row, (index, slot) in enumerate(zip(batch.index // 32, batch.index % 32, strict=True)):
        for later in range(int(index), int(rollout.valid[:, slot].sum())):
            returns[row] += 0.5 ** (later - int(index)) * rollout.rewards[later, slot]
    expected = -(returns * evaluation.density.log_prob()[:, 0]).mean()
    weights = [toy.linear.weight, toy.log_std]
    found = learner.loss(batch, evaluation)
    ours, theirs = (torch.autograd.grad(x, weights, retain_graph=True) for x in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert returns.unique().numel() > 2


@pytest.mark.parametrize("loss", ["likelihood", "imitation"])
def test_failures_are_not_cloned_unless_they_weigh_something(loss: Any):
    toy = GaussianToy()
    rollout = play(toy, seeded(), num_slots=64)
    num_won = int((rollout.successes == 1).sum())
    for weight, num in ((0.0, num_won), (0.25, int(rollout.valid.sum()))):
        config = CloningConfig(failure_weight=weight, minibatch_size=999, loss=loss)
        learner = Cloning(toy, config)
        (batch,) = [*learner.minibatches(rollout, seeded())]
        assert len(batch) == num
        evaluation = toy.evaluate_actions(batch.context, batch.trace)
        terms = learner.terms(batch, evaluation)
        plain = -evaluation.density.log_prob()[:, 0]
        if loss == "imitation":
            mask = torch.ones(num, 1, dtype=torch.bool)
            plain = toy.imitation(batch.context, batch.actions, mask)
        expected = torch.where(batch.success == 1, plain, weight * plain)
        torch.testing.assert_close(terms.policy_loss, expected)


def mixed_group(rollout: Any) -> int:
    """The first group of eight in which some episodes succeed and some do not."""
    won = rollout.successes[0].view(-1, 8).mean(dim=1)
    return int(((won > 0) & (won < 1)).nonzero()[0])


def fail(rollout: Any, groups: list[int]) -> None:
    """Let all episodes of some groups of eight fail."""
    slots = torch.arange(rollout.num_slots).view(-1, 8)[groups].flatten()
    rollout.rewards[:, slots] = 0.0
    for column in (rollout.successes, rollout.episode_returns):
        column[:, slots] = 0.0


def test_groups_of_equal_returns_leave_numerator_and_denominator(caplog: Any):
    toy = GaussianToy()
    rollout = play(toy, seeded(), num_slots=64, group_size=8)
    alone = mixed_group(rollout)
    others = [group for group in range(8) if group != alone]
    fail(rollout, others)
    learner = GRPO(toy, GRPOConfig(group_size=8, num_epochs=1))
    with caplog.at_level(logging.WARNING):
        metrics = learner.update(rollout, NO_METHOD, seeded())
    assert metrics["useful_groups"] == 1 / 8
    assert "GRPO iteration 0: in 7 of 8 groups all episodes have the same return" in caplog.text
    assert metrics["optimizer_steps"] == 1
    # The update is that of this group alone.
    other, part = GaussianToy(), play(GaussianToy(), seeded(), num_slots=64, group_size=8)
    part.valid.view(-1, 8, 8)[:, others] = False
    GRPO(other, GRPOConfig(group_size=8, num_epochs=1)).update(part, NO_METHOD, seeded())
    assert torch.equal(toy.linear.weight, other.linear.weight)
    caplog.clear()
    learner.update(rollout, NO_METHOD, seeded())
    assert not caplog.text  # said once


@pytest.mark.parametrize(("name", "told"), [("grpo", "groups all"), ("cloning", "no episode succ")])
def test_where_nothing_succeeds_nothing_is_learnt_and_a_warning_says_so(
    name: str, told: str, caplog: Any
):
    toy, learner_class = GaussianToy(), find_learner(name)
    before = toy.linear.weight.clone()
    rollout = play(toy, seeded(), num_slots=64, group_size=8)
    fail(rollout, [*range(8)])
    learner = learner_class(toy, learner_class.config_class(kind=name))
    metrics = learner.update(rollout, NO_METHOD, seeded())
    assert metrics["optimizer_steps"] == 0.0
    assert math.isnan(metrics["policy_loss"])
    assert torch.equal(before, toy.linear.weight)
    assert not learner.optimizer.has_trained_policy
    assert told in caplog.text


def test_slots_of_useless_groups_are_played_anew_as_often_as_asked():
    toy = GaussianToy()
    rollout = play(toy, seeded(), num_slots=64, group_size=8)
    fail(rollout, [2, 3])
    learner = GRPO(toy, GRPOConfig(group_size=8, num_resamples=2))
    useless = learner.unused_slots(rollout, 1).tolist()
    assert set(range(16, 32)) <= set(useless)
    assert len(useless) % 8 == 0
    assert learner.unused_slots(rollout, 2).tolist() == []
    assert GRPO(toy, GRPOConfig(group_size=8)).unused_slots(rollout, 0).tolist() == []


def reference_at(toy: Toy) -> Any:
    """A policy that stays where the toy is now."""
    kept = copy.deepcopy(toy)

    def density(batch: Any) -> Density:
        return kept.evaluate_actions(batch.context, batch.trace).density.detach()

    return density


@pytest.mark.parametrize("make_toy", [GaussianToy, TokenToy])
def test_a_reference_holds_the_policy(make_toy: Any):
    moved = []
    for kl_coef in (0.0, 100.0):
        toy = make_toy()
        reference = reference_at(toy)
        name = "previous_task" if kl_coef else None
        config = GRPOConfig(**GROUPED, kl_coef=kl_coef, reference=name)
        metrics = trained(toy, GRPO(toy, config, reference=reference), 10)
        (batch, *_) = play(toy, seeded(), num_slots=64).minibatches(999, seeded())
        now = toy.evaluate_actions(batch.context, batch.trace).density
        moved.append(now.kl(reference(batch)).mean().item())
        assert ("reference_kl" in metrics) == bool(kl_coef)
    assert moved[1] < 0.2 * moved[0]
    assert metrics["reference_kl_grad_ratio"] > 0.0  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_reward_on_entropy_keeps_it():
    ends = []
    for entropy_coef in (0.0, 1.0):
        toy = TokenToy()
        metrics = trained(toy, GRPO(toy, GRPOConfig(**GROUPED, entropy_coef=entropy_coef)), 10)
        (batch, *_) = play(toy, seeded(), num_slots=64).minibatches(999, seeded())
        ends.append(toy.evaluate_actions(batch.context, batch.trace).density.entropy().mean())
        assert ("entropy" in metrics) == bool(entropy_coef)
    assert ends[1] > ends[0] + 0.1


def test_entropy_of_a_head_with_fixed_noise_cannot_be_rewarded():
    toy = GaussianToy()
    toy.log_std.requires_grad_(False)
    learner = PPO(toy, PPOConfig(entropy_coef=0.01))
    message = "PPO: entropy_coef is 0.01, but the noise of this policy's head is fixed"
    with pytest.raises(ConfigError, match=message):
        learner.update(play(toy, seeded()), NO_METHOD, seeded())


def test_groups_of_parameters_learn_at_their_own_rates():
    toy = GaussianToy()
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    parameters = policy_parameters(toy)
    std = {"log_std": parameters.pop("log_std")}
    groups = [ParamGroup("mean", parameters, 1e-9), ParamGroup("noise", std, 1e-2)]
    GRPO(toy, GRPOConfig(**GROUPED), groups).update(
        play(toy, seeded(), num_slots=64, group_size=8), NO_METHOD, seeded()
    )
    after = dict(toy.named_parameters())
    assert (after["linear.weight"] - before["linear.weight"]).abs().max() < 1e-6
    assert (after["log_std"] - before["log_std"]).abs().min() > 1e-3
    assert torch.equal(after["value_head.weight"], before["value_head.weight"])


def test_a_parameter_in_two_groups_or_frozen_is_refused():
    toy = GaussianToy()
    parameters = policy_parameters(toy)
    twice = [ParamGroup("all", parameters, 0.1), ParamGroup("more", parameters, 0.1)]
    with pytest.raises(ConfigError, match="'more' holds 'log_std', which is in two of them"):
        GRPO(toy, GRPOConfig(), twice)
    toy.log_std.requires_grad_(False)
    with pytest.raises(ConfigError, match="GRPO: of .*, 'all' holds 'log_std', which is frozen"):
        GRPO(toy, GRPOConfig(), twice[:1])


def test_a_missing_reference_is_told():
    config = DistillationConfig(teacher="runs/a/checkpoints/stage_1")
    with pytest.raises(ConfigError, match="got no reference, expected what 'runs/a/checkpoints/s"):
        Distillation(GaussianToy(), config)


@pytest.mark.parametrize("settings", [{"kl_coef": 0.1}, {"reference": "base"}])
def test_coefficient_and_reference_come_together(settings: dict[str, Any]):
    for config_class in (PPOConfig, GSPOConfig, REINFORCEConfig):
        with pytest.raises(ConfigError, match="the KL from a reference takes both"):
            config_class(**settings)


def test_the_exact_kl_has_no_groups():
    with pytest.raises(ConfigError, match="exact = true and group_size = 4: the exact KL knows"):
        DistillationConfig(teacher="base", exact=True, group_size=4)


def test_the_loss_of_any_batch_can_be_differentiated():
    for name in LEARNERS:
        learner_class, toy = find_learner(name), GaussianToy()
        extra: Any = {"teacher": "t"} if name == "distillation" else {}
        learner = learner_class(
            toy, learner_class.config_class(kind=name, **extra), reference=teacher_of(toy)
        )
        labels = learner.data == "demonstrations"
        data = ToyLabels(toy, seeded()) if labels else play(toy, seeded(), group_size=8)
        learner.prepare(data, seeded())
        batch = next(iter(data.minibatches(16, seeded())))
        loss = learner.loss(batch, toy.evaluate_actions(batch.context, batch.trace))
        gradient = torch.autograd.grad(loss, [toy.linear.weight])[0]
        assert gradient.abs().sum() > 0, name


class Watching(ContinualMethod):
    """Adds a term, and looks at what it is given."""

    def __init__(self) -> None:
        super().__init__(NoSettings())
        self.seen: list[Tensor] = []

    def before_update(self, policy: Any, rollout: Any) -> None:
        self.seen.append(rollout.advantages.clone())

    def losses(self, policy: Any, batch: Batch, evaluation: Any) -> dict[str, Tensor]:
        return {"watch": 0.1 * evaluation.density.log_prob().square().mean()}


def test_a_method_sees_the_advantages_that_the_update_uses():
    toy, method = GaussianToy(), Watching()
    rollout = play(toy, seeded(), num_slots=64, group_size=8)
    metrics = GRPO(toy, GRPOConfig(**GROUPED)).update(rollout, method, seeded())
    (seen,) = method.seen
    assert torch.equal(seen, rollout.advantages)
    assert seen.abs().sum() > 0
    assert metrics["watch"] > 0
    ratio = metrics["watch_grad_norm"] / metrics["policy_loss_grad_norm"]
    assert metrics["watch_grad_ratio"] == pytest.approx(ratio)
