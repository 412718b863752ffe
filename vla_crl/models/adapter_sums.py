"""Sums and norms of low-rank updates, without making them."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Matrices = Mapping[str, tuple[Tensor, Tensor]]
"""A [rank, in] and B [out, rank] of an adapter, by layer."""


def norm_of(matrices: Matrices) -> float:
    """Return the Frobenius norm of B A over all layers.

    ||B A||^2 = tr((B^T B) (A A^T)), so that no matrix of a layer's size is made.
    """
    squares = (
        ((up.T.double() @ up.double()) * (down.double() @ down.T.double())).sum().item()
        for down, up in matrices.values()
    )
    return math.sqrt(max(sum(squares), 0.0))


def joined(
    parts: Sequence[tuple[float, Matrices]], layers: Iterable[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return matrices whose product is sum_k w_k B_k A_k, without rounding but that of w_k B_k.

    A = [A_1; A_2; ...] and B = [w_1 B_1, w_2 B_2, ...]: ranks add up. (The sum of the A times that
    of the B would be another update.)

    Args:
        parts: w_k and the matrices.
        layers: Names in the order of the result.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        pairs = [(weight, matrices[layer]) for weight, matrices in parts if layer in matrices]
        if pairs:
            downs, ups = zip(*((down, weight * up) for weight, (down, up) in pairs), strict=True)
            found[layer] = torch.cat(downs), torch.cat(ups, dim=1)
    return found
