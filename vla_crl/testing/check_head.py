"""Does an action head keep the contract that policies, learning rules and methods rely on?"""

import copy
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from vla_crl.config import hints_of
from vla_crl.contracts import Observation
from vla_crl.density import Density
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.context import Context
from vla_crl.models.heads.head import Sampled
from vla_crl.models.policy import VLAPolicy
from vla_crl.rows import Rows
from vla_crl.testing.requirements import (
    LOG_PROB_TOLERANCE,
    log_prob_gap,
    requirement,
    seeded,
    tensors_of,
)
from vla_crl.testing.strict_device import strict_device

NUM_ROWS = 6
NUM_SAMPLES = 512
"""Chunks of one observation, for means over what a head samples."""
MAX_ERRORS = 5.0
"""Standard errors that such a mean may be off by."""
NUM_UPDATES, LEARNING_RATE = 20, 1e-3
"""Steps of Adam on one batch in which the supervised loss has to fall."""
ACTION_TOLERANCE = 1e-4
"""What actions may differ by in another batch, or on another device."""

_require = requirement("check_head")


def check_head(policy: VLAPolicy, observation: Observation | None = None) -> None:
    """Try all that a head can do, within a policy.

    Example:
        check_head(build_policy("my_preset.toml", embodiment=ARM))

    Args:
        policy: Whose head is checked; left as it was. Its weights may be random.
        observation: What it sees, two rows or more; None takes noise for pictures.

    Raises:
        SpecError: The first violation, with what came and what was expected.
    """
    check = _Check(policy, observation or _noise(policy))
    with torch.no_grad():
        check.settings()
        check.sampling()
        check.density()
        check.executed_actions()
        check.expectations()
        check.exploration()
    check.gradients()
    check.context()
    with TemporaryDirectory() as folder:
        save_policy(policy, Path(folder))
        check.stored(load_policy(folder))
        with strict_device() as device:
            try:
                check.on_device(load_policy(folder, device=device))
            except RuntimeError as error:  # of torch
                raise SpecError(
                    f"check_head: fails on another device than the CPU: {error}; make tensors on "
                    "that of context.features"
                ) from error
        check.learning(load_policy(folder, is_trained=not policy.adapters.names))


