"""What checks of policies and heads share: how they compare, and how they complain."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vla_crl.errors import SpecError
from vla_crl.rows import Rows

LOG_PROB_TOLERANCE = 1e-3
"""What the log-density of a chunk may differ by where it is computed in another way, e.g. for all
tokens at once instead of one after another: the first ratios of PPO are 1 up to so much."""

Require = Callable[[bool, str], None]


def requirement(check: str) -> Require:
    """Return a function that raises a `SpecError` with a message if something does not hold."""
    return partial(_require, check)


def _require(check: str, holds: bool, message: str) -> None:
    if not holds:
        raise SpecError(f"{check}: {message}")


def seeded(seed: int) -> torch.Generator:
    """Return a generator of the CPU."""
    return torch.Generator().manual_seed(seed)


def tensors_of(rows: Rows) -> Iterator[Tensor]:
    """Yield all tensors of some rows."""
    yield from rows.flatten().values()


def log_prob_gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of the log-densities [B, P] of whole chunks."""
    return float((ours - theirs).sum(dim=1).abs().max())
