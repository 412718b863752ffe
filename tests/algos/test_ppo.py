import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vla_crl.algos.policy_gradient import clipped_policy_loss
from vla_crl.algos.ppo import PPO, PPOConfig, clipped_value_loss
from vla_crl.algos.protocols import Batch
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.density import Evaluation, GaussianDensity
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.rows import Rows

STD = 0.3
NO_METHOD = ContinualMethod(NoSettings())


@dataclass(frozen=True)
class Features(Rows):
    features: Tensor


@dataclass(frozen=True)
class Sample(Rows):
    action: Tensor


@dataclass(frozen=True)
class Chunk(Rows):
    trace: Sample
    log_prob: Tensor
    value: Tensor


class GaussianPolicy(nn.Module):
    """Two actions, each a linear function of three features plus noise."""

    learnt_exploration: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.value_head = nn.Linear(3, 1)
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)

    def evaluate_actions(self, context: Features, trace: Sample, /) -> Evaluation:
        mean, std = self.mean(context.features), torch.tensor([[[STD]]])
        density = GaussianDensity(trace.action[:, None], mean[:, None], std)
        return Evaluation(density, self.value_head(context.features).squeeze(-1))

    def encode(self, seen: Features, /) -> Features:
        return seen

    def imitation(
        self, context: Features, actions: Tensor, mask: Tensor, generator: object, /
    ) -> Tensor:
        return (self.mean(context.features)[:, None] - actions).square().mean(dim=(1, 2))

    @torch.no_grad()
    def act(self, context: Features, generator: torch.Generator) -> Chunk:
        mean = self.mean(context.features)
        trace = Sample(mean + STD * torch.randn(mean.shape, generator=generator))
        found = self.evaluate_actions(context, trace)
        return Chunk(trace, found.density.log_prob(), found.value)


TARGET = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.5, 0.5]])


def collect(
    policy: GaussianPolicy,
    generator: torch.Generator,
    rewards: Tensor | None = None,
    shape: tuple[int, int] = (4, 64),
) -> RolloutStorage:
    """One-chunk episodes; the reward is minus the squared distance to TARGET @ features."""
    num_steps, num_slots = shape
    example = one_chunk(Features(torch.zeros(1, 3)), policy, torch.Generator(), torch.zeros(1))
    storage = RolloutStorage(num_steps, num_slots, example)
    for step in range(num_steps):
        context = Features(torch.randn(num_slots, 3, generator=generator))
        reward = None if rewards is None else rewards[step]
        storage.add(step, one_chunk(context, policy, generator, reward))
    storage.finish(torch.zeros(shape))
    return storage


def one_chunk(
    context: Features, policy: GaussianPolicy, generator: torch.Generator, reward: Tensor | None
) -> Step:
    """Act once and end the episode."""
    chunk = policy.act(context, generator)
    if reward is None:
        error = chunk.trace.action - context.features @ TARGET.T
        reward = -error.square().sum(dim=-1)
    no, number = torch.zeros(len(context), dtype=torch.bool), torch.arange(len(context))
    return Step(
        seen=None,
        context=context,
        trace=chunk.trace,
        actions=chunk.trace.action[:, None],
        log_probs=chunk.log_prob,
        values=chunk.value,
        reward=reward,
        terminated=~no,
        truncated=no,
        success=no,
        episode_return=reward,
        task=number,
        state_id=number,
        episode=number,
        group=number,
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(seed: int = 0) -> GaussianPolicy:
    torch.manual_seed(seed)
    return GaussianPolicy()


def weights(policy: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def config(**changes: Any) -> PPOConfig:
    """Without warm-up and without a limit on the KL."""
    settings: dict[str, Any] = {"value_warmup_iterations": 0, "target_kl": None}
    settings |= {"minibatch_size": 64} | changes
    return PPOConfig(**settings)


def train(policy: GaussianPolicy, ppo: PPO, iterations: Iterator[int] | range) -> None:
    for iteration in iterations:
        rollout = collect(policy, seeded(iteration))
        ppo.update(rollout, NO_METHOD, seeded(1000 + iteration))


def test_objective_stops_where_the_ratio_leaves_the_range_in_the_wanted_direction():
    # epsilon = 0.2; loss = max(-A r, -A clip(r, 0.8, 1.2))
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0])
    loss = clipped_policy_loss(ratio, advantages, (0.2, 0.2))
    #     A r at 1; 1.2 caps the gain; 0.5 is not capped; 1.5 is not capped; 0.8 caps the gain
    torch.testing.assert_close(loss, torch.tensor([-2.0, -2.4, -1.0, 3.0, 1.6]))
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [-2.0, 0.0, -2.0, 2.0, 0.0]