class _Check:
    """One check of a head, on one batch of contexts."""

    def __init__(self, policy: VLAPolicy, observation: Observation) -> None:
        self._policy, self._head, self._seen = policy, policy.head, observation
        with torch.no_grad():
            self._context = policy.insulate(policy.encode(observation))
            self._before, self._sampled = copy.deepcopy(self._context), self._sample(seed=0)
        self._sizes, self._num = policy.head.sizes, len(observation)

    def settings(self) -> None:
        """Check what the class says of itself."""
        head, config = self._head, self._head.config
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

    def sampling(self) -> None:
        """Check shapes, numbers and repetition."""
        shape = (self._num, self._sizes.action_horizon, self._sizes.num_numbers)
        actions, mode = self._sampled.actions, self._sample(0, deterministic=True).actions
        for name, tensor in (("sampled", actions), ("deterministic", mode)):
            came = tuple(tensor.shape)
            _require(came == shape, f"sample: {name} actions are {came}, expected {shape}")
            _require(bool(tensor.isfinite().all()), f"sample: a {name} action is not finite")
        _require(
            torch.equal(mode, self._sample(1, deterministic=True).actions),
            "sample: deterministic actions depend on the generator",
        )
        _require(
            torch.equal(actions, self._sample(0).actions),
            "sample: the same generator gives other actions; draw all that is random from it",
        )
        _require(
            not torch.equal(actions, self._sample(1).actions),
            "sample: another generator gives the same actions; draw from it",
        )
        half = self._head.sample(
            self._context[: self._num // 2], deterministic=True, generator=seeded(0)
        ).actions
        gap = float((half - mode[: self._num // 2]).abs().max())
        _require(
            gap <= ACTION_TOLERANCE,
            f"sample: deterministic actions differ by {gap:.2g} in half the batch; rows must not "
            "see others",
        )

    def density(self) -> None:
        """Check that a density is what was sampled from, row by row."""
        stated, trace = self._sampled.density, self._sampled.trace
        _require(isinstance(trace, Rows), f"sample: the trace is a {type(trace).__name__}, no Rows")
        found, num = self._head.density(self._context, trace), self._num
        _require(isinstance(found, Density), f"density: is a {type(found).__name__}, no Density")
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
        half = self._head.density(self._context[: num // 2], trace[: num // 2]).log_prob()
        gap = log_prob_gap(half, log_prob[: num // 2])
        told = f"density: log_prob differs by {gap:.2g} in half the batch; rows must not see others"
        _require(gap <= LOG_PROB_TOLERANCE, told)

    def executed_actions(self) -> None:
        """Check that what never reaches the world does not count, and that the rest does.

        Of a trace it finds the sampled actions themselves, and whole numbers for each of them; a
        head that keeps neither is not checked.
        """
        log_prob = self._head.density(self._context, self._sampled.trace).log_prob()
        executed = self._sizes.execution_horizon
        behind, before = slice(executed, None), slice(executed)
        for part, name, counts in ((behind, "not executed", False), (before, "executed", True)):
            changed = self._exchanged(part)
            if changed is None:
                continue
            gap = log_prob_gap(self._head.density(self._context, changed).log_prob(), log_prob)
            _require(
                counts == (gap > LOG_PROB_TOLERANCE),
                f"density: with other actions that are {name}, log_prob moves by {gap:.2g}; only "
                f"the first execution_horizon = {executed} actions count",
            )

    def expectations(self) -> None:
        """Check entropy and KL against their means over what is sampled."""
        context = self._context[torch.zeros(NUM_SAMPLES, dtype=torch.int64)]
        sampled = self._head.sample(context, deterministic=False, generator=seeded(2))
        own = sampled.density
        other = self._elsewhere(context, sampled.trace)
        log_prob = own.log_prob().sum(dim=1)
        _mean_is("entropy", "-log_prob", own.entropy(), -log_prob)
        log_ratio = log_prob - other.log_prob().sum(dim=1)
        _mean_is("kl", "log_prob - that of another policy", own.kl(other), log_ratio)
        itself = float(own.kl(own).abs().max())
        _require(itself <= 1e-4, f"density: KL from itself is {itself:.2g}, expected 0")

    def exploration(self) -> None:
        """Check that each setting of exploration changes sampling and nothing else."""
        policy, settings = self._policy, self._policy.exploration
        mode = self._sample(0, deterministic=True).actions
        try:
            for name, value in settings.items():
                policy.explore({name: self._other_setting(name, value)})
                _require(
                    torch.equal(mode, self._sample(0, deterministic=True).actions),
                    f"exploration: '{name}' changes deterministic actions; only sampling may "
                    "depend on it",
                )
                _require(
                    not torch.equal(self._sampled.actions, self._sample(0).actions),
                    f"exploration: '{name}' changes nothing; sample reads self.config each time",
                )
                policy.explore(settings)
        finally:
            policy.explore(settings)

    def gradients(self) -> None:
        """Check that the supervised loss has its shape, and that all parameters learn somehow."""
        head, context = self._head, self._context
        loss = head.imitation(context, self._demonstrated(), seeded(3))
        came, shape = tuple(loss.shape), (self._num, self._sizes.action_horizon)
        _require(came == shape, f"imitation: loss is {came}, expected {shape}")
        _require(bool(loss.isfinite().all()), "imitation: a loss is not finite")
        named = {name: p for name, p in head.named_parameters() if p.requires_grad}
        log_prob = head.density(context, self._sampled.trace).log_prob().sum()
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

    def context(self) -> None:
        """Check that the context is as it was."""
        pairs = zip(tensors_of(self._before), tensors_of(self._context), strict=True)
        _require(
            all(torch.equal(before, now) for before, now in pairs),
            "the context was changed, which PPO stores and uses again",
        )

    @torch.no_grad()
    def stored(self, loaded: VLAPolicy) -> None:
        """Check that a policy acts as before it was saved."""
        context = loaded.insulate(loaded.encode(self._seen))
        sampled = loaded.head.sample(context, deterministic=False, generator=seeded(0))
        gap = float((sampled.actions - self._sampled.actions).abs().max())
        _require(
            gap <= ACTION_TOLERANCE,
            f"saved and loaded, the policy samples actions that differ by {gap:.2g}; keep what it "
            "learns in parameters or buffers, what is set in config",
        )

    @torch.no_grad()
    def on_device(self, policy: VLAPolicy) -> None:
        """Check that nothing remains on the CPU where the policy is elsewhere."""
        head, context = policy.head, policy.insulate(policy.encode(self._seen))
        sampled = head.sample(context, deterministic=False, generator=seeded(0))
        density = head.density(context, self._sampled.trace.to(policy.device))
        loss = head.imitation(context, self._demonstrated().to(policy.device), seeded(3))
        for name, tensor in {
            "actions": sampled.actions,
            **{f"trace.{name}": tensor for name, tensor in sampled.trace.flatten().items()},
            "log_prob": density.log_prob(),
            "imitation": loss,
        }.items():
            _require(
                tensor.device == policy.device,
                f"'{name}' is on {tensor.device}, where the policy is on {policy.device}",
            )

    def learning(self, policy: VLAPolicy) -> None:
        """Check that the supervised loss of one batch falls."""
        with torch.no_grad():
            context = policy.insulate(policy.encode(self._seen))
        actions = self._demonstrated()
        adam = torch.optim.Adam(policy.head.parameters(), lr=LEARNING_RATE)
        losses: list[float] = []
        for _ in range(NUM_UPDATES + 1):
            loss = policy.head.imitation(context, actions, seeded(3)).mean()
            losses.append(loss.item())
            adam.zero_grad()
            loss.backward()
            adam.step()
        _require(
            losses[-1] < losses[0],
            f"imitation: the loss of one batch goes from {losses[0]:.4g} to {losses[-1]:.4g} in "
            f"{NUM_UPDATES} steps of Adam, expected to fall",
        )

    def _sample(self, seed: int, *, deterministic: bool = False) -> Sampled:
        return self._head.sample(self._context, deterministic=deterministic, generator=seeded(seed))

    def _demonstrated(self) -> Tensor:
        """Return actions [B, H, A] as the head counts them."""
        shape = self._num, self._sizes.action_horizon, self._sizes.num_numbers
        actions = 2.0 * torch.rand(shape, generator=seeded(4)) - 1.0
        actions = actions.to(self._policy.device)
        normalize = self._policy.norm_stats.normalize_action
        return normalize(actions) if self._head.is_normalized else actions

    def _exchanged(self, part: slice) -> Rows | None:
        """Return the trace with some actions of the next row, None where it has no actions."""
        trace, actions, found = self._sampled.trace, self._sampled.actions, False
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

    def _elsewhere(self, context: Context, trace: Rows) -> Density:
        """Return what the head would say of traces with slightly other weights."""
        parameters = dict(self._head.named_parameters())
        kept = {name: parameter.clone() for name, parameter in parameters.items()}
        generator = seeded(5)
        try:
            for parameter in parameters.values():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(0.02 * noise)
            return self._head.density(context, trace).detach()
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])

    def _other_setting(self, name: str, value: Any) -> Any:
        hint = hints_of(type(self._head.config))[name]
        options = _options(hint)
        if others := [option for option in options if option != value]:
            return others[0]
        if isinstance(value, bool):
            return not value
        _require(
            isinstance(value, (int, float)),
            f"exploration: '{name}' = {value!r}, expected a number, a bool or one of a Literal",
        )
        return self._number_near(name, value)

    def _number_near(self, name: str, value: float) -> float:
        tried = [value + 1, value - 1] if isinstance(value, int) else [1.5 * value, 0.6 * value]
        for number in tried:
            try:
                self._policy.explore({name: number})
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


def _noise(policy: VLAPolicy) -> Observation:
    """Return observations of noise, with the first words that the policy knows."""
    random, example = np.random.default_rng(0), policy.example_observation()
    words = (*policy.config.vocabulary, *example.instruction)
    return Observation(
        random.integers(0, 256, (NUM_ROWS, *example.images.shape[1:]), dtype=np.uint8),
        random.standard_normal((NUM_ROWS, *example.state.shape[1:]), dtype=np.float32),
        tuple(words[row % len(words)] for row in range(NUM_ROWS)),
    )
