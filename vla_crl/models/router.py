"""Routers: modules that weigh the adapters of a layer by what comes into it.

    y = W x + sum_k g_k(x) c_k B_k A_k x          (mixture of low-rank experts, arXiv 2310.18339)

A router of your own is a subclass of `Router` and is named "my_routers:MyRouter". It has no state
but its parameters, since lanes are threads that share it; who wants to see its gates registers a
forward hook on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from annotated_types import Interval
from torch import Tensor, nn

from vla_crl.catalog import load_attribute
from vla_crl.config import Settings, from_mapping
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.models.routes import RouterRoute


class Router(nn.Module, ABC):
    """Base of all routers."""

    config_class: ClassVar[type[Any]]
    """Frozen dataclass of its settings."""

    @abstractmethod
    def __init__(self, config: Any, widths: Mapping[str, int], num_adapters: int) -> None:
        """Build it.

        Args:
            config: Its settings.
            widths: Inputs of each layer with adapters, by the layer's name.
            num_adapters: K.
        """
        super().__init__()

    @abstractmethod
    def forward(self, layer: str, x: Tensor) -> Tensor:
        """Return the gates [..., K] of a layer's inputs [..., width].

        Dimensions of length 1 stand for all tokens of a sequence, or for all sequences.
        """


@dataclass(frozen=True, kw_only=True)
class LinearRouterConfig(Settings):
    """Settings of `LinearRouter`."""

    level: Literal["token", "sequence"] = "token"
    """Whether each token has gates of its own, or the mean over a sequence decides for it."""
    num_chosen: Annotated[int, Interval(ge=1, le=4096)] | None = None
    """How many adapters act, those of the largest gates, which then sum to 1. None: all."""


class LinearRouter(Router):
    """g = softmax(V x) in every layer; V = 0 at the start, so that all adapters have a share."""

    config_class = LinearRouterConfig

    def __init__(
        self, config: LinearRouterConfig, widths: Mapping[str, int], num_adapters: int
    ) -> None:
        """Build it.

        Raises:
            ConfigError: More adapters are to act than there are.
        """
        super().__init__(config, widths, num_adapters)
        if config.num_chosen is not None and config.num_chosen > num_adapters:
            raise ConfigError(
                f"router: num_chosen = {config.num_chosen}, expected at most the number of "
                f"adapters, {num_adapters}"
            )
        self.config = config
        self.gates = nn.ModuleDict()
        for layer, width in widths.items():
            gate = nn.Linear(width, num_adapters, bias=False)
            nn.init.zeros_(gate.weight)
            self.gates[_key(layer)] = gate

    def forward(self, layer: str, x: Tensor) -> Tensor:
        """Return the gates [..., K] of a layer's inputs [..., tokens, width]."""
        gate = self.gates[_key(layer)]
        x = x.to(cast(nn.Linear, gate).weight.dtype)
        if self.config.level == "sequence":
            x = x.mean(dim=-2, keepdim=True)
        logits = gate(x)
        if self.config.num_chosen is not None:
            least = logits.topk(self.config.num_chosen, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return logits.softmax(dim=-1)


def _key(layer: str) -> str:
    return layer.replace(".", "/")  # modules have no dots in their names


ROUTERS = {"linear": "vla_crl.models.router:LinearRouter"}
"""Known routers by name, as "module:Class", imported on use."""


def make_router(route: RouterRoute, widths: Mapping[str, int]) -> Router:
    """Build the router that a route names.

    Args:
        route: The rule.
        widths: As of `Router`.

    Raises:
        ConfigError: There is no such router, or it has other settings.
    """
    name = route.router
    if name not in ROUTERS and ":" not in name:
        raise unknown_name("route", "router", name, ROUTERS)
    found = load_attribute(ROUTERS.get(name, name), "router", fits=_is_router)
    if not _is_router(found):
        raise ConfigError(f"router '{name}': is not a subclass of Router")
    router_class = cast(type[Router], found)
    config = from_mapping(router_class.config_class, route.settings, f"router '{name}'")
    return router_class(config, widths, len(route.names))


def _is_router(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Router) and value is not Router
