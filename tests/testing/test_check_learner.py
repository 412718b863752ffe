import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vla_crl.algos.learner import Learner, LearnerConfig, Terms, policy_parameters
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.algos.ppo import PPO
from vla_crl.algos.protocols import Batch
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError, SpecError
from vla_crl.testing import check_learner
from vla_crl.testing.toy_learning import GaussianToy, play


@dataclass(frozen=True, kw_only=True)
class ImitateConfig(LearnerConfig):
    kind: str = "imitate"
    num_epochs: int = 1


class Imitate(Learner):
    """Makes likely what was done: the least that is a learner."""

    config_class = ImitateConfig

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        return Terms(-evaluation.density.log_prob().sum(dim=1))


@pytest.mark.parametrize("name", LEARNERS)
def test_our_own_learners_keep_the_contract(name: str):
    check_learner(find_learner(name))


def test_the_least_learner_keeps_the_contract():
    check_learner(Imitate)


def test_the_learner_of_the_tutorial_keeps_the_contract(own_folder: Path):
    page = Path(__file__).parents[2] / "docs" / "writing_a_learner.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (own_folder / "my_learners.py").write_text(code)
    check_learner(find_learner("my_learners:Weighted"))


class ItsOwnNoise(Imitate):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        loss = super().terms(batch, evaluation).policy_loss
        return Terms(loss * torch.rand(loss.shape))


class NoFloats(Imitate):
    def update(self, data: Any, hooks: Any, generator: torch.Generator) -> Any:
        return super().update(data, hooks, generator) | {"seen": torch.ones(1)}


class Thawing(Imitate):
    def update(self, data: Any, hooks: Any, generator: torch.Generator) -> dict[str, float]:
        with torch.no_grad():
            for _, parameter in self.policy.named_parameters():
                parameter.add_(0.1)
        return super().update(data, hooks, generator)


class Lazy(Imitate):
    def _step(self, losses: Any, hooks: Any) -> dict[str, Tensor]:
        return {}


class SecretCritic(PPO):
    needs_value = False


class Restless(PPO):
    def update(self, data: Any, hooks: Any, generator: torch.Generator) -> dict[str, float]:
        if self.warming_up:
            with torch.no_grad():
                for parameter in self.optimizer.policy.values():
                    parameter.add_(0.1)
        return super().update(data, hooks, generator)


class Hasty(PPO):
    @property
    def warming_up(self) -> bool:
        return False


class Deaf(Imitate):
    def update(self, data: Any, hooks: Any, generator: torch.Generator) -> dict[str, float]:
        steps = 0
        for batch in self.minibatches(data, generator):
            evaluation = self.policy.evaluate_actions(batch.context, batch.trace)
            self.optimizer.zero_grad()
            self.loss(batch, evaluation).backward()
            self.optimizer.step()
            steps += 1
        self.iteration += 1
        return {"optimizer_steps": float(steps)}


