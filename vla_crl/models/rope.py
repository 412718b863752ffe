"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of transformers' Llama."""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [..., head_dim] of the angles."""


def rope_frequencies(theta: float, head_dim: int) -> Tensor:
    """Return the angles [head_dim] by which one step of position turns a head's numbers.

    Number i is turned together with number i + head_dim / 2, by theta^(-2 i / head_dim).
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return frequencies.repeat(2)


def rotation(positions: Tensor, frequencies: Tensor) -> Rotation:
    """Return cosines and sines [..., head_dim] for positions [...]."""
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, by: Rotation) -> Tensor:
    """Turn queries or keys [..., head_dim]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * by[0] + torch.cat([-second, first], dim=-1) * by[1]
