"""Does a learner keep what stages, methods and resumed runs rely on?"""

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, cast

import torch
from torch import Tensor

from vla_crl.algos.learner import Learner, LearnerConfig, policy_parameters
from vla_crl.algos.learner_checks import group_size_of
from vla_crl.algos.learners import require_learner
from vla_crl.algos.protocols import Batch, Reference
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError, SpecError
from vla_crl.testing.toy_learning import GaussianToy, TokenToy, Toy, ToyLabels, play

GROUP_SIZE = 4
TERM = "check"
"""Of the method that is tried."""


def check_learner(learner_class: type[Learner], config: LearnerConfig | None = None) -> None:
    """Let a learner learn on two toys, whose densities have one part and two, and check all.

    Args:
        learner_class: What to check.
        config: Its settings; those that are default if None. Where there are groups, of four.

    Raises:
        SpecError: The first violation, with what came and what was expected.
        ConfigError: The class is no learner, or a setting without a default was not given.
    """
    require_learner(learner_class, learner_class.__name__)
    settings = config or _default(learner_class)
    for make_toy in (GaussianToy, TokenToy):
        _Trial(learner_class, settings, make_toy).check()


class _Hooks:
    """A method that writes down who called it.

    Attributes:
        calls: Names of the hooks.
        scale: Of its own term, which pulls at every trained parameter.
        weight: Of every chunk.
    """

    def __init__(self, *, scale: float = 0.0, weight: float = 1.0) -> None:
        self.calls: list[str] = []
        self.scale, self.weight = scale, weight

    def before_update(self, policy: Any, rollout: Any) -> None:
        self.calls.append("before_update")

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        self.calls.append("sample_weights")
        return torch.full_like(batch.advantages, self.weight)

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        self.calls.append("losses")
        parameters = policy_parameters(policy).values()
        return {TERM: self.scale * cast(Tensor, sum(p.sum() for p in parameters))}

    def transform_grads(self, policy: Any) -> None:
        self.calls.append("transform_grads")

    def after_step(self, policy: Any) -> None:
        self.calls.append("after_step")


STEP = ["sample_weights", "losses", "transform_grads", "after_step"]