def test_value_moves_no_further_than_its_range():
    values = torch.tensor([0.5, 0.5, 0.1, -0.5], requires_grad=True)
    old, returns = torch.zeros(4), torch.tensor([1.0, 0.25, 1.0, 1.0])
    # clipped to [-0.2, 0.2]: 0.2, 0.2, 0.1, -0.2
    # max((.5-1)^2, (.2-1)^2) = .64; max(.0625, .0025) = .0625; .81 both; max(2.25, 1.44)
    loss = clipped_value_loss(values, old, returns, 0.2)
    torch.testing.assert_close(loss, torch.tensor([0.64, 0.0625, 0.81, 2.25]))
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.5, -1.8, -3.0]))


def test_value_range_none_is_the_squared_error():
    loss = clipped_value_loss(torch.tensor([3.0]), torch.zeros(1), torch.tensor([1.0]), None)
    assert loss.tolist() == [4.0]


def test_ratio_is_exactly_one_before_the_first_step():
    policy = toy()
    ppo = PPO(policy, config(learning_rate=0.05))
    for iteration in range(3):
        metrics = ppo.update(collect(policy, seeded(iteration)), NO_METHOD, seeded())
        assert metrics["ratio_error"] == 0.0
        assert metrics["kl"] > 0.0


def test_kl_and_clip_fraction_by_hand():
    # The stored log-probabilities are lowered by ln 2: every ratio is 2, k3 = 2 - 1 - ln 2.
    policy = toy()
    rollout = collect(policy, seeded())
    rollout.log_probs -= math.log(2.0)
    metrics = PPO(policy, config(num_epochs=1, minibatch_size=256)).update(
        rollout, NO_METHOD, seeded()
    )
    assert metrics["ratio_error"] == pytest.approx(1.0, rel=1e-5)
    assert metrics["kl"] == pytest.approx(1.0 - math.log(2.0), rel=1e-5)
    assert metrics["clip_fraction"] == 1.0


class OnlyRow(ContinualMethod):
    """Count the policy loss of one row only."""

    def __init__(self, row: int) -> None:
        super().__init__(NoSettings())
        self.row = row

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        return (batch.index == self.row).float()


@pytest.mark.parametrize(("normalize", "expected"), [(True, -1.0), (False, -5.0)])
def test_advantages_are_normalised_over_the_rollout_and_not_the_minibatch(
    normalize: bool, expected: float
):
    # Values 0, rewards 1 5 5 1: mean 3, std 2, row 1 has advantage (5 - 3) / 2 = 1. Its loss at
    # ratio 1 is -1, in a mean over four minibatches of one chunk: -1 / 4.
    policy = toy()
    nn.init.zeros_(policy.value_head.weight)
    nn.init.zeros_(policy.value_head.bias)
    rewards = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    rollout = collect(policy, seeded(), rewards, shape=(2, 2))
    settings = config(
        minibatch_size=1, num_epochs=1, learning_rate=1e-9, normalize_advantage=normalize
    )
    metrics = PPO(policy, settings).update(rollout, OnlyRow(1), seeded())
    assert metrics["policy_loss"] == pytest.approx(expected / 4, rel=1e-4)


@pytest.mark.parametrize(
    ("hook", "tensor", "message"),
    [
        (
            "sample_weights",
            torch.ones(64, 1),
            r"sample_weights has shape \[64, 1\], expected \[64\]",
        ),
        (
            "losses",
            {"anchor": torch.ones(3)},
            r"losses\['anchor'\] has shape \[3\], expected \[\]; any other would be br",
        ),
    ],
)
def test_what_would_be_broadcast_to_a_wrong_loss_is_refused(
    monkeypatch: pytest.MonkeyPatch, hook: str, tensor: object, message: str
):
    monkeypatch.setattr(ContinualMethod, hook, lambda *arguments: tensor)
    policy = toy()
    with pytest.raises(SpecError, match=message):
        PPO(policy, config()).update(collect(policy, seeded()), NO_METHOD, seeded())


