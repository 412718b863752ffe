import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from vla_crl.contracts import ARM
from vla_crl.density import GaussianDensity
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.heads.gaussian import GaussianConfig, GaussianHead
from vla_crl.models.heads.head import HEADS, ActionHead, HeadConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.vlm import BackboneConfig
from vla_crl.testing import check_head

EXPERT = ActionExpertConfig(width=12, num_heads=2, mlp_width=16)
BACKBONE = BackboneConfig(
    vision_width=12, num_vision_heads=2, vision_mlp_width=16, width=16, num_layers=2, num_heads=2,
    num_kv_heads=2, mlp_width=24, initializer_range=0.3,
)  # fmt: skip


def make_policy(head: HeadConfig) -> VLAPolicy:
    torch.manual_seed(0)
    return VLAPolicy(
        PolicyConfig(
            embodiment=ARM,
            image_size=32,
            vocabulary=("pick", "up", "the", "cube"),
            max_words=4,
            backbone=BACKBONE,
            head=head,
            value_width=8,
        )
    ).eval()


NORMAL = {"initial_noise": "normal"}
VARIANTS = [("flow", NORMAL | {"stochastic_step": "random"}), ("noise", NORMAL)]


@pytest.mark.parametrize(("kind", "changes"), [*((kind, {}) for kind in HEADS), *VARIANTS])
def test_the_heads_of_the_package_keep_the_contract_and_are_left_as_they_were(
    kind, changes, make_small_head
):
    head = dataclasses.replace(make_small_head(kind), **changes)
    policy = make_policy(head)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    check_head(policy)
    assert policy.config.head == policy.head.config == head
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


class Unrepeatable(GaussianHead):
    def sample(self, context, *, deterministic, generator):
        found = super().sample(context, deterministic=deterministic, generator=generator)
        return dataclasses.replace(found, actions=found.actions + torch.rand(1))


