"""Is the density of an action head that of what it samples?"""

import math

import torch
from torch import Tensor

from vla_crl.density import Density
from vla_crl.errors import what_is
from vla_crl.models.context import Context
from vla_crl.rows import Rows
from vla_crl.testing.head_trial import HeadTrial
from vla_crl.testing.requirements import (
    LOG_PROB_TOLERANCE,
    log_prob_gap,
    requirement,
    seeded,
)

NUM_SAMPLES = 512
"""Chunks of one observation, for means over what a head samples."""
MAX_ERRORS = 5.0
"""Standard errors that such a mean may be off by."""

_require = requirement("check_head")


def check_density(trial: HeadTrial) -> None:
    """Check that a density is what was sampled from, row by row."""
    stated, trace = trial.sampled.density, trial.sampled.trace
    found, num = trial.head.density(trial.context, trace), trial.num_rows
    _require(isinstance(found, Density), f"density: is {what_is(found)}, expected a Density")
    log_prob = found.log_prob()
    came = tuple(log_prob.shape)
    _require(
        len(came) == 2 and came[0] == num and came == tuple(stated.log_prob().shape),
        f"density: log_prob is {came}, expected ({num}, P) as of sample, "
        f"{tuple(stated.log_prob().shape)}",
    )
    for name, tensor in (("entropy", found.entropy()), ("kl", found.kl(stated))):
        came = tuple(tensor.shape)
        _require(came == (num,), f"density: {name} is {came}, expected ({num},)")
    for name, tensor in (found.parameters | {"log_prob": log_prob}).items():
        _require(bool(tensor.isfinite().all()), f"density: {name} is not finite")
    gap = log_prob_gap(log_prob, stated.log_prob())
    _require(
        gap <= LOG_PROB_TOLERANCE,
        f"density: log_prob differs by {gap:.2g} from that of sample for the same weights, at "
        f"most {LOG_PROB_TOLERANCE}; the first ratio of PPO would not be 1",
    )
    half = trial.head.density(trial.context[: num // 2], trace[: num // 2]).log_prob()
    gap = log_prob_gap(half, log_prob[: num // 2])
    told = f"density: log_prob differs by {gap:.2g} in half the batch; rows must not see others"
    _require(gap <= LOG_PROB_TOLERANCE, told)


def check_executed_actions(trial: HeadTrial) -> None:
    """Check that what never reaches the world does not count, and that the rest does.

    Of a trace it finds the sampled actions themselves, and whole numbers for each of them; a
    head that keeps neither is not checked.
    """
    log_prob = trial.head.density(trial.context, trial.sampled.trace).log_prob()
    executed = trial.sizes.execution_horizon
    behind, before = slice(executed, None), slice(executed)
    for part, name, counts in ((behind, "not executed", False), (before, "executed", True)):
        changed = _exchanged(trial, part)
        if changed is None:
            continue
        gap = log_prob_gap(trial.head.density(trial.context, changed).log_prob(), log_prob)
        _require(
            counts == (gap > LOG_PROB_TOLERANCE),
            f"density: with other actions that are {name}, log_prob moves by {gap:.2g}; only "
            f"the first execution_horizon = {executed} actions count",
        )


def check_expectations(trial: HeadTrial) -> None:
    """Check entropy and KL against their means over what is sampled."""
    context = trial.context[torch.zeros(NUM_SAMPLES, dtype=torch.int64)]
    sampled = trial.head.sample(context, deterministic=False, generator=seeded(2))
    own = sampled.density
    other = _elsewhere(trial, context, sampled.trace)
    log_prob = own.log_prob().sum(dim=1)
    _mean_is("entropy", "-log_prob", own.entropy(), -log_prob)
    log_ratio = log_prob - other.log_prob().sum(dim=1)
    _mean_is("kl", "log_prob - that of another policy", own.kl(other), log_ratio)
    itself = float(own.kl(own).abs().max())
    _require(itself <= 1e-4, f"density: KL from itself is {itself:.2g}, expected 0")


def _exchanged(trial: HeadTrial, part: slice) -> Rows | None:
    """Return the trace with some actions of the next row, None where it has no actions."""
    trace, actions, found = trial.sampled.trace, trial.sampled.actions, False
    flat: dict[str, Tensor] = {}
    for name, tensor in trace.flatten().items():
        flat[name] = tensor.clone(memory_format=torch.contiguous_format)
        if tensor[0].numel() % actions[0].numel():
            continue
        chunks = flat[name].view(len(tensor), -1, *actions.shape[1:])
        of_numbers = not tensor.is_floating_point()
        same = (chunks == actions[:, None]).flatten(2).all(dim=2) | of_numbers
        found = found or bool(same.any())
        other = chunks.roll(1, dims=0)
        chunks[:, :, part] = torch.where(same[..., None, None], other, chunks)[:, :, part]
    return trace.unflatten(flat) if found and actions[:, part].numel() else None


def _elsewhere(trial: HeadTrial, context: Context, trace: Rows) -> Density:
    """Return what the head would say of traces with slightly other weights."""
    parameters = dict(trial.head.named_parameters())
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    generator = seeded(5)
    try:
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(0.02 * noise)
        return trial.head.density(context, trace).detach()
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])


def _mean_is(name: str, of: str, stated: Tensor, sampled: Tensor) -> None:
    """Check that numbers [N] that a density states are the means of what was sampled."""
    difference = (stated - sampled).double()
    error = float(difference.std()) / math.sqrt(len(difference)) + 1e-6
    off = abs(float(difference.mean())) / error
    _require(
        off <= MAX_ERRORS,
        f"density: {name} is {float(stated.mean()):.4g}, but the mean of {of} over "
        f"{len(difference)} samples is {float(sampled.mean()):.4g}, {off:.0f} standard errors away",
    )