@pytest.mark.parametrize(
    ("hook", "value", "message"),
    [
        (
            "sample_weights",
            None,
            r"sample_weights is a NoneType, expected a tensor of shape \[64\]",
        ),
        ("losses", {"a": 0.0}, r"losses\['a'\] is a float, expected a tensor of shape \[\]"),
        ("losses", None, "losses is a NoneType, expected a dictionary of scalars"),
        ("losses", {"kl": torch.zeros(())}, "losses has 'kl', which is the name of another num"),
        ("losses", {"a_grad_norm": torch.zeros(())}, "losses has 'a_grad_norm', which is the na"),
        ("losses", {"value_loss": torch.zeros(())}, "losses has 'value_loss', which is the name"),
    ],
)
def test_a_hook_that_returns_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, hook: str, value: object, message: str
):
    monkeypatch.setattr(ContinualMethod, hook, lambda *arguments: value)
    policy = toy()
    with pytest.raises(SpecError, match=f"method: {message}"):
        PPO(policy, config()).update(collect(policy, seeded()), NO_METHOD, seeded())


def test_kl_limit_ends_the_update_before_the_step():
    policy = toy()
    rollout = collect(policy, seeded())
    ppo = PPO(policy, config(target_kl=1e-6, learning_rate=0.05, num_epochs=10))
    metrics = ppo.update(rollout, NO_METHOD, seeded())
    # The first step is always allowed (KL 0) and takes the policy over the limit.
    assert metrics["optimizer_steps"] == 1
    assert metrics["epochs"] == 0
    assert metrics["kl"] > 1e-6


def test_without_kl_limit_all_epochs_are_done():
    policy = toy()
    metrics = PPO(policy, config(learning_rate=0.05, num_epochs=4)).update(
        collect(policy, seeded()), NO_METHOD, seeded()
    )
    assert metrics["epochs"] == 4
    assert metrics["optimizer_steps"] == 16  # 4 epochs of 256 chunks in minibatches of 64


def test_value_warm_up_moves_the_value_head_alone():
    policy = toy()
    before = weights(policy)
    ppo = PPO(policy, config(value_warmup_iterations=1))
    metrics = ppo.update(collect(policy, seeded()), NO_METHOD, seeded())
    after = weights(policy)
    assert torch.equal(before["mean.weight"], after["mean.weight"])
    assert not torch.equal(before["value_head.weight"], after["value_head.weight"])
    assert metrics["grad_norm"] == 0.0
    ppo.update(collect(policy, seeded()), NO_METHOD, seeded())
    assert not torch.equal(before["mean.weight"], policy.mean.weight)


class Pulling(ContinualMethod):
    """A term of a known gradient."""

    def __init__(self, strength: float) -> None:
        super().__init__(NoSettings())
        self.strength = strength

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        return {"pull": self.strength * policy.mean.bias.sum()}


def test_gradient_norms_tell_how_hard_each_term_pulls():
    # The gradient of 3 (b1 + b2) is (3, 3), and no other parameter's: norm 3 sqrt(2).
    policy = toy()
    metrics = PPO(policy, config()).update(collect(policy, seeded()), Pulling(3.0), seeded())
    assert metrics["pull_grad_norm"] == pytest.approx(3.0 * math.sqrt(2.0))
    assert metrics["policy_loss_grad_norm"] > 0.0
    ratio = metrics["pull_grad_norm"] / metrics["policy_loss_grad_norm"]
    assert metrics["pull_grad_ratio"] == pytest.approx(ratio)
    # What is half as heavy pulls half as hard; before the first step nothing else has changed.
    light, heavy = (
        PPO(policy := toy(), config(vf_coef=vf_coef, value_warmup_iterations=1)).update(
            collect(policy, seeded()), NO_METHOD, seeded()
        )
        for vf_coef in (0.5, 1.0)
    )
    ratio = heavy["value_loss_grad_norm"] / light["value_loss_grad_norm"]
    assert ratio == pytest.approx(2.0)
    assert light["policy_loss_grad_norm"] == 0.0  # in the warm-up it is no term of the loss


def test_looking_at_gradient_norms_changes_no_bit(monkeypatch: pytest.MonkeyPatch):
    ends = []
    for is_looking in (True, False):
        if not is_looking:
            monkeypatch.setattr("vla_crl.algos.learner.gradient_norms", lambda *arguments: {})
            monkeypatch.setattr("vla_crl.algos.learner.gradient_ratios", lambda norms: {})
        policy = toy()
        train(policy, PPO(policy, config()), range(3))
        ends.append(weights(policy))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_slots_that_rest_change_nothing():
    # What stands where a slot rests is not finite, so it would show anywhere.
    ends = []
    for num_steps in (1, 3):
        policy = toy()
        whole = collect(policy, seeded(), shape=(1, 64))
        step = whole.steps
        storage = RolloutStorage(num_steps, 64, step)
        storage.add(0, step)
        storage.steps.values[64:] = float("nan")
        storage.finish(torch.zeros(num_steps, 64))
        metrics = PPO(policy, config(minibatch_size=16)).update(storage, NO_METHOD, seeded())
        ends.append((policy.mean.weight.detach(), policy.value_head.weight.detach(), metrics))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert ends[0][2]["optimizer_steps"] == 8 * 4


