"""Does a continual-learning method keep the contract that the stage loop relies on?"""

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_crl.algos.protocols import Batch, ParamGroup, Rollout
from vla_crl.continual.known_methods import find_methods, make_method
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_checks import method_state
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.stream import TaskStream
from vla_crl.density import Evaluation
from vla_crl.errors import SpecError
from vla_crl.testing.class_attributes import changed_attribute, class_attributes
from vla_crl.testing.toy_stream import ToyPolicy, ToyTraining

NUM_TASKS, NUM_ITERATIONS, STOP = 2, 4, 2
"""Of the toy stream; after how many iterations of a stage it is stopped."""
RANK = 4
"""Of the adapters that are trained."""


def check_method(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Train adapters by a method on toy tasks, stop, go on, and check that it keeps its contract.

    It takes a few seconds. What is checked, in this order: that hooks return what the loop can use;
    that they leave frozen parameters, the value head and its gradients alone; that no object shares
    what changes with others of its class; that each loss is finite and reaches the policy; that
    equal seeds give equal numbers; that a stage that was
    stopped in the middle goes on to the same numbers; that a new object with the loaded state gives
    the same state. Demonstrations of the toy tasks are of one step each, with what is seen as the
    state and empty pictures: `LabelledSteps` makes batches of them as of others.

    Args:
        name: As in a recipe: of a known method, "module:Class", or several with a + between.
        settings: As in a recipe.

    Raises:
        SpecError: The first violation, with what came and what was expected.
        ConfigError: No such method or settings, or a hook that is misspelt, cannot be called,
            returns what the loop cannot use, or uses what is not there yet.
    """
    given = dict(settings or {})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def begin(place: str) -> ToyTraining:
            method = _Watched(make_method(name, given))
            return ToyTraining(
                method, root / place, num_tasks=NUM_TASKS, num_iterations=NUM_ITERATIONS, rank=RANK,
                name=name,
            )  # fmt: skip

        classes = find_methods(name).values()
        whole, shared = begin("whole"), class_attributes(classes)
        whole.train()
        changed = changed_attribute(shared, class_attributes(classes))
        _require(
            changed is None,
            f"{changed} changes in training, and all objects of the class share it, those of other "
            "runs too; make it in __init__, and put it into state_dict",
        )
        assert isinstance(whole.method, _Watched)
        _check_losses(whole.method)
        again = begin("again")
        again.train()
        _require_equal(
            _rows(whole), _rows(again),
            "two trainings with the same seeds differ in {}; draw from stage.generator or stage.rng"
        )  # fmt: skip
        _check_going_on(begin, whole, name)
        _check_state(begin, whole, name)


class _Watched(ContinualMethod):
    """A method whose hooks are looked at while they are called.

    Attributes:
        terms: By name of a loss, whether its gradient was any, step by step.
    """

    def __init__(self, method: ContinualMethod) -> None:
        super().__init__(method.config)
        self.method = method
        self.terms: dict[str, list[bool]] = {}

    def stream(self, stream: TaskStream) -> TaskStream:
        return self.method.stream(stream)

    def check(self, policy: Any, learner: Any, evaluation: Evaluation) -> None:
        self.method.check(policy, learner, evaluation)

    def param_groups(self, policy: Any, groups: list[ParamGroup]) -> list[ParamGroup]:
        with _unchanged(policy, "param_groups"):
            return self.method.param_groups(policy, groups)

    def before_task(self, policy: Any, stage: Stage) -> None:
        value = {n for n, p in policy.value_head.named_parameters() if not p.requires_grad}
        with _unchanged(policy, "before_task", all_but=_trained(policy)):
            self.method.before_task(policy, stage)
        now = {n for n, p in policy.value_head.named_parameters() if not p.requires_grad}
        _require(value == now, "before_task freezes the value head; leave it alone")

    def before_update(self, policy: Any, rollout: Rollout) -> None:
        with _unchanged(policy, "before_update"):
            self.method.before_update(policy, rollout)

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        weights = self.method.sample_weights(batch, evaluation)
        _require(
            not (isinstance(weights, Tensor) and weights.requires_grad),
            "sample_weights carries a gradient; detach what becomes a weight",
        )
        return weights

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        with _unchanged(policy, "losses"):
            losses = self.method.losses(policy, batch, evaluation)
        if isinstance(losses, dict):  # of anything else the learning rule tells
            for name, loss in losses.items():
                self._look_at(policy, name, loss)
        return losses

    def transform_grads(self, policy: Any) -> None:
        before = _value_gradients(policy)
        with _unchanged(policy, "transform_grads"):
            self.method.transform_grads(policy)
        now = _value_gradients(policy)
        _require_equal(
            before, now, "transform_grads changes the gradient of the value head's {}; leave it"
        )

    def after_step(self, policy: Any) -> None:
        with _unchanged(policy, "after_step", all_but=_trained(policy)):
            self.method.after_step(policy)

    def after_task(self, policy: Any, stage: Stage) -> None:
        with _unchanged(policy, "after_task", all_but=_trained(policy)):
            self.method.after_task(policy, stage)

    def metrics(self) -> dict[str, float]:
        return self.method.metrics()

    def state_dict(self) -> dict[str, Tensor]:
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.method.load_state_dict(state)

    def _look_at(self, policy: Any, name: str, loss: Any) -> None:
        """Note whether a loss reaches the policy, and that it does not reach the value head."""
        if not isinstance(loss, Tensor) or loss.dim():
            return  # the learning rule tells
        number = loss.detach().item()
        _require(math.isfinite(number), f"losses['{name}'] is {number}, expected a finite number")
        felt = False
        trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        if loss.requires_grad:
            found = torch.autograd.grad(
                loss, [*trained.values()], retain_graph=True, allow_unused=True
            )
            for parameter, gradient in zip(trained, found, strict=True):
                if gradient is None or not gradient.any():
                    continue
                _require(
                    not parameter.startswith("value_head."),
                    f"losses['{name}'] has a gradient to the value head; protecting the critic "
                    "hurts",
                )
                felt = True
        self.terms.setdefault(name, []).append(felt)


def _trained(policy: ToyPolicy) -> set[str]:
    """Return the parameters that a method may change: those that are trained, but for the value."""
    return {
        name
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and not name.startswith("value_head.")
    }


@contextmanager
def _unchanged(policy: Any, hook: str, all_but: Collection[str] = ()) -> Iterator[None]:
    """Check that parameters are after the block what they were before."""
    before = {n: t.detach().clone() for n, t in policy.state_dict().items() if n not in all_but}
    yield
    now = policy.state_dict()
    for name in before.keys() - now.keys():
        _require(".lora_" in name, f"{hook} removes '{name}', which is no adapter's")
        del before[name]
    for name, tensor in before.items():
        what = "the value head" if name.startswith("value_head.") else "a frozen parameter"
        what = "a trained parameter" if name in _trained(policy) else what
        _require(
            torch.equal(tensor, now[name]),
            f"{hook} changes '{name}', {what}; what is trained may be changed in before_task, "
            "after_step and after_task, nothing else ever",
        )


def _check_losses(method: _Watched) -> None:
    for name, felt in method.terms.items():
        _require(
            any(felt),
            f"losses['{name}'] has never had a gradient to the policy, in {len(felt)} steps; it is "
            "computed without a graph, detached, or its coefficient is 0",
        )


def _check_going_on(begin: Callable[[str], ToyTraining], whole: ToyTraining, name: str) -> None:
    """Stop in the middle of each stage, go on with new objects, and compare with the whole."""
    stopped = begin("stopped")
    done = 0
    for number, _ in stopped.stream.stages():
        beginning = _state(stopped, name)
        start = {n: t.clone() for n, t in stopped.policy.state_dict().items()}
        adapters = stopped.policy.adapters.record()
        stopped.begin(number)
        for _ in range(STOP):
            stopped.iterate()
        state = stopped.state()
        resumed = begin("stopped")
        resumed.method.load_state_dict(beginning)
        resumed.policy.adapters.arrange(adapters)
        resumed.policy.load_state_dict(start)
        resumed.begin(number)
        resumed.load_state(state)
        for _ in range(resumed.num_iterations - STOP):
            resumed.iterate()
        resumed.close()
        done += resumed.num_iterations
        expected = whole.rows[done - resumed.num_iterations + STOP : done]
        for wanted, found in zip(expected, resumed.rows, strict=True):
            _require_equal(
                _numbers(wanted), _numbers(found),
                f"stage {number}, stopped after iteration {STOP} and gone on with, differs in {{}} "
                "from one that was not; put what changes in a stage into state_dict",
            )  # fmt: skip
        stopped = resumed


def _check_state(begin: Callable[[str], ToyTraining], whole: ToyTraining, name: str) -> None:
    state = _state(whole, name)
    fresh = begin("whole")
    fresh.method.load_state_dict({key: tensor.clone() for key, tensor in state.items()})
    found = _state(fresh, name)
    lost = sorted(state.keys() ^ found.keys())
    _require(not lost, f"load_state_dict loses or adds '{lost[0] if lost else ''}' of state_dict")
    _require_equal(state, found, "load_state_dict changes '{}' of state_dict")


def _state(run: ToyTraining, name: str) -> dict[str, Tensor]:
    """Return a copy of the state of a method, on the CPU."""
    return {n: t.detach().cpu().clone() for n, t in method_state(run.method, name).items()}


def _rows(run: ToyTraining) -> dict[str, Tensor]:
    numbers = {
        f"'{key}' of iteration {index}": torch.tensor(value)
        for index, row in enumerate(run.rows, start=1)
        for key, value in row.items()
    }
    weights = {f"'{n}' at the end": t for n, t in run.policy.state_dict().items()}
    return numbers | weights


def _numbers(row: Mapping[str, float]) -> dict[str, Tensor]:
    return {f"'{key}'": torch.tensor(value) for key, value in row.items()}


def _value_gradients(policy: Any) -> dict[str, Tensor]:
    return {
        f"'{name}'": torch.zeros(()) if p.grad is None else p.grad.clone()
        for name, p in policy.value_head.named_parameters()
    }


def _require_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], message: str) -> None:
    """Check that tensors are the same; {} in the message is the first that is not."""
    for name in [*one, *other]:
        same = (
            name in one
            and name in other
            and torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
        )
        _require(same, message.format(name))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SpecError(f"check_method: {message}")