class WithoutTerms(Imitate):
    def _added(self, losses: object, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


class Unweighed(Imitate):
    def update(self, data: Any, hooks: Any, generator: torch.Generator) -> dict[str, float]:
        weigh = hooks.sample_weights
        hooks.sample_weights = lambda *arguments: torch.ones_like(weigh(*arguments))
        return super().update(data, hooks, generator)


class Forgetful(Imitate):
    def state_dict(self) -> dict[str, Tensor]:
        return {"iteration": torch.tensor(self.iteration)}


class Uncounted(Imitate):
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.iteration = 0


class NoTensors(Imitate):
    def state_dict(self) -> Any:
        return super().state_dict() | {"epoch": 3}


class Blind(Imitate):
    def _require_finite(self, quantities: Mapping[str, Tensor]) -> dict[str, float]:
        return dict.fromkeys(quantities, 0.0)


class LossOfEach(Imitate):
    def loss(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        return self.terms(batch, evaluation).policy_loss


@pytest.mark.parametrize(
    ("learner_class", "message"),
    [
        (ItsOwnNoise, "gives other numbers when repeated; draw what is random from the generator"),
        (NoFloats, r"returns seen = tensor\(\[1.\]\), expected a float: use float\(\)"),
        (Thawing, "moved 'log_std', which is frozen"),
        (Lazy, "moved nothing of the policy in two updates after its warm-up"),
        (SecretCritic, "moved .*'value_head.bias'.* of the value head, but says that it needs non"),
        (Restless, "moves the policy in its warm-up"),
        (Hasty, r"calls \['before_update'\] in its warm-up, expected none"),
        (Deaf, "expected before_update once and then in every step sample_weights, losses, tra"),
        (WithoutTerms, "does not add the terms of `losses` to its own: check_grad_norm is not th"),
        (Unweighed, r"has a policy_loss of \d.* where sample_weights are all 0"),
        (Forgetful, "goes on otherwise from its state_dict than without a stop"),
        (Uncounted, "counts 2 updates, and 0 when its state is loaded; expected 2"),
        (NoTensors, "has a state_dict with 'epoch', a int, expected tensors"),
        (Blind, "raises no FloatingPointError for a loss of NaN"),
        (LossOfEach, "has a loss of a batch that is tensor.*, expected a scalar with a gradient"),
    ],
)
def test_a_broken_learner_is_told_what_it_breaks(learner_class: type[Learner], message: str):
    with pytest.raises(
        SpecError, match=f"(?s)check_learner: {learner_class.__name__} on a.*{message}"
    ):
        check_learner(learner_class)


class MeanLoss(Imitate):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        return Terms(super().terms(batch, evaluation).policy_loss.mean())


class OnePartEach(Imitate):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        return Terms(-evaluation.density.log_prob())


class Unlearning(Imitate):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        return Terms(super().terms(batch, evaluation).policy_loss.detach())


class UnlearningCritic(PPO):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        terms = super().terms(batch, evaluation)
        terms.policy_loss = terms.policy_loss.detach()
        return terms


class OfValues(PPO):
    """What moves its policy is another term."""

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        terms = super().terms(batch, evaluation)
        terms.policy_loss = evaluation.value
        terms.others["entropy"] = -evaluation.density.log_prob().mean(), 0.1
        return terms


class Extra(Imitate):
    """Adds what a test says to its terms."""

    others: Any = {}  # noqa: RUF012 - of a test
    metrics: Any = {}  # noqa: RUF012

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        loss = super().terms(batch, evaluation).policy_loss
        return Terms(loss, self.others, self.metrics)


class PlainTerms(Imitate):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Any:
        return {"policy_loss": super().terms(batch, evaluation).policy_loss}


class WithoutValueLoss(PPO):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        return Terms(super().terms(batch, evaluation).policy_loss)


class DetachedValueLoss(PPO):
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        terms = super().terms(batch, evaluation)
        terms.others["value_loss"] = terms.others["value_loss"][0].detach(), 1.0
        return terms


class NoGroups(Imitate):
    @classmethod
    def group_size(cls, config: Any) -> int:
        return 0


class NoBatches(Imitate):
    def minibatches(self, data: Any, generator: torch.Generator) -> Any:
        data.minibatches(8, generator)


class OddBatches(Imitate):
    def minibatches(self, data: Any, generator: torch.Generator) -> Any:
        yield from enumerate(data.minibatches(8, generator))


class Returning(Imitate):
    def prepare(self, data: Any, generator: torch.Generator) -> Any:
        return data.rewards


class Flattening(Imitate):
    def prepare(self, data: Any, generator: torch.Generator) -> None:
        data.advantages = data.rewards.flatten()


class PlainGroups(Imitate):
    @classmethod
    def param_groups(cls, policy: Any, config: Any) -> Any:
        return policy_parameters(policy)


class NamedGroups(Imitate):
    @classmethod
    def param_groups(cls, policy: Any, config: Any) -> Any:
        return [policy_parameters(policy)]


class WordsOfWisdom(Imitate):
    def summary(self, data: Any) -> Any:
        return {"seen": "much"}


class NoSummary(Imitate):
    def summary(self, data: Any) -> Any:
        pass


FILE = Path(__file__)
UNUSABLE = {
    MeanLoss: ("terms", "has a policy_loss that is a Tensor of shape [], expected a tensor of sh"),
    OnePartEach: ("terms", "has a policy_loss that is a Tensor of shape [32, 1], expected a tens"),
    Unlearning: ("terms", "has a policy_loss without a gradient, of which the policy would learn"),
    UnlearningCritic: ("terms", "has a policy_loss without a gradient"),
    PlainTerms: ("terms", "returned a dict, expected Terms(policy_loss [B], others={"),
    WithoutValueLoss: ("terms", "has no others['value_loss'], by which the value head learns"),
    DetachedValueLoss: ("terms", "has others['value_loss'] without a gradient; make it of eval"),
    NoGroups: ("group_size", "returned 0, expected a whole number of at least 1; 1 is no groups"),
    NoBatches: ("minibatches", "returned None, expected an iterator: a Batch each, such as yield"),
    OddBatches: ("minibatches", "yields a tuple, expected a Batch each"),
    Returning: ("prepare", "returned a Tensor of shape [3, 32], expected nothing: write into dat"),
    Flattening: ("prepare", "leaves data.advantages as a Tensor of shape [96], expected a tensor"),
    PlainGroups: ("param_groups", "returned a dict, expected a list of ParamGroup"),
    NamedGroups: ("param_groups", "has a dict in its list, expected ParamGroup(name, parameters"),
    WordsOfWisdom: ("summary", "has 'seen' that is a str, expected a number; of a tensor .item()"),
    NoSummary: ("summary", "returned None, expected a dictionary of numbers"),
}


def line_of(learner_class: type[Learner], hook: str) -> int:
    """Where a function, or what decorates it, begins."""
    return inspect.getsourcelines(getattr(learner_class, hook))[1]


@pytest.mark.parametrize("learner_class", UNUSABLE, ids=lambda each: each.__name__)
def test_what_an_update_cannot_use_is_told_with_learner_and_place(learner_class: type[Learner]):
    hook, message = UNUSABLE[learner_class]
    name = learner_class.__name__
    place = f"{FILE}:{line_of(learner_class, hook)}"
    told = f"learner '{name}': {name}.{hook} ({place}) {message}"
    with pytest.raises(SpecError, match=f"check_learner: {name} on a .*: {re.escape(told)}"):
        check_learner(learner_class)


SCALAR = torch.zeros(())


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"others": [SCALAR]}, "has others that are a list, expected a dictionary {"),
        ({"others": {"kl": SCALAR}}, "has others['kl'] that is a Tensor of shape [], expected a"),
        ({"others": {"pull": (0.5, 1.0)}}, "has in others['pull'] a float, expected a tensor th"),
        ({"others": {"pull": (torch.ones(3), 1)}}, "has in others['pull'] a Tensor of shape [3]"),
        ({"others": {"pull": (SCALAR, "1")}}, "has in others['pull'] the coefficient '1', expec"),
        ({"others": {"pull": (SCALAR, float("nan"))}}, "the coefficient nan, expected a finite"),
        ({"others": {"policy_loss": (SCALAR, 1.0)}}, "has others['policy_loss'], which is the n"),
        ({"metrics": {"x": torch.ones(3)}}, "has metrics['x'] that is a Tensor of shape [3], ex"),
        ({"metrics": {"x": "1"}}, "has metrics['x'] that is a str, expected a scalar"),
        ({"metrics": {"epochs": 1.0}}, "has metrics['epochs'], which is the name of another num"),
        ({"metrics": 3}, "has metrics that are a int, expected a dictionary of scalars"),
    ],
)
def test_terms_and_metrics_that_cannot_be_used_are_told(
    added: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in added.items():
        monkeypatch.setattr(Extra, name, value)
    with pytest.raises(
        SpecError, match=rf"learner 'Extra': Extra.terms \(.*\) .*{re.escape(message)}"
    ):
        check_learner(Extra)


def test_metrics_may_be_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Extra, "metrics", {"x": 1.5, "y": torch.tensor(2.0)})
    check_learner(Extra)
    toy = GaussianToy()
    rollout = play(toy, torch.Generator().manual_seed(0))
    learner = Extra(toy, ImitateConfig())
    metrics = learner.update(rollout, ContinualMethod(NoSettings()), torch.Generator())
    assert (metrics["x"], metrics["y"]) == (1.5, 2.0)


