import sys
from typing import Any, ClassVar

import pytest
import torch

from vla_crl.algos.learner import policy_parameters
from vla_crl.continual.known_methods import METHODS
from vla_crl.continual.method import ContinualMethod
from vla_crl.errors import ConfigError, SpecError
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.testing import check_method


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


@pytest.mark.parametrize("name", [*METHODS, "ewc+own_replay"])
def test_the_methods_of_the_package_keep_the_contract(name: str):
    check_method(name)


def trained(policy: Any) -> torch.Tensor:
    return policy.get_parameter("head.2.lora_B.default.weight")


class Averaging(ContinualMethod):
    """Holds the policy near a moving average of itself: all that a method can do."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.average: dict[str, torch.Tensor] = {}

    def after_step(self, policy: Any):
        for name, parameter in policy_parameters(policy).items():
            old = self.average.get(name, torch.zeros_like(parameter))
            self.average[name] = 0.9 * old + 0.1 * parameter.detach()

    def losses(self, policy: Any, batch, evaluation):
        gaps = [
            (p - self.average[n]).square().sum()
            for n, p in policy_parameters(policy).items()
            if n in self.average
        ]
        return {"pull": 0.1 * torch.stack(gaps).sum()} if gaps else {}

    def state_dict(self):
        return dict(self.average)

    def load_state_dict(self, state):
        self.average = dict(state)


class Showing(ContinualMethod):
    """Imitates an expert, whom it asks anew in every stage."""

    def before_task(self, policy: Any, stage):
        shown = stage.demonstrations(stage.tasks[0], 16)
        self.labels = LabelledSteps(policy, shown)
        self.draws = stage.generator

    def losses(self, policy: Any, batch, evaluation):
        shown = next(self.labels.minibatches(8, self.draws))
        loss = policy.imitation(shown.context, shown.actions, shown.mask, self.draws)
        return {"imitation": 0.1 * loss.mean()}


@pytest.mark.parametrize("name", ["Averaging", "TableOfOnes", "Showing"])
def test_a_method_of_ones_own_keeps_the_contract(name: str):
    check_method(f"mine:{name}")


class Forgetful(Averaging):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class HalfForgetful(Averaging):
    def load_state_dict(self, state):
        self.average = {n: t for n, t in state.items() if ".lora_A." in n}


class Rounding(Averaging):
    def losses(self, policy: Any, batch, evaluation):
        return {}

    def load_state_dict(self, state):
        self.average = {n: t.half().float() for n, t in state.items()}


class Unfelt(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        return {"pull": trained(policy).detach().square().sum()}


class Weightless(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        return {"pull": 0.0 * trained(policy).square().sum()}


class Endless(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        return {"pull": trained(policy).sum() * float("inf")}


class Protecting(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        return {"pull": evaluation.value.square().mean()}


class Weighing(ContinualMethod):
    def sample_weights(self, batch, evaluation):
        return evaluation.density.log_prob().sum(dim=1)


DRAWS = torch.Generator()


class Random(ContinualMethod):
    def sample_weights(self, batch, evaluation):
        return torch.rand(len(batch), generator=DRAWS)


class Sharing(ContinualMethod):
    draws = torch.Generator()

    def sample_weights(self, batch, evaluation):
        return torch.rand(len(batch), generator=self.draws)


class Pooling(Averaging):
    average = {}  # noqa: RUF012 - the fault

    def __init__(self, config: Any) -> None:
        ContinualMethod.__init__(self, config)


class Counting(ContinualMethod):
    steps = 0

    def after_step(self, policy: Any):
        type(self).steps += 1


class TableOfOnes(Averaging):
    scales: ClassVar = {"head": [1.0, 2.0]}
    sites: ClassVar = {"head"}
    other: ClassVar = Averaging

    def losses(self, policy: Any, batch, evaluation):
        return {
            n: self.scales["head"][0] * t
            for n, t in super().losses(policy, batch, evaluation).items()
        }


class Thawing(ContinualMethod):
    def before_task(self, policy: Any, stage):
        policy.backbone.weight.data += 1.0


class Peeking(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        trained(policy).data += 1.0
        return {}


class CriticKeeping(ContinualMethod):
    def transform_grads(self, policy: Any):
        policy.value_head.weight.grad.zero_()


class CriticFreezing(ContinualMethod):
    def before_task(self, policy: Any, stage):
        policy.value_head.bias.requires_grad_(False)


class CriticResetting(ContinualMethod):
    def after_task(self, policy: Any, stage):
        torch.nn.init.zeros_(policy.value_head.bias)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Forgetful, "stage 1, stopped after iteration 2 and gone on with, differs in '.*'"),
        (HalfForgetful, "stage 1, stopped after iteration 2"),
        (Rounding, "load_state_dict changes 'head.0.lora_"),
        (Unfelt, r"losses\['pull'\] has never had a gradient to the policy, in \d+ steps"),
        (Weightless, r"losses\['pull'\] has never had a gradient to the policy"),
        (Endless, r"losses\['pull'\] is .*, expected a finite number"),
        (Protecting, r"losses\['pull'\] has a gradient to the value head"),
        (Weighing, "sample_weights carries a gradient; detach"),
        (Random, "two trainings with the same seeds differ in 'policy_loss' of iteration 2"),
        (Sharing, r"Sharing.draws changes in training, and all objects of the class share it"),
        (
            Pooling,
            r"Pooling.average changes in training, .*; make it in __init__, and put it into st",
        ),
        (Counting, r"Counting.steps changes in training"),
        (Thawing, "before_task changes 'backbone.weight', a frozen parameter"),
        (Peeking, "losses changes 'head.2.lora_B.default.weight', a trained parameter"),
        (CriticKeeping, "transform_grads changes the gradient of the value head's 'weight'"),
        (CriticFreezing, "before_task freezes the value head"),
        (CriticResetting, "after_task changes 'value_head.bias', the value head"),
    ],
)
def test_a_method_is_told_what_it_breaks(method: type[ContinualMethod], message: str):
    with pytest.raises(SpecError, match=f"check_method: {message}"):
        check_method(f"mine:{method.__name__}")


class Vector(ContinualMethod):
    def losses(self, policy: Any, batch, evaluation):
        return {"pull": torch.ones(3)}


class Numbered(ContinualMethod):
    def state_dict(self) -> Any:
        return {"tasks": 3}


class Early(ContinualMethod):
    def before_task(self, policy: Any, stage):
        stage.collect()


class EarlyInSecond(ContinualMethod):
    def before_task(self, policy: Any, stage):
        if stage.number == 2:
            stage.train(4)


class Misspelt(ContinualMethod):
    def after_tasks(self, policy: Any, stage):
        pass


def test_what_the_loop_refuses_is_refused_here_too():
    told = r"method 'mine:Numbered': state_dict\(\)\['tasks'\] is a int, expected a tensor"
    with pytest.raises(ConfigError, match=told):
        check_method("mine:Numbered")
    for name in ("Early", "EarlyInSecond"):
        with pytest.raises(
            ConfigError, match=f"method 'mine:{name}': before_task collects or trai"
        ):
            check_method(f"mine:{name}")
    told = r"'mine:Misspelt': after_tasks \(.*\) is called by nobody. Did you mean 'after_task'\?"
    with pytest.raises(ConfigError, match=told):
        check_method("mine:Misspelt")
    with pytest.raises(SpecError, match=r"method: losses\['pull'\] has shape \[3\]"):
        check_method("mine:Vector")
    with pytest.raises(ConfigError, match="unknown method 'ecw'"):
        check_method("ecw")
    with pytest.raises(ConfigError, match="unknown key 'strenght'"):
        check_method("ewc", {"strenght": 3})
