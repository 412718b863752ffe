"""The numbers of one update, minibatch by minibatch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vla_crl.algos.gradient_norms import SUFFIX

TERMS = ("policy_loss", "value_loss")
"""Of the loss; a method's own have other names."""


class MetricLog:
    """Numbers of the minibatches of one update, by name; those of a method's terms come last."""

    NAMES = (
        *TERMS,
        *("kl", "clip_fraction", "ratio_error", "grad_norm", "value_grad_norm"),
        *(name + SUFFIX for name in TERMS),
    )

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in self.NAMES}
        self.num_steps = 0
        self._tensors: list[tuple[str, Tensor]] = []

    def append(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep numbers where they are: reading one from a GPU waits for all work before it."""
        self._tensors += ((name, metric.detach()) for name, metric in metrics.items())

    def read(self) -> None:
        """Move all numbers to `values`, at once."""
        numbers = read_numbers([tensor for _, tensor in self._tensors])
        for (name, _), number in zip(self._tensors, numbers, strict=True):
            self.values.setdefault(name, []).append(number)
        self._tensors.clear()

    def means(self) -> dict[str, float]:
        """Return the mean of each, 0 where there is none."""
        return {name: sum(v) / len(v) if v else 0.0 for name, v in self.values.items()}


def read_numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return numbers, wherever they are; there is one wait for a device."""
    if not scalars:
        return []
    device = scalars[0].device
    return torch.stack([s.detach().to(device, torch.float64) for s in scalars]).tolist()
