"""The numbers of one update, minibatch by minibatch."""

from collections.abc import Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from vla_crl.algos.gradient_norms import NORM, RATIO


class MetricLog:
    """Numbers of the minibatches of one update, by name.

    Those of `NAMES` are there after every update of every learner, NaN where a learner has none.

    Attributes:
        values: All numbers.
        num_steps: Of the optimizer.
    """

    NAMES = (
        *("policy_loss", "value_loss", "kl", "clip_fraction", "ratio_error"),
        *("grad_norm", "value_grad_norm", "policy_loss" + NORM, "value_loss" + NORM),
        "explained_variance",
    )

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in self.NAMES}
        self.num_steps = 0
        self._tensors: list[tuple[str, Tensor]] = []

    def append(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep numbers where they are: reading one from a GPU waits for all work before it."""
        self._tensors += ((name, metric.detach()) for name, metric in metrics.items())

    def means(self) -> dict[str, float]:
        """Return the mean of each."""
        numbers = read_numbers([tensor for _, tensor in self._tensors])
        for (name, _), number in zip(self._tensors, numbers, strict=True):
            self.values.setdefault(name, []).append(number)
        self._tensors.clear()
        return {name: sum(v) / len(v) if v else nan for name, v in self.values.items()}


RESERVED = frozenset(MetricLog.NAMES) | {"epochs", "optimizer_steps"}
"""Names that no term of a method may have."""


def is_reserved(name: str) -> bool:
    """Tell whether a term of that name would be mistaken for another number."""
    return name in RESERVED or name.endswith((NORM, RATIO))


def read_numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return numbers, wherever they are; there is one wait for a device."""
    if not scalars:
        return []
    device = scalars[0].device
    return torch.stack([s.detach().to(device, torch.float64) for s in scalars]).tolist()
