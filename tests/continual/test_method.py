import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import ActorCritic, Batch, ParamGroup, Rollout, UpdateHooks
from vla_crl.continual.known_methods import METHODS, make_method
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.continual.method_checks import (
    method_groups,
    method_metrics,
    method_state,
    method_stream,
)
from vla_crl.continual.methods.sequential import SequentialFineTuning
from vla_crl.continual.stream import TaskStream
from vla_crl.density import Evaluation, GaussianDensity
from vla_crl.errors import ConfigError
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.rows import Rows

Terms = Mapping[str, Tensor]


@dataclass(frozen=True)
class Features(Rows):
    features: Tensor


@dataclass(frozen=True)
class Sample(Rows):
    action: Tensor


class GaussianPolicy(nn.Module):
    """One action with mean w * x and standard deviation 1."""

    learnt_exploration: tuple[str, ...] = ()

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Linear(1, 1, bias=False)
        self.value_head = nn.Linear(1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(self.mean.weight, weight)

    @property
    def weight(self) -> float:
        return self.mean.weight.item()

    def evaluate_actions(self, context: Features, trace: Sample, /) -> Evaluation:
        mean = self.mean(context.features)
        density = GaussianDensity(trace.action[:, None], mean[:, None], torch.ones(1, 1, 1))
        return Evaluation(density, self.value_head(context.features).squeeze(-1))

    def encode(self, seen: Features, /) -> Features:
        return seen

    def imitation(
        self, context: Features, actions: Tensor, mask: Tensor, generator: object, /
    ) -> Tensor:
        return (self.mean(context.features)[:, None] - actions).square().mean(dim=(1, 2))


def collect(policy: GaussianPolicy, num_slots: int = 8) -> RolloutStorage:
    """One chunk per slot at x = 1; the reward is the action, so a larger w is better."""
    context = Features(torch.ones(num_slots, 1))
    noise = torch.randn(num_slots, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trace = Sample(policy.mean(context.features) + noise)
        found = policy.evaluate_actions(context, trace)
    no, number, reward = torch.zeros(num_slots) > 0, torch.arange(num_slots), trace.action[:, 0]
    step = Step(
        seen=None,
        context=context,
        trace=trace,
        actions=trace.action[:, None],
        log_probs=found.density.log_prob(),
        values=found.value,
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
    storage = RolloutStorage(1, num_slots, step)
    storage.add(0, step)
    storage.finish(np.zeros((1, num_slots)))
    return storage


def update(
    policy: GaussianPolicy, method: UpdateHooks, iterations: int = 1, **settings: Any
) -> dict[str, float]:
    defaults: dict[str, Any] = {
        "learning_rate": 0.05,
        "value_warmup_iterations": 0,
        "minibatch_size": 4,
        "num_epochs": 2,
        "target_kl": None,
    }
    ppo, metrics = PPO(policy, PPOConfig(**(defaults | settings))), {}
    for _ in range(iterations):
        metrics = ppo.update(collect(policy), method, torch.Generator().manual_seed(0))
    return metrics


class Recording(ContinualMethod):
    """Write down which hook was called."""

    def __init__(self) -> None:
        super().__init__(NoSettings())
        self.calls: list[str] = []

    def before_update(self, policy: ActorCritic, rollout: Rollout) -> None:
        assert rollout.returns.any()  # estimated
        self.calls.append("before_update")

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        self.calls.append("sample_weights")
        return super().sample_weights(batch, evaluation)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        assert evaluation.density.log_prob().requires_grad
        self.calls.append(f"losses of {len(batch)}")
        return super().losses(policy, batch, evaluation)

    def transform_grads(self, policy: ActorCritic) -> None:
        assert all(p.grad is not None for p in policy_parameters(policy).values())
        self.calls.append("transform_grads")

    def after_step(self, policy: ActorCritic) -> None:
        self.calls.append("after_step")


def test_every_step_calls_the_hooks_in_order():
    method = Recording()
    metrics = update(GaussianPolicy(), method)
    step = ["sample_weights", "losses of 4", "transform_grads", "after_step"]
    assert metrics["optimizer_steps"] == 4
    assert method.calls == ["before_update", *step * 4]


def test_no_hook_is_called_in_the_value_warm_up():
    method = Recording()
    update(GaussianPolicy(), method, value_warmup_iterations=1)
    assert method.calls == []


def test_the_base_changes_nothing():
    class Bare:
        """The hooks written out as the identity."""

        def before_update(self, policy: Any, rollout: Any) -> None: ...

        def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
            return torch.ones(len(batch))

        def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
            return {}

        def transform_grads(self, policy: Any) -> None: ...

        def after_step(self, policy: Any) -> None: ...

    base, bare = GaussianPolicy(), GaussianPolicy()
    update(base, make_method("sequential", {}))
    update(bare, Bare())
    assert base.weight == bare.weight > 0.1


class Anchor(ContinualMethod):
    """Pull the weight towards -1."""

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        weight = policy_parameters(policy)["mean.weight"]
        return {"anchor": 100.0 * (weight + 1.0).square().sum()}


def test_a_term_pulls_the_weights():
    free, anchored = GaussianPolicy(), GaussianPolicy()
    update(free, SequentialFineTuning(NoSettings()), iterations=20)
    metrics = update(anchored, Anchor(NoSettings()), iterations=20)
    assert free.weight > 1.0
    assert anchored.weight == pytest.approx(-1.0, abs=0.05)
    assert metrics["anchor"] < 1.0


def test_a_term_enters_the_loss_once():
    # At w = 0 the term is 100 * 1; one step over the whole rollout.
    metrics = update(GaussianPolicy(), Anchor(NoSettings()), minibatch_size=8, num_epochs=1)
    assert metrics["anchor"] == 100.0
    # d/dw 100 (w + 1)^2 = 200 at w = 0; the policy's own gradient is at most of order 1.
    assert metrics["grad_norm"] == pytest.approx(200.0, abs=3.0)


class ZeroGradients(ContinualMethod):
    """Freeze by zero."""

    def transform_grads(self, policy: ActorCritic) -> None:
        for parameter in policy_parameters(policy).values():
            assert parameter.grad is not None
            parameter.grad.zero_()


def test_zeroed_gradients_freeze_the_policy_and_not_the_value_head():
    policy = GaussianPolicy(0.25)
    update(policy, ZeroGradients(NoSettings()), iterations=5)
    assert policy.weight == 0.25
    assert policy.value_head.bias.item() != 0.0


class ScaleGradients(ContinualMethod):
    def transform_grads(self, policy: ActorCritic) -> None:
        for parameter in policy_parameters(policy).values():
            assert parameter.grad is not None
            parameter.grad.mul_(1e6)


def test_gradients_are_clipped_after_the_transform():
    # grad_norm is measured just before clipping, so it shows the transformed gradient.
    plain = update(GaussianPolicy(), SequentialFineTuning(NoSettings()), num_epochs=1)
    scaled = update(GaussianPolicy(), ScaleGradients(NoSettings()), num_epochs=1)
    assert scaled["grad_norm"] > 1e4 * plain["grad_norm"]


class NothingCounts(ContinualMethod):
    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        return torch.zeros_like(batch.advantages)


def test_sample_weights_of_zero_silence_the_policy_loss():
    policy = GaussianPolicy(0.25)
    metrics = update(policy, NothingCounts(NoSettings()))
    assert policy.weight == 0.25
    assert metrics["policy_loss"] == 0.0
    assert metrics["value_loss"] > 0.0


class MovingAverage(ContinualMethod):
    """Half of the way towards the present weight after every step."""

    def __init__(self) -> None:
        super().__init__(NoSettings())
        self.average = torch.zeros(())

    def after_step(self, policy: ActorCritic) -> None:
        weight = policy_parameters(policy)["mean.weight"].detach().squeeze()
        self.average = 0.5 * self.average + 0.5 * weight

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average = state["average"]


def test_after_step_sees_the_new_weights():
    policy, method = GaussianPolicy(), MovingAverage()
    update(policy, method, minibatch_size=8, num_epochs=1)
    assert method.average == pytest.approx(0.5 * policy.weight)
    assert policy.weight != 0.0


def test_state_survives_a_restart():
    policy, method, resumed = GaussianPolicy(), MovingAverage(), MovingAverage()
    update(policy, method)
    resumed.load_state_dict(method.state_dict())
    assert resumed.average == method.average


def test_hooks_of_the_base_do_nothing(make_stage):
    method, policy = make_method("sequential", {}), GaussianPolicy(0.5)
    stream = TaskStream(train_tasks=("a", "b"), episodes_per_task=3)
    assert method.stream(stream) is stream
    groups = PPO.param_groups(policy, PPOConfig())
    assert method.param_groups(policy, groups) is groups
    method.before_task(policy, make_stage())
    method.after_task(policy, make_stage())
    assert policy.weight == 0.5
    assert method.state_dict() == method.metrics() == {}
    method.load_state_dict({})


def test_base_hooks_fit_any_device_and_type():
    policy = GaussianPolicy()
    batch = next(collect(policy).minibatches(8, torch.Generator()))
    evaluation = policy.evaluate_actions(cast(Any, batch.context), cast(Any, batch.trace))
    method = make_method("sequential", {})
    assert method.sample_weights(batch, evaluation).tolist() == [1.0] * 8
    assert method.losses(policy, batch, evaluation) == {}


@pytest.mark.parametrize("name", METHODS)
def test_every_listed_method_can_be_built(name: str):
    assert isinstance(make_method(name, {}), ContinualMethod)


def test_sequential_fine_tuning_is_listed():
    assert type(make_method("sequential", {})) is SequentialFineTuning


@dataclass(frozen=True, kw_only=True)
class StrengthConfig:
    """Settings of `WithStrength`."""

    strength: float = 1.0


class WithStrength(ContinualMethod):
    config_class = StrengthConfig


def test_own_method_is_built_from_its_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])
    method = make_method("my_package:WithStrength", {"strength": 2})
    assert method.config == StrengthConfig(strength=2.0)


def test_setting_that_a_method_does_not_have_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])
    with pytest.raises(ConfigError, match="unknown key 'strenght'.*Did you mean 'strength'"):
        make_method("my_package:WithStrength", {"strenght": 2})
    with pytest.raises(ConfigError, match="method 'sequential': unknown key 'strength'"):
        make_method("sequential", {"strength": 2})