def test_value_loss_never_shrinks_the_step_of_the_policy():
    ends = []
    for vf_coef in (1.0, 1e4):
        policy = toy()
        PPO(policy, config(vf_coef=vf_coef)).update(collect(policy, seeded()), NO_METHOD, seeded())
        ends.append(policy.mean.weight.detach())
    assert torch.equal(*ends)


def test_gradient_norm_is_limited():
    # One plain step of Adam is lr * g / (|g| + eps): a norm limit of eps' size shows in it.
    policy = toy()
    settings = config(num_epochs=1, minibatch_size=256, learning_rate=1.0, max_grad_norm=1e-8)
    metrics = PPO(policy, settings).update(collect(policy, seeded()), NO_METHOD, seeded())
    assert metrics["grad_norm"] > 0.1
    gradient = policy.mean.weight.detach().abs()
    assert gradient.max() < 0.5  # |g| <= 1e-8 = eps, so the step is at most lr / 2


def test_metrics_are_the_same_names_with_and_without_warm_up():
    policy = toy()
    ppo = PPO(policy, config(value_warmup_iterations=1))
    first, second = (ppo.update(collect(policy, seeded()), NO_METHOD, seeded()) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()))


def test_toy_task_is_learnt():
    policy = toy()
    ppo = PPO(policy, PPOConfig(learning_rate=5e-3, value_learning_rate=1e-2, minibatch_size=64))
    first = collect(policy, seeded(10_000)).rewards.mean()
    train(policy, ppo, range(40))
    last = collect(policy, seeded(10_000)).rewards.mean()
    # Start: |TARGET x|^2 = 4 * 0.25 on average and noise 2 * 0.3^2 = 0.18; perfect: -0.18.
    assert first < -1.0
    assert last > -0.25


def test_value_learns_to_explain_the_returns():
    policy = toy()
    ppo = PPO(policy, config(value_learning_rate=0.05, learning_rate=1e-9))
    rewards = torch.ones(4, 64)
    metrics = {}
    for iteration in range(10):
        rollout = collect(policy, seeded(iteration), rewards)
        metrics = ppo.update(rollout, NO_METHOD, seeded())
    assert metrics["value_loss"] < 0.01


def test_same_seed_gives_the_same_numbers():
    ends = []
    for _ in range(2):
        policy = toy(7)
        train(policy, PPO(policy, config()), range(3))
        ends.append(weights(policy))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_resumed_training_equals_uninterrupted_training():
    whole, half = toy(), toy()
    train(whole, PPO(whole, PPOConfig()), range(6))
    ppo = PPO(half, PPOConfig())
    train(half, ppo, range(3))
    stored = load(save(ppo.state_dict() | {f"policy/{k}": v for k, v in weights(half).items()}))
    resumed = toy(seed=99)
    resumed.load_state_dict({k[7:]: v for k, v in stored.items() if k.startswith("policy/")})
    ppo = PPO(resumed, PPOConfig())
    ppo.load_state_dict({k: v for k, v in stored.items() if not k.startswith("policy/")})
    assert ppo.iteration == 3
    train(resumed, ppo, range(3, 6))
    assert all(torch.equal(a, weights(resumed)[name]) for name, a in weights(whole).items())


def test_state_of_the_warm_up_has_no_moments_of_the_policy():
    policy = toy()
    ppo = PPO(policy, PPOConfig())
    train(policy, ppo, range(1))
    assert sorted(ppo.state_dict()) == sorted(
        ["iteration"]
        + [
            f"{kind}/value_head.{name}"
            for kind in ("exp_avg", "exp_avg_sq", "step")
            for name in ("bias", "weight")
        ]
    )


def test_state_of_another_policy_is_rejected():
    ppo = PPO(toy(), PPOConfig())
    with pytest.raises(CheckpointError, match="'exp_avg/lora' belongs to no parameter trained"):
        ppo.load_state_dict({"iteration": torch.tensor(1), "exp_avg/lora": torch.zeros(1)})


