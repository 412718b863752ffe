"""Whether what a method's hooks return is what the stage loop can use; errors name the method."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from vla_crl.algos.learner import Learner
from vla_crl.algos.learner_checks import groups_of
from vla_crl.algos.protocols import ActorCritic, ParamGroup
from vla_crl.continual.composite import Composite
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.stream import TaskStream
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError


def method_stream(method: ContinualMethod, name: str, stream: TaskStream) -> TaskStream:
    """Return the stream that a method makes of a recipe's.

    Args:
        method: Any.
        name: How the recipe calls it.
        stream: Of the recipe.

    Raises:
        ConfigError: It is none, or of other tasks.
    """
    own = cast(Any, method.stream(stream))
    if not isinstance(own, TaskStream):
        raise ConfigError(
            f"method '{name}': stream() is a {type(own).__name__}, expected a TaskStream"
        )
    if {*own.train_tasks} != {*stream.train_tasks} or own.heldout_tasks != stream.heldout_tasks:
        raise ConfigError(
            f"method '{name}': stream() has other tasks ({', '.join(own.tasks)}), expected those "
            f"of the recipe: {', '.join(stream.tasks)}"
        )
    return own


def used_too_early(name: str) -> ConfigError:
    """Build the error for a method that collects or trains in before_task.

    Args:
        name: How the recipe calls it.
    """
    return ConfigError(
        f"method '{name}': before_task collects or trains, but what is trained in the stage is not "
        "known before it returns; do it in after_task"
    )


def check_method_fits(
    method: ContinualMethod,
    name: str,
    policy: ActorCritic,
    learner: Learner,
    evaluation: Evaluation,
) -> None:
    """Check all that can be known of a method before a run begins.

    Args:
        method: Any.
        name: How the recipe calls it.
        policy: As the run begins with it.
        learner: Built for it.
        evaluation: As of `ContinualMethod.check`.

    Raises:
        ConfigError: It does not fit policy or learner, or its groups of parameters are wrong.
    """
    parts = method.methods if isinstance(method, Composite) else {name: method}
    for label, part in parts.items():
        if learner.data == "demonstrations" and _looks_at_rollouts(part):
            otherwise = (
                "say needs_rollouts = False in the method's class if before_update needs none"
                if part.needs_rollouts is None
                else "another method"
            )
            raise ConfigError(
                f"method '{label}': looks at episodes that the policy itself plays (it stores "
                f"{part.stores}), but learner.kind '{learner.config.kind}' learns of "
                "demonstrations, so that none are played; choose a learner of own episodes, such "
                f"as 'ppo' or 'cloning', or {otherwise}"
            )
    method.check(policy, learner, evaluation)
    ready = {n: m for n, m in parts.items() if not _has_own(m, "before_task")}
    groups = groups_of(type(learner), policy, learner.config)
    method_groups(Composite(ready), name, policy, [*groups])


def _looks_at_rollouts(method: ContinualMethod) -> bool:
    declared = method.needs_rollouts
    return _has_own(method, "before_update") if declared is None else declared


def _has_own(method: ContinualMethod, hook: str) -> bool:
    return getattr(type(method), hook) is not getattr(ContinualMethod, hook)


def method_groups(
    method: ContinualMethod, name: str, policy: ActorCritic, groups: list[ParamGroup]
) -> Sequence[ParamGroup]:
    """Return the groups of parameters that a method makes of a learning rule's.

    Args:
        method: Any.
        name: How the recipe calls it.
        policy: With `requires_grad` as it will be trained.
        groups: Of the learning rule.

    Raises:
        ConfigError: They are none, or a parameter is not trainable, is missing or is in two.
    """
    own = cast(Any, method.param_groups(policy, groups))
    if not isinstance(own, list | tuple) or not all(isinstance(g, ParamGroup) for g in own):
        raise ConfigError(
            f"method '{name}': param_groups() is a {type(own).__name__}, expected a list of "
            "ParamGroup"
        )
    trained = {name for group in groups for name in group.parameters}
    found: dict[str, str] = {}
    for group in cast(Sequence[ParamGroup], own):
        for parameter in group.parameters:
            if parameter not in trained:
                what = f"has '{parameter}' in '{group.name}', which is not trainable"
            elif parameter in found:
                what = f"has '{parameter}' in '{found[parameter]}' and in '{group.name}'"
            else:
                found[parameter] = group.name
                continue
            raise ConfigError(
                f"method '{name}': param_groups() {what}; expected each trainable parameter in "
                "exactly one group"
            )
    if missing := sorted(trained - found.keys()):
        raise ConfigError(
            f"method '{name}': param_groups() leaves out '{missing[0]}' ({len(missing)} in all), "
            "which is trainable; expected each trainable parameter in exactly one group"
        )
    return own


def method_metrics(
    method: ContinualMethod, name: str, row: Mapping[str, Any]
) -> Mapping[str, float]:
    """Return what a method adds to a line of metrics.jsonl.

    Args:
        method: Any.
        name: How the recipe calls it.
        row: What else is in the line.

    Raises:
        ConfigError: It is no dictionary of numbers, or a name is taken.
    """
    own = cast(Any, method.metrics())
    if not isinstance(own, Mapping):
        raise ConfigError(
            f"method '{name}': metrics() is a {type(own).__name__}, expected a dictionary of "
            "numbers"
        )
    numbers = cast(Mapping[str, Any], own)
    for key, number in numbers.items():
        if not isinstance(number, int | float):
            raise ConfigError(
                f"method '{name}': metrics()['{key}'] is a {type(number).__name__}, expected a "
                "number; of a tensor .item()"
            )
        if key in row:
            raise ConfigError(
                f"method '{name}': metrics() has '{key}', which a line of metrics.jsonl has "
                "already; choose another name"
            )
    return {key: float(number) for key, number in numbers.items()}


def method_state(method: ContinualMethod, name: str) -> Mapping[str, Tensor]:
    """Return the state of a method.

    Args:
        method: Any.
        name: How the recipe calls it.

    Raises:
        ConfigError: It is none, or there is something in it that is no tensor.
    """
    state = method.state_dict()
    if not isinstance(cast(Any, state), Mapping):
        raise ConfigError(
            f"method '{name}': state_dict() is a {type(state).__name__}, expected a dictionary of "
            "tensors"
        )
    for key, value in state.items():
        if not isinstance(cast(Any, value), Tensor):
            raise ConfigError(
                f"method '{name}': state_dict()['{key}'] is a "
                f"{type(value).__name__}, expected a tensor"
            )
    return state
