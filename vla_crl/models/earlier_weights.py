"""Weights that a policy had earlier, and letting it act with them for a moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vla_crl.models.sites import exploration_names

if TYPE_CHECKING:
    from vla_crl.models.policy import VLAPolicy


@contextmanager
def exchanged(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module have other weights inside the block; nothing is copied.

    The graph of what was computed before stays whole, and gradients are of the module's own.

    Args:
        module: Any.
        weights: By the names of its parameters, on their device; others stay.
    """
    parameters = {name: p for name, p in module.named_parameters() if name in weights}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


class BaseExploration(nn.Module):
    """What a policy's head explored with before the policy had adapters.

    That is trained beside the adapters but is in none of them, so without it nothing would tell
    any more how the base explores. Its buffers are stored with the adapters.
    """

    def remember(self, policy: "VLAPolicy") -> None:
        """Copy what the head explores with now; nothing where that is not learnt."""
        parameters = dict(policy.named_parameters())
        for name in exploration_names(policy):
            self.register_buffer(_key(name), parameters[name].detach().clone())

    def forget(self) -> None:
        """Let go of it."""
        self._buffers.clear()

    @property
    def weights(self) -> dict[str, Tensor]:
        """By their names in the policy."""
        return {_name(key): tensor for key, tensor in self.named_buffers()}


def _key(name: str) -> str:
    return name.replace(".", "/")  # buffers have no dots in their names


def _name(key: str) -> str:
    return key.replace("/", ".")
