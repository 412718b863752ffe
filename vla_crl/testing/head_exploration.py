"""Is what an action head says of its exploration so?"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from vla_crl.config import hints_of
from vla_crl.errors import ConfigError
from vla_crl.testing.head_trial import HeadTrial
from vla_crl.testing.requirements import requirement

_require = requirement("check_head")


def check_names(trial: HeadTrial) -> None:
    """Check what the class says of itself."""
    head, config = trial.head, trial.head.config
    names = [field.name for field in fields(config)]
    for name in head.exploration:
        told = f"exploration names '{name}', but the settings are {', '.join(names)}"
        _require(name in names, told)
    known = [name for name, _ in head.named_parameters()]
    for name in head.exploration_parameters:
        _require(
            any(parameter.startswith(name) for parameter in known),
            f"exploration_parameters names '{name}', but no parameter begins so; there are "
            f"{', '.join(known)}",
        )


def check_exploration(trial: HeadTrial) -> None:
    """Check that each setting of exploration changes sampling and nothing else."""
    policy, settings = trial.policy, trial.policy.exploration
    mode = trial.sample(0, deterministic=True).actions
    try:
        for name, value in settings.items():
            policy.explore({name: _other_setting(trial, name, value)})
            _require(
                torch.equal(mode, trial.sample(0, deterministic=True).actions),
                f"exploration: '{name}' changes deterministic actions; only sampling may "
                "depend on it",
            )
            _require(
                not torch.equal(trial.sampled.actions, trial.sample(0).actions),
                f"exploration: '{name}' changes nothing; sample reads self.config each time",
            )
            policy.explore(settings)
    finally:
        policy.explore(settings)


def check_gradients(trial: HeadTrial) -> None:
    """Check that the supervised loss has its shape, and that all parameters learn somehow."""
    head, context = trial.head, trial.context
    loss = trial.imitation()
    named = {name: p for name, p in head.named_parameters() if p.requires_grad}
    log_prob = head.density(context, trial.sampled.trace).log_prob().sum()
    by = {"density": _reached(log_prob, named), "imitation": _reached(loss.sum(), named)}
    for name, reached in by.items():
        _require(bool(reached), f"{name}: no gradient reaches a parameter of the head")
    for name in named:
        _require(
            name in by["density"] | by["imitation"],
            f"'{name}' gets no gradient from density or imitation; use it or leave it out",
        )
        explores = name.startswith(head.exploration_parameters)
        _require(
            name in by["density"] or not explores,
            f"'{name}' is of exploration_parameters, but gets no gradient from density",
        )
        _require(
            name in by["imitation"] or explores,
            f"'{name}' gets a gradient from density, but none from imitation: name it, or how it "
            "begins, in exploration_parameters, and supervised learners leave it as it is; or let "
            "imitation reach it",
        )


def _other_setting(trial: HeadTrial, name: str, value: Any) -> Any:
    hint = hints_of(type(trial.head.config))[name]
    options = _options(hint)
    if others := [option for option in options if option != value]:
        return others[0]
    if isinstance(value, bool):
        return not value
    _require(
        isinstance(value, (int, float)),
        f"exploration: '{name}' = {value!r}, expected a number, a bool or one of a Literal",
    )
    return _number_near(trial, name, value)


def _number_near(trial: HeadTrial, name: str, value: float) -> float:
    tried = [value + 1, value - 1] if isinstance(value, int) else [1.5 * value, 0.6 * value]
    for number in tried:
        try:
            trial.policy.explore({name: number})
        except ConfigError:
            continue
        return number
    _require(False, f"exploration: '{name}' = {value} allows neither {tried[0]} nor {tried[1]}")
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """Return what a Literal allows, also within Annotated; () of other types."""
    while get_origin(hint) is not None and get_origin(hint) is not Literal:
        hint = get_args(hint)[0]
    return get_args(hint)


def _reached(result: Tensor, named: Mapping[str, Tensor]) -> set[str]:
    if not result.requires_grad:
        return set()
    gradients = torch.autograd.grad(result, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