class _Trial:
    """One learner on one toy."""

    def __init__(
        self, learner_class: type[Learner], config: Any, make_toy: Callable[[], Toy]
    ) -> None:
        self._class, self._config, self._make_toy = learner_class, config, make_toy
        self._where = (
            f"check_learner: {learner_class.__name__} on a {make_toy().__class__.__name__}"
        )

    def check(self) -> None:
        self._check_repeatable()
        self._check_what_is_trained()
        self._check_policy_loss()
        self._check_hooks()
        self._check_state()
        self._check_finite()
        self._check_loss()

    def _begin(self, toy: Toy) -> Learner:
        reference = (
            _reference_of(self._make_toy) if self._class.reference_of(self._config) else None
        )
        with self._telling():
            return self._class(toy, self._config, reference=reference)

    @contextmanager
    def _telling(self) -> Generator[None]:
        """Let what the learner itself refuses in the block begin with what is checked."""
        try:
            yield
        except (SpecError, ConfigError) as error:
            raise SpecError(f"{self._where}: {error}") from error

    def _data(self, toy: Toy, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        if self._class.data == "demonstrations":
            return ToyLabels(toy, generator)
        return play(toy, generator, group_size=group_size_of(self._class, self._config))

    def _update(self, learner: Learner, toy: Toy, seed: int, hooks: _Hooks) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        with self._telling():
            return learner.update(self._data(toy, seed), hooks, generator)

    def _train(
        self, learner: Learner, toy: Toy, *, first: int = 0, last: int | None = None
    ) -> list[dict[str, float]]:
        """Update until the policy has learnt a little."""
        last = self._num_updates if last is None else last
        return [self._update(learner, toy, seed, _Hooks()) for seed in range(first, last)]

    @property
    def _num_updates(self) -> int:
        return self._class.num_warmup_iterations(self._config) + 2

    def _check_repeatable(self) -> None:
        ends, metrics = [], []
        for global_seed in (1, 2):
            toy = self._make_toy()
            torch.manual_seed(global_seed)  # what is random comes from the generator given alone
            metrics.append(self._train(self._begin(toy), toy))
            ends.append(toy.state_dict())
        self._require(
            _same(*ends) and str(metrics[0]) == str(metrics[1]),
            "gives other numbers when repeated; draw what is random from the generator alone",
        )
        for name, number in metrics[0][-1].items():
            self._require(
                type(number) is float, f"returns {name} = {number!r}, expected a float: use float()"
            )

    def _check_what_is_trained(self) -> None:
        toy = self._make_toy()
        frozen = next(iter(policy_parameters(toy)))
        dict(toy.named_parameters())[frozen].requires_grad_(False)
        before = copy.deepcopy(toy.state_dict())
        self._train(self._begin(toy), toy)
        after = toy.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        self._require(frozen not in moved, f"moved '{frozen}', which is frozen")
        self._require(
            bool(moved & policy_parameters(toy).keys()),
            "moved nothing of the policy in two updates after its warm-up",
        )
        values = {name for name in moved if name.startswith("value_head.")}
        self._require(
            self._class.needs_value or not values,
            f"moved {sorted(values)} of the value head, but says that it needs none (needs_value)",
        )

    def _check_policy_loss(self) -> None:
        learner, generator = self._begin_trained(), torch.Generator().manual_seed(100)
        data = self._data(self._toy, 100)
        learner.prepare(data, generator)
        learner.generator, felt = generator, False
        parameters = [*policy_parameters(self._toy).values()]
        for batch in learner.minibatches(data, generator):
            evaluation = self._toy.evaluate_actions(batch.context, batch.trace)
            loss = learner.terms(batch, evaluation).policy_loss.sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            felt = felt or any(bool(g.any()) for g in gradients if g is not None)
        self._require(
            felt,
            "has a policy_loss that has no gradient to the policy in any minibatch, whatever else "
            "moves it; make it of evaluation.density, without detach",
        )

    def _check_hooks(self) -> None:
        toy, hooks = self._make_toy(), _Hooks(scale=1e-3)
        learner = self._begin(toy)
        for seed in range(self._class.num_warmup_iterations(self._config)):
            before = {n: p.detach().clone() for n, p in policy_parameters(toy).items()}
            self._update(learner, toy, seed, hooks)
            self._require(not hooks.calls, f"calls {hooks.calls[:1]} in its warm-up, expected none")
            self._require(_same(before, policy_parameters(toy)), "moves the policy in its warm-up")
        metrics = self._update(learner, toy, 100, hooks)
        steps = int(metrics["optimizer_steps"])
        self._require(steps > 0, "took no step, see optimizer_steps")
        wanted = ["before_update", *STEP * steps]
        self._require(
            hooks.calls[: len(wanted)] == wanted
            and hooks.calls[len(wanted) :] in ([], STEP[:2]),  # a step that went too far
            f"calls the hooks as {hooks.calls[:6]}... ({len(hooks.calls)} in {steps} steps), "
            f"expected before_update once and then in every step {', '.join(STEP)}",
        )
        self._require(
            metrics.get(f"{TERM}_grad_norm", 0.0) > 0.0,
            f"does not add the terms of `losses` to its own: {TERM}_grad_norm is not there, or 0",
        )
        silent = self._update(self._begin_trained(), self._toy, 100, _Hooks(weight=0.0))
        self._require(
            silent["policy_loss"] == 0.0,
            f"has a policy_loss of {silent['policy_loss']} where sample_weights are all 0",
        )

    def _begin_trained(self) -> Learner:
        """Return a learner after its warm-up; what it learns on is `_toy`."""
        self._toy = self._make_toy()
        learner = self._begin(self._toy)
        self._train(learner, self._toy, last=self._class.num_warmup_iterations(self._config))
        return learner

    def _check_state(self) -> None:
        whole = self._make_toy()
        learner = self._begin(whole)
        self._train(learner, whole)
        state, half = learner.state_dict(), copy.deepcopy(whole)
        for name, value in cast(Mapping[str, Any], state).items():
            self._require(
                isinstance(value, Tensor),
                f"has a state_dict with '{name}', a {type(value).__name__}, expected tensors",
            )
        state = {name: tensor.clone() for name, tensor in state.items()}
        resumed = self._begin(half)
        resumed.load_state_dict(state)
        self._require(
            resumed.iteration == learner.iteration == self._num_updates,
            f"counts {learner.iteration} updates, and {resumed.iteration} when its state is loaded;"
            f" expected {self._num_updates} (iteration)",
        )
        for each, toy in ((learner, whole), (resumed, half)):
            self._train(each, toy, first=self._num_updates, last=self._num_updates + 1)
        self._require(
            _same(whole.state_dict(), half.state_dict()),
            "goes on otherwise from its state_dict than without a stop; put all that changes in it",
        )

    def _check_finite(self) -> None:
        learner = self._begin_trained()
        before = copy.deepcopy(self._toy.state_dict())
        try:
            self._update(learner, self._toy, 100, _Hooks(scale=float("nan")))
        except FloatingPointError:
            self._require(
                _same(before, self._toy.state_dict()), "took a step with a loss that is no number"
            )
        else:
            self._require(holds=False, otherwise="raises no FloatingPointError for a loss of NaN")

    def _check_loss(self) -> None:
        learner = self._begin_trained()
        data, generator = self._data(self._toy, 100), torch.Generator()
        learner.prepare(data, generator)
        batch = next(iter(data.minibatches(8, generator)))
        loss = learner.loss(batch, self._toy.evaluate_actions(batch.context, batch.trace))
        self._require(
            isinstance(cast(Any, loss), Tensor) and loss.shape == () and loss.requires_grad,
            f"has a loss of a batch that is {loss!r}, expected a scalar with a gradient",
        )

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise SpecError(f"{self._where} {otherwise}")


def _default(learner_class: type[Learner]) -> Any:
    """Return settings of a learner as it comes, with groups as small as the toys'."""
    config_class, name = learner_class.config_class, learner_class.__name__
    chosen: dict[str, Any] = {"kind": name, "minibatch_size": 32, "learning_rate": 1e-2}
    known = {each.name: each for each in fields(config_class) if each.init}
    small = {"group_size": GROUP_SIZE, "num_epochs": 2, "teacher": "a toy"}
    chosen |= {key: value for key, value in small.items() if key in known}
    for key, each in known.items():
        if key not in chosen and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(
                f"check_learner: {name} has no default of its setting '{key}'; say which: "
                f"check_learner({name}, {config_class.__name__}(kind='{name}', {key}=...))"
            )
    return config_class(**chosen)


def _reference_of(make_toy: Callable[[], Toy]) -> Reference:
    teacher = make_toy()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2)

    def density(batch: Batch) -> Any:
        with torch.no_grad():
            return teacher.evaluate_actions(batch.context, batch.trace).density

    return density


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
