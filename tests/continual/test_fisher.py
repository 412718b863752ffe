from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.protocols import Batch
from vla_crl.continual.fisher import gaussian_fisher, sampled_fisher
from vla_crl.density import CategoricalDensity, Density, Evaluation, GaussianDensity
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.heads.head import HEADS
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector
from vla_crl.rollout.contexts import Contexts
from vla_crl.rollout.episodes import shuffled_lanes
from vla_crl.rows import Rows
from vla_crl.testing import fake_suite


@dataclass(frozen=True)
class Context(Rows):
    """Features, of which as many count as `length` says."""

    features: Tensor
    length: Tensor


@dataclass(frozen=True)
class Trace(Rows):
    sample: Tensor


def batch_of(features: Tensor, sample: Tensor, length: Tensor | None = None) -> Batch:
    number = torch.zeros(len(features))
    length = torch.full((len(features),), features.shape[1]) if length is None else length
    return Batch(
        index=number.long(), seen=None, context=Context(features, length), trace=Trace(sample),
        actions=number, log_probs=number, values=number, advantages=number, returns=number,
        reward=number, task=number, state_id=number, episode=number, group=number,
        episode_return=number, success=number,
    )  # fmt: skip


class Evaluating(nn.Module):
    """What information is of a policy that is asked for densities alone."""

    learnt_exploration: tuple[str, ...] = ()

    def encode(self, seen: object, /) -> object:
        raise NotImplementedError

    def imitation(
        self, context: object, actions: Tensor, mask: Tensor, generator: object
    ) -> Tensor:
        raise NotImplementedError


class Linear(Evaluating):
    """Normal actions of mean W x and standard deviations exp(log_std)."""

    def __init__(self, num_features: int, num_actions: int, log_std: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_actions, num_features))
        self.log_std = nn.Parameter(torch.full((num_actions,), log_std))
        self.value_head = nn.Linear(1, 1)

    def density(self, context: Context, trace: Trace) -> Density:
        num = int(context.length.max())  # as a policy does that leaves out padding
        mean = context.features[:, :num] @ self.weight[:, :num].T
        std = self.log_std.exp().expand_as(mean)
        return GaussianDensity(trace.sample[:, None], mean[:, None], std[:, None])

    def evaluate_actions(self, context: Context, trace: Trace, /) -> Evaluation:
        return Evaluation(self.density(context, trace), context.features[:, 0])


class Tokens(Linear):
    """One of V tokens with the logits W x."""

    def density(self, context: Context, trace: Trace) -> Density:
        logits = (context.features @ self.weight.T)[:, None]
        mask = torch.ones_like(trace.sample, dtype=torch.bool)
        return CategoricalDensity(trace.sample, logits, mask)


def test_the_mean_of_squares_is_taken_and_not_the_square_of_the_mean():
    # At W = 0 with standard deviation 1 the gradient of a chunk is a x: (1, 0), (-1, 0), (0, 2).
    # Mean of squares: (1 + 1 + 0) / 3 and (0 + 0 + 4) / 3; square of the mean: 0 and (2 / 3)^2.
    policy = Linear(2, 1)
    batch = batch_of(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0], [2.0]])
    )
    fisher = sampled_fisher(policy, {"weight": policy.weight}, [batch])
    assert fisher["weight"].tolist() == [[pytest.approx(2 / 3), pytest.approx(4 / 3)]]


def test_of_a_normal_density_it_is_known_in_closed_form():
    # F of W_ij is E[x_j^2] / s_i^2, and of log s_i, as d s / d log s = s, it is 2 s^2 / s^2 = 2.
    draw = torch.Generator().manual_seed(0)
    policy, features = Linear(3, 2, log_std=-0.7), torch.randn(20_000, 3, generator=draw)
    features[:, 1] *= 2.0
    noise = torch.randn(20_000, 2, generator=draw)
    batch = batch_of(features, policy.log_std.detach().exp() * noise)
    parameters = {"weight": policy.weight, "log_std": policy.log_std}
    expected = (features.square().mean(dim=0) / torch.tensor(-0.7).exp().square()).expand(2, 3)
    exact = gaussian_fisher(policy, parameters, [batch])
    torch.testing.assert_close(exact["weight"], expected)
    torch.testing.assert_close(exact["log_std"], torch.full((2,), 2.0))
    # The relative deviation of a mean of 20,000 squares of squares is about 0.015 to 0.03.
    sampled = sampled_fisher(policy, parameters, [batch])
    torch.testing.assert_close(sampled["weight"], expected, rtol=0.1, atol=0.0)
    torch.testing.assert_close(sampled["log_std"], torch.full((2,), 2.0), rtol=0.1, atol=0.0)


def test_of_tokens_it_is_that_of_the_logits():
    # Three tokens with the probabilities 1/3: d log p(k) / d logit_j = [k = j] - 1/3, so F is
    # 1/3 (2/3)^2 + 2/3 (1/3)^2 = 2/9 where each token was sampled once.
    policy = Tokens(1, 3)
    batch = batch_of(torch.ones(3, 1), torch.tensor([[0], [1], [2]]))
    fisher = sampled_fisher(policy, {"weight": policy.weight}, [batch])
    torch.testing.assert_close(fisher["weight"], torch.full((3, 1), 2 / 9))
    with pytest.raises(ConfigError, match="needs a normal density, .* CategoricalDensity; choose"):
        gaussian_fisher(policy, {"weight": policy.weight}, [batch])


