import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import ActorCritic, ParamGroup
from vla_crl.config import Settings
from vla_crl.continual.composite import Composite
from vla_crl.continual.known_methods import find_methods, make_method, settings_class
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.stream import TaskStream
from vla_crl.errors import ConfigError
from vla_crl.testing import check_method
from vla_crl.testing.toy_stream import ToyPolicy, ToyTraining


@dataclass(frozen=True, kw_only=True)
class FactorConfig(Settings):
    factor: float = 2.0
    names: tuple[str, ...] = field(default=())


class Factor(ContinualMethod):
    """Has a share in every hook."""

    config_class = FactorConfig

    def __init__(self, config: FactorConfig) -> None:
        super().__init__(config)
        self.calls: list[str] = []
        self.kept = torch.tensor(config.factor)
        self.folder = Path()

    def before_task(self, policy: ActorCritic, stage):
        self.folder = stage.folder
        for name, parameter in policy.named_parameters():
            if name in self.config.names:
                parameter.requires_grad_(False)

    def param_groups(self, policy: ActorCritic, groups: list[ParamGroup]) -> list[ParamGroup]:
        return [
            replace(group, learning_rate=group.learning_rate * self.config.factor)
            if group.name == "policy"
            else group
            for group in groups
        ]

    def before_update(self, policy, rollout):
        self.calls.append("before_update")

    def sample_weights(self, batch, evaluation):
        return torch.full_like(batch.advantages, self.config.factor)

    def losses(self, policy: Any, batch, evaluation):
        return {"pull": self.config.factor * policy.head[2].bias.sum()}

    def transform_grads(self, policy: Any):
        policy.head[2].bias.grad.mul_(self.config.factor).add_(1.0)

    def after_step(self, policy):
        self.calls.append("after_step")

    def metrics(self):
        return {"factor": self.config.factor}

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


class Plain(Factor):
    """The same without groups of its own."""

    def param_groups(self, policy: ActorCritic, groups: list[ParamGroup]) -> list[ParamGroup]:
        return groups


class Owner(Plain):
    owns_adapters = True


class OtherOwner(Plain):
    owns_adapters = True


@dataclass(frozen=True, kw_only=True)
class NeedingConfig(Settings):
    size: int


class Needing(ContinualMethod):
    config_class = NeedingConfig


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])


BOTH = "my_package:Factor+my_package:Plain"


def test_settings_are_nested_by_name():
    method = make_method(BOTH, {"Factor": {"factor": 3}, "Plain": {"factor": 5.0}})
    assert isinstance(method, Composite)
    assert [m.config.factor for m in method.methods.values()] == [3.0, 5.0]
    assert [*find_methods("ewc+own_replay")] == ["ewc", "own_replay"]
    with pytest.raises(ConfigError, match="unknown key 'factor' in MethodSettings.* Factor, Plain"):
        make_method(BOTH, {"factor": 3})
    with pytest.raises(ConfigError, match=r"method '.*'.Plain: unknown key 'facter'.* 'factor'"):
        make_method(BOTH, {"Plain": {"facter": 3}})