def test_unknown_method_is_an_error():
    with pytest.raises(ConfigError, match="unknown method 'sequentail'. Did you mean 'sequential'"):
        make_method("sequentail", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_package:Method",
            "method: 'no_such_package:Method': there is no module 'no_such_package'",
        ),
        (
            "vla_crl.continual.methods.sequential:SequentialTuning",
            "method: unknown name in vla_crl.continual.methods.sequential 'SequentialTuning'. "
            "Did you mean 'SequentialFineTuning'",
        ),
    ],
)
def test_method_that_cannot_be_imported_is_an_error(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        make_method(name, {})


def test_method_of_another_kind_is_an_error():
    with pytest.raises(ConfigError, match="is not a subclass of ContinualMethod"):
        make_method("vla_crl.algos.ppo:PPO", {})


def test_methods_do_not_load_simulator_or_transformers():
    code = (
        "import sys, vla_crl.continual.known_methods as m; m.make_method('sequential', {});"
        "print([n for n in ('mujoco', 'transformers', 'numba') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class WithoutConfig(ContinualMethod):
    def __init__(self) -> None:
        super().__init__(NoSettings())


class WithoutTask(ContinualMethod):
    def before_task(self, policy: ActorCritic) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


class AsksForMore(ContinualMethod):
    def sample_weights(self, batch: Batch, evaluation: Evaluation, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.zeros(len(batch)) * scale


class NoFunction(ContinualMethod):
    after_step = 3  # pyright: ignore[reportAssignmentType]


class Misspelt(ContinualMethod):
    def after_tasks(self, policy: Any, stage: Any) -> None:
        pass


class Helped(ContinualMethod):
    """Has a function whose name is like that of a hook that is there as well."""

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        return {"pull": self.loss(batch)}

    def loss(self, batch: Batch) -> Tensor:
        return batch.advantages.mean()


class OtherWays(ContinualMethod):
    """As Python allows: other names, more arguments with a default, no `self`."""

    def __init__(self, settings: NoSettings, verbose: bool = False) -> None:
        super().__init__(settings)

    def before_task(self, *arguments: Any, **others: Any) -> None:
        pass

    @staticmethod
    def after_step(policy: ActorCritic) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    @classmethod
    def transform_grads(cls, policy: ActorCritic) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (WithoutConfig, r"__init__\(self\) .*expected __init__\(self, config\)"),
        (WithoutTask, r"before_task\(self, policy.* expected before_task\(self, policy, stage\)"),
        (
            AsksForMore,
            r"sample_weights\(self, .*scale.* expected sample_weights\(self, batch, eval",
        ),
        (
            Misspelt,
            r"after_tasks \(.*method.py:\d+\) is called by nobody. Did you mean 'after_task'\?",
        ),
        (NoFunction, r"after_step = 3 cannot be called .* expected after_step\(self, policy\)"),
    ],
)
def test_hooks_with_other_arguments_are_refused_before_the_work(
    method: type[ContinualMethod], message: str
):
    name = f"{__name__}:{method.__name__}"
    with pytest.raises(ConfigError, match=f"method '{name}': {message}"):
        make_method(name, {})


def test_hooks_may_be_written_in_any_way_that_the_loop_can_call():
    assert isinstance(make_method(f"{__name__}:OtherWays", {}), OtherWays)
    assert isinstance(make_method(f"{__name__}:Helped", {}), Helped)


class Odd(ContinualMethod):
    """Returns what the test says."""

    def __init__(self, value: Any) -> None:
        super().__init__(NoSettings())
        self.value = value

    def stream(self, stream: TaskStream) -> Any:
        return self.value

    def param_groups(self, policy: ActorCritic, groups: list[ParamGroup]) -> Any:
        return self.value

    def metrics(self) -> Any:
        return self.value

    def state_dict(self) -> Any:
        return self.value


STREAM = TaskStream(train_tasks=("a", "b"), episodes_per_task=3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"stream\(\) is a NoneType, expected a TaskStream"),
        (
            replace(STREAM, train_tasks=("a",)),
            r"stream\(\) has other tasks \(a\), expected .* a, b",
        ),
    ],
)
def test_a_stream_of_other_tasks_is_refused(value: Any, message: str):
    with pytest.raises(ConfigError, match=f"method 'm': {message}"):
        method_stream(Odd(value), "m", STREAM)


