"""What a continual-learning method can do, and where: hooks of the update and of the stages."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vla_crl.algos.protocols import ActorCritic, Batch, Rollout
from vla_crl.catalog import load_attribute
from vla_crl.config import Settings, from_mapping
from vla_crl.continual.own_methods import OwnMethod, own_methods
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError, unknown_name

Collect = Callable[[], Rollout]
"""Collects one fresh rollout of the current task with the current policy, advantages included. The
next one is written over it; its minibatches are copies."""


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """Settings of a method that has none."""


class ContinualMethod:
    """Base of all methods; every hook does nothing here, which is sequential fine-tuning.

    The calling loop, hooks marked with `->`:

        for stage, task in stream.stages():
          -> method.before_task(policy, task)
            learner = PPO(policy, config)           # or another; trains what `requires_grad` says
            while episodes remain:
                rollout = collect()
              -> method.before_update(policy, rollout)
                for minibatch in ...:               # Learner.update, after a value warm-up
                    evaluation = policy.evaluate_actions(...)
                  -> loss = mean(method.sample_weights(minibatch, evaluation) * policy loss)
                  ->      + all of method.losses(policy, minibatch, evaluation)
                    backward
                  -> method.transform_grads(policy)
                    clip the gradients, step
                  -> method.after_step(policy)
          -> method.after_task(policy, task, collect)
            for each task:
              -> with method.evaluating(policy, task): evaluate
          -> save method.state_dict()               # and load_state_dict on resuming

    Stage 0, before any `before_task`, is evaluated and saved too. On resuming, `load_state_dict`
    comes first and stages that are done are not repeated. In the middle of a stage the state of its
    beginning is loaded, `before_task` called, and then the state of the moment loaded; so all that
    changes in a stage belongs into it, random numbers from torch's own generator on the CPU
    excepted, which is put back too. Contexts come without gradient, except
    where adapters of the backbone are trained: there each minibatch has fresh ones with the graph,
    so detach what is kept.

        class Anchor(ContinualMethod):                # my_methods.py, in a folder that the variable
            config_class = AnchorConfig               # VLA_CRL_PATH (or PYTHONPATH) lists;
            ...                                       # frozen dataclass: strength: float = 1.0

        vla-crl train demo --method my_methods:Anchor --method-settings.strength 3
                                                      # or method = in a recipe, and its settings
                                                      # under [method_settings]

    A method changes the policy's trainable parameters (the dictionary name -> parameter that
    `vla_crl.algos.learner.policy_parameters(policy)` returns), never the value head: protecting the
    critic hurts (Continual World, arXiv 2105.10919). Subclasses with settings name their frozen
    dataclass in `config_class` and get an instance as `self.config`.
    """

    config_class: ClassVar[type] = NoSettings

    def __init__(self, config: Any) -> None:
        self.config = config

    def before_task(self, policy: ActorCritic, task: str) -> None:
        """Prepare a stage: choose which adapters to train, divide the replay memory.

        Only adapters and the value head may be trained: the checkpoints of a run hold nothing else.
        Adapters stay those that there are: a checkpoint with others could not be loaded.
        """

    def before_update(self, policy: ActorCritic, rollout: Any) -> None:
        """Look at all data of an update, advantages included, before its first step."""

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the factor [B] on each chunk's policy loss."""
        return torch.ones_like(batch.advantages)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> Mapping[str, Tensor]:
        """Return scalars to add to the loss, by name, with gradients to the policy."""
        return {}

    def transform_grads(self, policy: ActorCritic) -> None:
        """Change `.grad` of the policy's parameters in place, after backward, before clipping.

        A gradient of zero stops an entry only as long as Adam has no memory of an earlier one,
        so decide what is frozen before the stage begins; `.grad = None` stops a whole parameter.
        """

    def after_step(self, policy: ActorCritic) -> None:
        """Look at the policy after an optimizer step: path integrals, averages, multipliers."""

    def after_task(self, policy: ActorCritic, task: str, collect: Collect) -> None:
        """Close a stage: estimate importance, fill the memory, prune or average adapters.

        Args:
            policy: As trained on `task`.
            task: The task of the stage.
            collect: Gives fresh rollouts of `task`, beyond the stage's budget of episodes.
        """

    def evaluating(self, policy: ActorCritic, task: str) -> AbstractContextManager[None]:
        """Return a context in which the policy is as it should be tested on `task`.

        The checkpoints of a method with a context of its own are for resuming alone: loaded as a
        policy they would not act as they were measured, and are refused.
        """
        return nullcontext()

    @property
    def chooses(self) -> bool:
        """Whether it chooses for every task what acts, by an `evaluating` of its own."""
        return getattr(self.evaluating, "__func__", None) is not ContinualMethod.evaluating

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has to survive a restart, flat and by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned; the tensors are on the CPU."""


METHODS = {
    "sequential": "vla_crl.continual.methods.sequential:SequentialFineTuning",
}
"""Known methods by name, as "module:Attribute", imported on use."""


def find_method(name: str) -> type[ContinualMethod]:
    """Return a method by its name in `METHODS`, or any other by "package.module:Attribute".

    Raises:
        ConfigError: There is no such method, its module fails, or a hook takes other arguments.
    """
    if name not in METHODS and ":" not in name:
        raise unknown_name("method", "method", name, [*METHODS, *_own_methods()[0]])
    found = load_attribute(METHODS.get(name, name), "method", fits=_is_method)
    if not _is_method(found):
        raise ConfigError(f"method '{name}': is not a subclass of ContinualMethod")
    method_class = cast(type[ContinualMethod], found)
    if not dataclasses.is_dataclass(method_class.config_class):
        raise ConfigError(
            f"method '{name}': config_class is {method_class.config_class!r}, expected a dataclass"
        )
    _require_signatures(method_class, name)
    return method_class


def _require_signatures(method_class: type[ContinualMethod], name: str) -> None:
    """Check that all hooks can be called as the loop calls them, before anything is computed."""
    for hook, base in vars(ContinualMethod).items():
        own = getattr(method_class, hook)
        if not inspect.isfunction(base) or own is base or isinstance(own, property):
            continue
        wanted = list(inspect.signature(base).parameters)
        # A static or class method does not get the method itself.
        is_bound = inspect.isfunction(inspect.getattr_static(method_class, hook))
        told = inspect.signature(own) if callable(own) else f" = {own!r}"
        try:
            inspect.signature(own).bind(*wanted[0 if is_bound else 1 :])
        except TypeError as error:
            raise ConfigError(
                f"method '{name}': {hook}{told} cannot be called as the training loop does, "
                f"expected {hook}({', '.join(wanted)})"
            ) from error


def _is_method(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, ContinualMethod)
        and value is not ContinualMethod
    )


def make_method(name: str, settings: Mapping[str, Any]) -> ContinualMethod:
    """Build a method.

    Args:
        name: As of `find_method`.
        settings: Fields of the method's `config_class`.

    Raises:
        ConfigError: No such method, or settings that it does not have.
    """
    method_class = find_method(name)
    return method_class(from_mapping(method_class.config_class, settings, f"method '{name}'"))


def list_methods() -> list[dict[str, str]]:
    """Return name, description and file of all methods: the package's, then the user's own."""
    rows: list[dict[str, str]] = []
    for name in sorted(METHODS):
        method_class = find_method(name)
        description = (method_class.__doc__ or "").partition("\n")[0]
        module = sys.modules[method_class.__module__]
        rows.append({"name": name, "description": description, "file": str(module.__file__)})
    own, broken = _own_methods()
    told = {name: (method.description, method.file) for name, method in own.items()}
    told |= {file.stem: (f"cannot be read: {why}", file) for file, why in broken.items()}
    return rows + [
        {"name": name, "description": description, "file": str(file)}
        for name, (description, file) in told.items()
    ]


def _own_methods() -> tuple[dict[str, OwnMethod], dict[Path, str]]:
    ours = {target.partition(":")[2] for target in METHODS.values()}
    return own_methods(ours | {ContinualMethod.__name__})