def test_a_section_that_has_to_be_there_is_asked_for():
    name = "my_package:Needing+sequential"
    with pytest.raises(ConfigError, match="key 'Needing' of MethodSettings is missing"):
        make_method(name, {})
    assert settings_class(name, finished=False)().Needing.size is tyro.MISSING
    method = make_method(name, {"Needing": {"size": 3}})
    assert isinstance(method, Composite)
    assert method.methods["Needing"].config == NeedingConfig(size=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ewc+", r"method 'ewc\+': expected names with a \+ between them"),
        ("ewc+ewc", r"method 'ewc\+ewc': 'ewc' is composed twice; name it once"),
        (
            "my_package:Factor+other:Factor",
            r"method 'my_package:Factor\+other:Factor': two classes are called 'Factor', .* rename",
        ),
        *(
            (name, f"'{holding}' holds something of earlier .* of 'task_adapters' act in no other")
            for name, holding in (
                ("own_replay+task_adapters", "own_replay"),
                ("task_adapters+kl_to_previous", "kl_to_previous"),
                ("ewc+multitask+task_adapters", "ewc"),
            )
        ),
        ("ewc+ecw", "unknown method 'ecw'. Did you mean 'ewc'"),
        ("my_package:Owner+my_package:OtherOwner", "'Owner' and 'OtherOwner' both say which adap"),
    ],
)
def test_what_cannot_be_composed_is_told(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        make_method(name, {})


def test_nearness_to_the_base_goes_with_adapters_for_each_task():
    check_method(
        "kl_to_previous+task_adapters",
        {"kl_to_previous": {"reference": "base", "coefficient": 1.0}},
    )


def composed(**changes: Any) -> Composite:
    one, two = Plain(FactorConfig(factor=2.0)), Plain(FactorConfig(factor=3.0))
    return Composite({"one": one, "two": two} | changes)


def test_hooks_are_called_of_all(tmp_path: Path):
    method = composed()
    run = ToyTraining(method, tmp_path, num_tasks=1, num_iterations=3)
    run.begin(1)
    run.iterate()
    bias = run.policy.get_parameter("head.2.bias")
    batch = next(iter(run._collect_fresh().minibatches(8, torch.Generator())))
    weights = method.sample_weights(batch, None)  # type: ignore[arg-type]
    assert weights.tolist() == [6.0] * 8  # 2 * 3
    losses = method.losses(run.policy, batch, None)  # type: ignore[arg-type]
    assert [*losses] == ["one/pull", "two/pull"]
    assert losses["two/pull"].item() == pytest.approx(3.0 * bias.sum().item())
    bias.grad = torch.ones(2)
    method.transform_grads(run.policy)
    assert bias.grad.tolist() == [10.0, 10.0]  # ((1 * 2) + 1) * 3 + 1
    run.iterate()
    calls = ["before_update", *["after_step"] * 4]
    assert [m.calls for m in method.methods.values()] == [calls, calls]  # type: ignore[attr-defined]
    row = run.rows[-1]
    assert (row["one/factor"], row["two/factor"]) == (2.0, 3.0)
    assert row["two/pull_grad_norm"] == pytest.approx(3.0 * 2.0**0.5)
    assert row["two/pull_grad_ratio"] == pytest.approx(1.5 * row["one/pull_grad_ratio"])
    assert [m.folder.name for m in method.methods.values()] == ["one", "two"]  # type: ignore[attr-defined]


def test_each_gets_its_own_state():
    method, again = composed(), composed()
    state = method.state_dict()
    assert {name: float(t) for name, t in state.items()} == {"one/kept": 2.0, "two/kept": 3.0}
    again.load_state_dict({"one/kept": torch.tensor(7.0), "two/kept": torch.tensor(8.0)})
    kept: list[Tensor] = [m.kept for m in again.methods.values()]  # type: ignore[attr-defined]
    assert kept == [7.0, 8.0]


def test_observations_are_kept_if_one_needs_them():
    assert not composed().needs_observations
    replay = make_method("own_replay", {})
    assert composed(two=replay).needs_observations


def test_streams_are_changed_in_turn():
    stream = TaskStream(train_tasks=("a", "b"), episodes_per_task=3)
    joint = composed(two=make_method("multitask", {})).stream(stream)
    assert joint.joint


def test_groups_chain_and_two_that_want_the_same_are_refused():
    policy = ToyPolicy()
    groups = PPO.param_groups(policy, PPOConfig(learning_rate=0.1))
    one = Factor(FactorConfig(factor=0.5))
    changed = composed(one=one).param_groups(policy, groups)
    assert [group.learning_rate for group in changed] == [0.05, PPOConfig().value_learning_rate]
    both = composed(one=one, two=Factor(FactorConfig()))
    message = r"'two': param_groups changes 'head.0.bias', which 'one' has .* \(4 parameters in all"
    with pytest.raises(ConfigError, match=message):
        both.param_groups(policy, groups)


def test_two_that_freeze_the_same_are_refused(tmp_path: Path):
    wanting = Plain(FactorConfig(names=("head.0.bias",)))
    other = Plain(FactorConfig(names=("head.0.weight",)))
    policy = ToyTraining(composed(one=wanting, two=other), tmp_path, num_tasks=1)
    policy.begin(1)  # different ones
    assert not policy.policy.head[0].bias.requires_grad

    class Unfreezing(Plain):
        def before_task(self, policy: Any, stage):
            policy.head[0].bias.requires_grad_(True)

    run = ToyTraining(composed(one=wanting, two=Unfreezing(FactorConfig())), tmp_path, num_tasks=1)
    with pytest.raises(ConfigError, match="'two': before_task changes 'head.0.bias', which 'one'"):
        run.begin(1)