class Short(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        return dataclasses.replace(found, actions=found.actions[:, :4])


class NotFinite(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        return dataclasses.replace(found, actions=found.actions / 0.0)


class Deaf(GaussianHead):
    def draw(self, num_rows, generator, *, deterministic):
        return super().draw(num_rows, generator, deterministic=True)


class OwnChance(GaussianHead):
    def draw(self, num_rows, generator, *, deterministic):
        return super().draw(num_rows, None, deterministic=deterministic)


class Batchwise(GaussianHead):
    def _mean(self, context, like):
        mean = super()._mean(context, like)
        return mean - mean.mean(dim=0)


class OtherRatio(GaussianHead):
    def density(self, context, trace):
        found = super().density(context, trace)
        return dataclasses.replace(found, mean=found.mean + 0.01)


class NoDensity(GaussianHead):
    def density(self, context, trace):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().density(context, trace).log_prob()


class NoRows(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        return dataclasses.replace(found, trace=found.trace.flatten())


class Flat(GaussianHead):
    def density(self, context, trace):
        found = super().density(context, trace)
        parts = (found.sample, found.mean, found.std.expand_as(found.mean))
        return GaussianDensity(*(part.flatten(1)[..., None] for part in parts))


class CountsAll(GaussianHead):
    def _density(self, trace, mean, std):
        return GaussianDensity(trace.actions[:, None], mean[:, None], std.expand_as(mean[:, None]))


class CountsNothing(GaussianHead):
    def _density(self, trace, mean, std):
        found = super()._density(trace, mean, std)
        return dataclasses.replace(found, sample=found.mean.detach())


class TooNoisy(GaussianHead):
    def walk(self, context, draws):
        return super().walk(context, dataclasses.replace(draws, noise=2.0 * draws.noise))


@dataclass(frozen=True)
class WrongKL(GaussianDensity):
    def kl(self, other):
        return 0.5 * super().kl(other)


class Misjudging(GaussianHead):
    def _density(self, trace, mean, std):
        found = super()._density(trace, mean, std)
        return WrongKL(found.sample, found.mean, found.std)


class Unmoved(GaussianHead):
    def __init__(self, config, sizes):
        super().__init__(config, sizes)
        self.kept_std = config.std

    def _std(self):
        return self.kept_std * self.log_factor.exp()


class Moved(GaussianHead):
    def _mean(self, context, like):
        return super()._mean(context, like) * self.config.std


class Idle(GaussianHead):
    def __init__(self, config, sizes):
        super().__init__(config, sizes)
        self.spare = nn.Linear(2, 2)


class Undeclared(GaussianHead):
    exploration_parameters: ClassVar[tuple[str, ...]] = ()


class OnlyActions(GaussianHead):
    def sample(self, context, *, deterministic, generator):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = super().sample(context, deterministic=deterministic, generator=generator)
        return found.actions


class NoArrays(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        return dataclasses.replace(found, actions=found.actions.numpy())


class LogProbAlone(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        return dataclasses.replace(found, density=found.density.log_prob())


class NoLoss(GaussianHead):
    def imitation(self, context, actions, generator):  # pyright: ignore[reportIncompatibleMethodOverride]
        super().imitation(context, actions, generator)


class Summed(GaussianHead):
    def imitation(self, context, actions, generator):
        return super().imitation(context, actions, generator).mean(dim=1)


class Backwards(GaussianHead):
    def imitation(self, context, actions, generator):
        loss = super().imitation(context, actions, generator)
        return 2.0 * loss.detach() - loss


class NotANumber(GaussianHead):
    def imitation(self, context, actions, generator):
        return super().imitation(context, actions, generator) * float("nan")


class Untaught(GaussianHead):
    def imitation(self, context, actions, generator):
        return super().imitation(context, actions, generator).detach()


class Scribbling(GaussianHead):
    def walk(self, context, draws):
        found = super().walk(context, draws)
        context.features.add_(1.0)
        return found


class Misnamed(GaussianHead):
    exploration: ClassVar[tuple[str, ...]] = ("sigma",)


class Unfounded(GaussianHead):
    exploration_parameters: ClassVar[tuple[str, ...]] = ("log_std",)


class Unlearnable(GaussianHead):
    exploration_parameters: ClassVar[tuple[str, ...]] = ("log_factor", "spare")

    def __init__(self, config, sizes):
        super().__init__(config, sizes)
        self.spare = nn.Parameter(torch.zeros(1))

    def imitation(self, context, actions, generator):
        return super().imitation(context, actions, generator) + self.spare


class Forgetful(GaussianHead):
    def __init__(self, config, sizes):
        super().__init__(config, sizes)
        self.shift = torch.rand(1)

    def _mean(self, context, like):
        return super()._mean(context, like) + self.shift


class AtHome(GaussianHead):
    def _std(self):
        return super()._std() * torch.ones(self.sizes.num_numbers)


BROKEN = {
    Unrepeatable: "deterministic actions depend on the generator",
    Short: "sampled actions are (6, 4, 7), expected (6, 8, 7)",
    NotFinite: "a sampled action is not finite",
    Deaf: "another generator gives the same actions",
    OwnChance: "the same generator gives other actions",
    Batchwise: "in half the batch; rows must not see others",
    OtherRatio: "the first ratio of PPO would not be 1",
    NoRows: "sample: the trace of Sampled is a dict, expected a Rows",
    NoDensity: "density: is a Tensor of shape [6, 1], expected a Density",
    Flat: "log_prob is (6, 28), expected (6, P) as of sample, (6, 1)",
    CountsAll: "other actions that are not executed, log_prob moves by",
    CountsNothing: "other actions that are executed, log_prob moves by 0",
    TooNoisy: "but the mean of -log_prob over 512 samples is",
    Misjudging: "density: kl is",
    Unmoved: "'std' changes nothing; sample reads self.config each time",
    Moved: "'std' changes deterministic actions",
    Idle: "'spare.weight' gets no gradient from density or imitation",
    Summed: "imitation: the loss is a Tensor of shape [6], expected a tensor of shape [6, 8]",
    Undeclared: "'log_factor' gets a gradient from density, but none from imitation: name it, or h",
    OnlyActions: "sample: returned a Tensor of shape [6, 8, 7], expected Sampled(actions, trace, d",
    NoArrays: "sample: the actions of Sampled is a ndarray of shape [6, 8, 7], expected a Tensor",
    LogProbAlone: "sample: the density of Sampled is a Tensor of shape [6, 1], expected a Density",
    NoLoss: "imitation: the loss is None, expected a tensor of shape [6, 8]",
    NotANumber: "imitation: a loss is not finite",
    Untaught: "imitation: no gradient reaches a parameter of the head",
    Backwards: "expected to fall",
    Scribbling: "the context was changed",
    Misnamed: "exploration names 'sigma', but the settings are kind, std, expert",
    Unfounded: "exploration_parameters names 'log_std', but no parameter begins so",
    Unlearnable: "'spare' is of exploration_parameters, but gets no gradient from density",
    Forgetful: "saved and loaded, the policy samples actions that differ by",
}


@pytest.mark.parametrize("head_class", BROKEN, ids=lambda head_class: head_class.__name__)
def test_a_broken_head_is_told_what_it_breaks(head_class, monkeypatch):
    monkeypatch.setitem(HEADS, "broken", f"{__name__}:{head_class.__name__}")
    policy = make_policy(GaussianConfig(kind="broken", expert=EXPERT))
    with pytest.raises(SpecError, match=f"check_head: .*{re.escape(BROKEN[head_class])}"):
        check_head(policy)


class OtherArguments(GaussianHead):
    def sample(self, context, generator):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().sample(context, deterministic=False, generator=generator)


class Unfinished(ActionHead):
    config_class = GaussianConfig


@pytest.mark.parametrize(
    ("head_class", "message"),
    [
        (
            OtherArguments,
            r"sample\(self, context, generator\) \(.*head.py:\d+\) cannot be called as a "
            r"policy does, expected sample\(self, context, \*, deterministic, generator\)",
        ),
        (Unfinished, "has no density, imitation, sample; each head needs them"),
    ],
)
def test_a_head_that_cannot_be_called_is_refused_before_it_is_built(
    head_class, message, monkeypatch
):
    monkeypatch.setitem(HEADS, "broken", f"{__name__}:{head_class.__name__}")
    with pytest.raises(ConfigError, match=f"head 'broken': {message}"):
        make_policy(GaussianConfig(kind="broken", expert=EXPERT))


def test_a_head_that_computes_on_the_cpu_fails_where_the_policy_is_elsewhere(monkeypatch):
    monkeypatch.setitem(HEADS, "broken", f"{__name__}:AtHome")
    with pytest.raises(SpecError, match=r"fails on another device than the CPU: .*context\.featu"):
        check_head(make_policy(GaussianConfig(kind="broken", expert=EXPERT)))
