"""A policy as programs of `torch.export`, which torch runs without this package.

`encode` turns tokenized observations into the tensors of a `Context`, `act` these into actions and
values, `sample` does the same with a stochastic step, as in training, whose random numbers it is
given. All take any number of rows. Inside, sentences keep their padding to the longest that the
policy knows, as the shapes of a program cannot depend on the numbers that it is given.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vla_crl.errors import ConfigError
from vla_crl.models.context import Context, TokenizedObservation
from vla_crl.models.heads import flow
from vla_crl.models.heads.flow import FlowDraws, FlowHead
from vla_crl.models.policy import VLAPolicy

TOLERANCE = 1e-4
"""What actions of a program may differ from the policy's, in [-1, 1]; measured are 3e-6."""
EXAMPLE_ROWS = 3
BATCH_SIZES = (1, 64)
"""Rows at which `measure_latency` looks."""
NUM_REPEATS = 30


class Encode(nn.Module):
    """From images, state, token ids and their mask to keys, values, mask, position, features."""

    def __init__(self, policy: VLAPolicy) -> None:
        super().__init__()
        # These alone go into the program's file; the policy is no module of this one.
        self.parts = nn.ModuleList([policy.backbone, policy.state_in, policy.norm_stats])
        self._encode = policy.encode

    def forward(
        self, images: Tensor, state: Tensor, token_ids: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """See `TokenizedObservation` and `Context` for the shapes."""
        context = self._encode(TokenizedObservation(images, state, token_ids, word_mask))
        return tuple(context.flatten().values())


class Act(nn.Module):
    """From what `Encode` returns, and what is random, to actions [B, H, A] and values [B]."""

    def __init__(self, policy: VLAPolicy) -> None:
        super().__init__()
        self.head = _flow_head(policy)
        self.parts = nn.ModuleList([policy.value_head, policy.norm_stats])
        self._insulate, self._to_actions = policy.insulate, policy.to_actions
        self._value = policy.value

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        padding_mask: Tensor,
        next_position: Tensor,
        features: Tensor,
        start: Tensor,
        step: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Context` and `FlowDraws` for the shapes."""
        context = Context(keys, values, padding_mask, next_position, features)
        sampled = self.head.walk(self._insulate(context), FlowDraws(start, step, noise))
        return self._to_actions(sampled.actions), self._value(context)


@dataclass(frozen=True)
class Programs:
    """A policy's programs beside the modules that they are of.

    Attributes:
        exported: By name: encode, act, sample.
        eager: Likewise, what the policy itself computes.
        difference: The largest between their actions and those of the policy, in [-1, 1].
    """

    exported: dict[str, ExportedProgram]
    eager: dict[str, nn.Module]
    difference: float

    def save(self, folder: Path) -> list[str]:
        """Write a `.pt2` file each and return their names."""
        names = []
        for name, program in self.exported.items():
            names.append(f"{name}.pt2")
            torch.export.save(program, folder / names[-1])
        return names


@torch.no_grad()
def export_programs(policy: VLAPolicy) -> Programs:
    """Export a policy, and check that the programs act as it does.

    Raises:
        ConfigError: Torch cannot export its backbone, or the programs act otherwise.
    """
    eager = {"encode": Encode(policy), "act": Act(policy), "sample": Act(policy)}
    inputs = example_inputs(policy, EXAMPLE_ROWS)
    exported = {name: _export(name, eager[name], inputs[name]) for name in eager}
    difference = largest_difference(policy, exported, eager)
    return Programs(exported, eager, difference)


@torch.no_grad()
def largest_difference(
    policy: VLAPolicy, exported: Mapping[str, ExportedProgram], eager: Mapping[str, nn.Module]
) -> float:
    """Return by how much actions of the programs differ from the policy's, in [-1, 1].

    Raises:
        ConfigError: By more than rounding.
    """
    tried, difference = example_inputs(policy, BATCH_SIZES[-1], seed=1), 0.0
    context = exported["encode"].module()(*tried["encode"])
    for name in ("act", "sample"):
        expected, _ = eager[name](*tried[name])
        actions, _ = exported[name].module()(*context, *tried[name][len(context) :])
        difference = max(difference, float((actions - expected).abs().max()))
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"the actions of torch's programs differ from the policy's by {difference:.1e}, "
            f"expected at most {TOLERANCE:.0e}; use the policy without --torch-export"
        )
    return difference


@torch.no_grad()
def example_inputs(policy: VLAPolicy, rows: int, *, seed: int = 0) -> dict[str, tuple[Any, ...]]:
    """Return inputs of each program: noise for pictures, sentences of drawn words."""
    config, generator = policy.config, torch.Generator().manual_seed(seed)
    embodiment, size, words = policy.embodiment, config.image_size, config.max_words
    num_words = policy.backbone.model.get_input_embeddings().num_embeddings
    images = torch.randint(
        0, 256, (rows, len(embodiment.cameras), size, size, 3), generator=generator
    ).to(torch.uint8)
    stats = policy.norm_stats
    state = torch.randn(rows, len(embodiment.state), generator=generator)
    lengths = torch.randint(1, max(words, 2), (rows, 1), generator=generator)
    mask = torch.arange(words) < lengths
    ids = torch.randint(0, num_words, (rows, words), generator=generator) * mask
    seen = images, state * stats.state_std + stats.state_mean, ids, mask
    context = Encode(policy)(*seen)
    shape = rows, config.action_horizon, len(embodiment.action)
    draws = flow.draw(_flow_head(policy).config, shape, generator, deterministic=False)
    return {
        "encode": seen,
        "act": (*context, draws.start),
        "sample": (*context, draws.start, draws.step, draws.noise),
    }


def _flow_head(policy: VLAPolicy) -> FlowHead:
    if not isinstance(policy.head, FlowHead):
        raise ConfigError(
            f"--torch-export knows the programs of flow heads, this policy has the head "
            f"'{policy.config.head.kind}'; leave it out"
        )
    return policy.head


def _export(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    batch = Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated within torch and transformers
            return torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"torch cannot export '{name}' of this policy's backbone; leave out --torch-export. "
            f"{type(error).__name__}: {reason}"
        ) from error


@torch.no_grad()
def measure_latency(policy: VLAPolicy, programs: Programs) -> list[dict[str, Any]]:
    """Time the programs beside the policy, in turns; the median of each counts.

    Returns:
        A row for each program and batch size, with milliseconds a call.
    """
    rows = []
    for size in BATCH_SIZES:
        for name, inputs in example_inputs(policy, size).items():
            eager, exported = programs.eager[name], programs.exported[name].module()
            pairs = [
                (_seconds(eager, inputs), _seconds(exported, inputs))
                for _ in range(NUM_REPEATS + 3)
            ][3:]  # the first calls also pay for memory
            own, torchs = (1e3 * median(times) for times in zip(*pairs, strict=True))
            rows.append({"program": name, "batch": size, "eager_ms": own, "exported_ms": torchs})
    return rows


def _seconds(call: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    started = perf_counter()
    call(*inputs)
    return perf_counter() - started