def test_state_of_another_shape_is_rejected():
    ppo = PPO(toy(), PPOConfig())
    with pytest.raises(SpecError, match=r"mean.bias' has shape \(3,\), expected \(2,\)"):
        ppo.load_state_dict({"iteration": torch.tensor(1), "exp_avg/mean.bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), "is of type int64, expected float32"),
        (torch.tensor([0.0, math.inf]), "has 1 numbers of 2 that are not finite, first inf"),
    ],
)
def test_state_that_is_no_number_of_adam_is_rejected(moment: torch.Tensor, message: str):
    ppo = PPO(toy(), PPOConfig())
    with pytest.raises(SpecError, match=f"PPO state: 'exp_avg/mean.bias' {message}"):
        ppo.load_state_dict({"iteration": torch.tensor(1), "exp_avg/mean.bias": moment})


@pytest.mark.parametrize("lost", ["iteration", "exp_avg_sq/mean.bias", "step/value_head.weight"])
def test_state_with_a_piece_missing_is_rejected(lost: str):
    policy = toy()
    ppo = PPO(policy, config())
    train(policy, ppo, range(1))
    state = ppo.state_dict()
    del state[lost]
    with pytest.raises(CheckpointError, match=f"'{lost}' is missing"):
        ppo.load_state_dict(state)


def test_loss_that_is_not_a_number_stops_before_the_step():
    policy = toy()
    rollout = collect(policy, seeded())
    ppo = PPO(policy, config())
    ppo.iteration = 12
    rollout.rewards[2, 3] = float("nan")
    before = weights(policy)
    with pytest.raises(FloatingPointError, match=r"PPO iteration 12: policy_loss is nan.*not app"):
        ppo.update(rollout, NO_METHOD, seeded())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())


def test_log_probability_that_is_not_a_number_is_named():
    policy = toy()
    rollout = collect(policy, seeded())
    ppo = PPO(policy, config())
    # An action 1e30 away from every sample: its squared distance is not a float32 any more.
    policy.mean.register_forward_hook(lambda _, seen, mean: cast(Any, mean) + 1e30)
    with pytest.raises(FloatingPointError, match="iteration 0: log_prob is -inf"):
        ppo.update(rollout, NO_METHOD, seeded())


class RootPenalty(ContinualMethod):
    """Zero, but with an infinite slope."""

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        return {"root": (policy.mean.weight - policy.mean.weight.detach()).abs().sqrt().sum()}


def test_gradient_that_is_not_a_number_stops_before_the_step():
    policy = toy()
    before = weights(policy)
    with pytest.raises(FloatingPointError, match="iteration 0: grad_norm is nan"):
        PPO(policy, config()).update(collect(policy, seeded()), RootPenalty(NoSettings()), seeded())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())


def test_parameter_without_a_path_to_the_loss_is_an_error():
    policy = toy()
    policy.forgotten = nn.Linear(1, 1)
    before = weights(policy)
    with pytest.raises(ConfigError, match=r"'forgotten.weight' is trainable but has no path"):
        PPO(policy, config()).update(collect(policy, seeded()), NO_METHOD, seeded())
    assert torch.equal(before["mean.weight"], policy.mean.weight)


def test_frozen_parameters_stay():
    policy = toy()
    policy.mean.bias.requires_grad_(False)
    train(policy, PPO(policy, config()), range(1))
    assert policy.mean.bias.tolist() == [0.0, 0.0]
    assert policy.mean.weight.abs().min() > 0


def test_policy_with_nothing_to_train_is_an_error():
    policy = toy()
    policy.mean.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter outside its value head; add"):
        PPO(policy, config())
    policy = toy()
    policy.value_head.requires_grad_(False)
    with pytest.raises(ConfigError, match="value head has no trainable parameter; unfreeze"):
        PPO(policy, config())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("learning_rate", 0.0, "more than 0"),
        ("value_learning_rate", -1.0, "more than 0"),
        ("clip_low", 0.0, "more than 0"),
        ("clip_high", 0.0, "more than 0"),
        ("value_clip_range", 0.0, "more than 0"),
        ("max_grad_norm", 0.0, "more than 0"),
        ("target_kl", 0.0, "more than 0"),
        ("gamma", 1.01, "at least 0 and at most 1"),
        ("gae_lambda", -0.1, "at least 0 and at most 1"),
        ("num_epochs", 0, "at least 1"),
        ("minibatch_size", 0, "at least 1"),
        ("vf_coef", -0.5, "at least 0"),
        ("value_warmup_iterations", -1, "at least 0"),
        ("learning_rate", 1e38, "more than 0 and at most 1"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", float("inf"), "a finite number"),
    ],
)
def test_setting_out_of_range_is_an_error(field: str, value: Any, expected: str):
    with pytest.raises(
        ConfigError, match=re.escape(f"PPOConfig: {field} = {value}, expected {expected}")
    ):
        PPOConfig(**{field: value})
