"""What a learner says of a minibatch, and whether an update can use it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from vla_crl.algos.metric_log import is_reserved
from vla_crl.errors import what_is

OWN_METRICS = ("kl", "clip_fraction", "ratio_error")
"""Of the names that are always in metrics.jsonl, those that a learner gives as metrics."""


@dataclass
class Terms:
    """A learner's loss of B chunks, by its parts.

    Attributes:
        policy_loss: [B] a chunk, which the method may weigh.
        others: Further scalars by name, each with its coefficient.
        metrics: Scalars to be logged, by name: tensors or numbers.
    """

    policy_loss: Tensor
    others: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


def faults_of_terms(
    terms: object, num_chunks: int, *, needs_value: bool, learns_policy: bool
) -> Iterator[str]:
    """Yield what is wrong with what `Learner.terms` has returned, and what to do.

    Args:
        terms: Whatever came.
        num_chunks: B of the minibatch.
        needs_value: Whether the value head is to be trained by a "value_loss".
        learns_policy: Whether the policy loss is to have a gradient.
    """
    if not isinstance(terms, Terms):
        yield (
            f"returned {what_is(terms)}, expected Terms(policy_loss [B], "
            'others={"name": (scalar, coefficient)}, metrics={"name": scalar})'
        )
        return
    loss = cast(Any, terms.policy_loss)
    if not isinstance(loss, Tensor) or loss.shape != (num_chunks,):
        yield (
            f"has a policy_loss that is {what_is(loss)}, expected a tensor of shape "
            f"[{num_chunks}]: one number a chunk, not their mean, and summed over the parts of a "
            "density, log_prob().sum(dim=1)"
        )
    elif learns_policy and not loss.requires_grad:
        yield (
            "has a policy_loss without a gradient, of which the policy would learn nothing; make "
            "it of the evaluation or of self.policy, without detach, item or no_grad"
        )
    yield from _faults_of_others(terms.others, needs_value=needs_value)
    yield from _faults_of_metrics(terms.metrics, terms.others)


def _faults_of_others(others: Any, *, needs_value: bool) -> Iterator[str]:
    wanted = 'expected a dictionary {"name": (scalar, coefficient)}'
    if not isinstance(others, Mapping):
        yield f"has others that are {what_is(others)}, {wanted}"
        return
    for name, pair in cast(Mapping[str, Any], others).items():
        if not isinstance(pair, tuple) or len(cast(tuple[Any, ...], pair)) != 2:
            yield f"has others['{name}'] that is {what_is(pair)}, {wanted}"
            continue
        term, coefficient = cast(tuple[Any, Any], pair)
        if not isinstance(term, Tensor) or term.shape != ():
            yield f"has in others['{name}'] {what_is(term)}, expected a tensor that is a scalar"
        if not _is_number(coefficient) or not math.isfinite(coefficient):
            yield (
                f"has in others['{name}'] the coefficient {coefficient!r}, expected a finite "
                "number; of a tensor .item()"
            )
        if name != "value_loss" and is_reserved(name):
            yield f"has others['{name}'], which is the name of another number; choose another one"
    if not needs_value:
        return
    if "value_loss" not in others:
        yield (
            "has no others['value_loss'], by which the value head learns (needs_value is True); "
            "give it, or say needs_value = False"
        )
    elif not cast(Any, others)["value_loss"][0].requires_grad:
        yield "has others['value_loss'] without a gradient; make it of evaluation.value"


def _faults_of_metrics(metrics: Any, others: Any) -> Iterator[str]:
    if not isinstance(metrics, Mapping):
        yield f"has metrics that are {what_is(metrics)}, expected a dictionary of scalars"
        return
    for name, number in cast(Mapping[str, Any], metrics).items():
        if not (isinstance(number, Tensor) and number.shape == ()) and not _is_number(number):
            yield (
                f"has metrics['{name}'] that is {what_is(number)}, expected a scalar, such as a "
                ".mean()"
            )
        if name in others or (name not in OWN_METRICS and is_reserved(name)):
            yield f"has metrics['{name}'], which is the name of another number; choose another one"


def as_tensors(metrics: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """Return scalars as tensors, those of a device where they are."""
    return {name: torch.as_tensor(number) for name, number in metrics.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
