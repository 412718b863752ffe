from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vla_crl.algos.learner import Learner, LearnerConfig, Terms
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.algos.ppo import PPO
from vla_crl.algos.protocols import Batch
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError, SpecError
from vla_crl.testing import check_learner


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
    def summary(self, data: Any) -> Any:
        return {"seen": torch.ones(1)}


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
        (Lazy, "moved nothing in two updates after its warm-up"),
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


def test_what_is_no_learner_at_all_is_told():
    with pytest.raises(ConfigError, match="learner 'Learner': is not a subclass of Learner that c"):
        check_learner(Learner)