def test_batches_and_lengths_of_contexts_make_no_difference():
    draw = torch.Generator().manual_seed(0)
    policy = Linear(4, 2)
    length = torch.tensor([4, 2, 4, 3, 2, 4])
    features = torch.randn(6, 4, generator=draw) * (torch.arange(4) < length[:, None])
    batch = batch_of(features, torch.randn(6, 2, generator=draw), length)
    parameters = {"weight": policy.weight}
    whole = sampled_fisher(policy, parameters, [batch])["weight"]
    parts = sampled_fisher(policy, parameters, [batch[:1], batch[1:4], batch[4:]])["weight"]
    torch.testing.assert_close(parts, whole)
    gradients = batch.trace.flatten()["sample"][:, :, None] * features[:, None]
    torch.testing.assert_close(whole, gradients.square().mean(dim=0))


def test_without_chunks_there_is_none():
    policy = Linear(1, 1)
    with pytest.raises(ConfigError, match="the Fisher information needs chunks, got none"):
        sampled_fisher(policy, {"weight": policy.weight}, [])


SUITE = fake_suite(train=("red", "green"), heldout=(), horizon=9)


@pytest.fixture
def adapted(make_small_policy, make_small_head):
    """Return a function that builds a policy with a head of a kind, and an adapter that acts."""

    def build(kind: str, **settings: Any) -> tuple[VLAPolicy, dict[str, nn.Parameter]]:
        policy = make_small_policy(SUITE, head=make_small_head(kind), **settings)
        site = "both" if settings else "head"
        add_lora(policy, LoRAConfig(rank=2, site=site))
        parameters = policy_parameters(policy)
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1)
        return policy, parameters

    return build


@pytest.fixture
def collect(make_lanes):
    def run(policy: VLAPolicy, contexts: Contexts) -> list[Batch]:
        sims = make_lanes(SUITE, 6, image_size=32)
        sources = shuffled_lanes(SUITE, [0, 1], 2, seed=0)
        collector = Collector(policy, sims, sources, num_chunks=2, seed=3, contexts=contexts)
        collector.collect()
        collector.rollout.compute_advantages(gamma=0.99, gae_lambda=0.95)
        return [*collector.rollout.minibatches(7, torch.Generator().manual_seed(0))]

    return run


def assert_is_that_of_a_loop(policy, parameters, batches) -> dict[str, Tensor]:
    """Compare with single backward passes of torch from the observations on."""
    expected = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        for row in range(len(batch)):
            chunk = batch[row]
            context = chunk.context if chunk.seen is None else policy.encode(chunk.seen)
            log_prob = policy.evaluate_actions(context, chunk.trace).density.log_prob()
            gradients = torch.autograd.grad(
                log_prob.sum(), [*parameters.values()], materialize_grads=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                expected[name] += gradient.square() / sum(map(len, batches))
    found = sampled_fisher(policy, parameters, batches)
    for name, fisher in expected.items():
        torch.testing.assert_close(found[name], fisher, rtol=1e-3, atol=1e-4 * float(fisher.max()))
    return expected


@pytest.mark.parametrize("kind", HEADS)
def test_of_a_policy_with_stored_contexts_it_is_that_of_a_loop(adapted, collect, kind):
    policy, parameters = adapted(kind)
    expected = assert_is_that_of_a_loop(policy, parameters, collect(policy, "stored"))
    assert sum(bool(fisher.any()) for fisher in expected.values()) > len(expected) / 2


@pytest.mark.parametrize("kind", HEADS)
def test_what_contexts_depend_on_counts_where_the_backbone_is_trained(adapted, collect, kind):
    policy, parameters = adapted(kind, insulation="none")
    expected = assert_is_that_of_a_loop(policy, parameters, collect(policy, "every_epoch"))
    vision = [fisher for name, fisher in expected.items() if ".vision_model." in name]
    assert vision
    assert all(fisher.any() for fisher in vision)


@pytest.mark.parametrize("contexts", get_args(Contexts))
@pytest.mark.parametrize("kind", HEADS)
def test_the_closed_form_is_for_policies_with_a_normal_density(adapted, collect, kind, contexts):
    policy, parameters = adapted(kind, **({} if contexts == "stored" else {"insulation": "none"}))
    chunks = [collect(policy, contexts)[0][:2]]
    if kind in ("parallel", "tokens"):
        with pytest.raises(ConfigError, match="needs a normal density, .* CategoricalDensity; ch"):
            gaussian_fisher(policy, parameters, chunks)
        return
    exact = gaussian_fisher(policy, parameters, chunks)
    assert all((fisher >= 0).all() and fisher.isfinite().all() for fisher in exact.values())
    assert all(fisher.any() for name, fisher in exact.items() if ".vision_model." in name)
