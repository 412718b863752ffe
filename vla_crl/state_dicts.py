"""States of several parts as one flat dictionary of tensors, as safetensors files hold them."""

from collections.abc import Mapping

from torch import Tensor


def join_states(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return all tensors as "part/name"."""
    return {
        f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return what `join_states` was given as `part`; empty if there was nothing."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