def test_a_stream_in_another_order_is_taken():
    other = replace(STREAM, train_tasks=("b", "a"))
    assert method_stream(Odd(other), "m", STREAM) is other


def group(policy: GaussianPolicy, *names: str, name: str = "policy") -> ParamGroup:
    parameters = dict(policy.named_parameters())
    return ParamGroup(name, {n: parameters[n] for n in names}, 0.1)


def test_groups_have_every_trainable_parameter_once():
    policy = GaussianPolicy()
    policy.value_head.bias.requires_grad_(False)
    mean, value = group(policy, "mean.weight"), group(policy, "value_head.weight", name="value")
    assert method_groups(Odd([mean, value]), "m", policy, [mean, value]) == [mean, value]
    frozen = group(policy, "value_head.weight", "value_head.bias", name="value")
    twice = group(policy, "value_head.weight", "mean.weight", name="value")
    for groups, message in (
        ([mean], r"leaves out 'value_head.weight' \(1 in all\), which is trainable"),
        ([mean, frozen], "has 'value_head.bias' in 'value', which is not trainable"),
        ([mean, twice], "has 'mean.weight' in 'policy' and in 'value'"),
        ({"policy": mean}, "is a dict, expected a list of ParamGroup"),
    ):
        with pytest.raises(ConfigError, match=rf"method 'm': param_groups\(\) {message}"):
            method_groups(Odd(groups), "m", policy, [mean, value])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, r"metrics\(\) is a float, expected a dictionary of numbers"),
        ({"pull": torch.zeros(())}, r"metrics\(\)\['pull'\] is a Tensor, .*; of a tensor .item"),
        ({"kl": 1.0}, r"metrics\(\) has 'kl', which a line of metrics.jsonl has already"),
    ],
)
def test_metrics_that_are_none_are_refused(value: Any, message: str):
    assert method_metrics(Odd({"pull": 3}), "m", {"kl": 0.1}) == {"pull": 3.0}
    with pytest.raises(ConfigError, match=f"method 'm': {message}"):
        method_metrics(Odd(value), "m", {"kl": 0.1})


def test_a_state_that_is_none_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'m': state_dict\(\) is a NoneType, expected a dict"):
        method_state(Odd(None), "m")