def test_a_policy_loss_that_does_not_reach_the_policy_is_told_whatever_moves_it():
    with pytest.raises(SpecError, match=r"OfValues on a .* has a policy_loss that has no gradient"):
        check_learner(OfValues)


@dataclass(frozen=True, kw_only=True)
class DemandingConfig(ImitateConfig):
    strength: float


class Demanding(Imitate):
    config_class = DemandingConfig


def test_a_setting_that_has_to_be_given_is_asked_for():
    told = r"no default of its setting 'strength'; say which: check_learner\(Demanding, DemandingC"
    with pytest.raises(ConfigError, match=told):
        check_learner(Demanding)
    check_learner(Demanding, DemandingConfig(strength=1.0, minibatch_size=32, learning_rate=1e-2))


class OtherArguments(Imitate):
    def prepare(self, data: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


class NoClassMethod(Imitate):
    def group_size(self, config: Any) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 1


class Misspelt(Imitate):
    def minibatch(self, data: Any, generator: torch.Generator) -> Any:
        return data.minibatches(8, generator)


@pytest.mark.parametrize(
    ("learner_class", "message"),
    [
        (
            OtherArguments,
            r"prepare\(self, data.* cannot be called as an update does, expected prep",
        ),
        (NoClassMethod, r".*expected @classmethod group_size\(cls, config\)"),
        (Misspelt, r"minibatch \(.*\) is called by nobody. Did you mean 'minibatches'\? If not, c"),
    ],
)
def test_what_an_update_cannot_call_is_refused(learner_class: type[Learner], message: str):
    with pytest.raises(ConfigError, match=f"learner '{learner_class.__name__}': {message}"):
        check_learner(learner_class)


def test_what_is_no_learner_at_all_is_told():
    with pytest.raises(ConfigError, match="learner 'Learner': is not a subclass of Learner that c"):
        check_learner(Learner)
