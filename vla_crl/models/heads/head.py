"""What turns a context into a chunk of actions: the contract of all action heads, and their names.

A head samples chunks, says how likely a sampled chunk is (a `Density`, which policy gradients,
distillation and regularisation differentiate), and has a supervised loss. Everything that differs
between the families of policies is here: a flow expert, tokens one after another, tokens in
parallel, a Gaussian.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vla_crl.catalog import load_attribute
from vla_crl.config import Settings
from vla_crl.density import Density
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.hooks import require_hooks
from vla_crl.models.backbone import BackboneSizes
from vla_crl.models.context import Context
from vla_crl.own_classes import all_names
from vla_crl.rows import Rows

HEADS = {
    "flow": "vla_crl.models.heads.flow:FlowHead",
    "noise": "vla_crl.models.heads.noise:NoiseHead",
    "gaussian": "vla_crl.models.heads.gaussian:GaussianHead",
    "parallel": "vla_crl.models.heads.parallel:ParallelHead",
    "tokens": "vla_crl.models.heads.tokens:TokensHead",
}
"""Known heads by name, as "module:Attribute", imported on use."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings):
    """Base of a head's settings."""

    kind: str
    """Name in `HEADS`, or "package.module:Class" of a head of one's own."""


@dataclass(frozen=True)
class HeadSizes:
    """What a head has to fit.

    Attributes:
        backbone: Sizes of the backbone.
        action_horizon: H, actions of a chunk.
        execution_horizon: E, leading actions that are executed: they alone are in a density.
        num_numbers: A, numbers of an action.
    """

    backbone: BackboneSizes
    action_horizon: int
    execution_horizon: int
    num_numbers: int


@dataclass(frozen=True)
class Sampled:
    """B chunks that a head has sampled.

    Attributes:
        actions: [B, H, A], as the head counts them, see `ActionHead.is_normalized`.
        trace: What has to be kept of them to evaluate their density again.
        density: The same as `ActionHead.density` of context and trace.
    """

    actions: Tensor
    trace: Rows
    density: Density


class ActionHead(nn.Module, ABC):
    """Base of all heads.

    What a subclass says of itself beside its methods:

    Attributes:
        config_class: Frozen dataclass of its settings, a `HeadConfig`.
        exploration: Names of the settings that say how it samples: a recipe may change them, under
            [exploration], without changing what the policy does deterministically, or how it was
            pretrained.
        exploration_parameters: Beginnings of the names of its parameters that learn from reward
            even where everything else but adapters is frozen, such as a learned deviation. What the
            density reaches and the supervised loss does not has to be among them: supervised
            learners leave it as it is.
        is_normalized: Whether its actions are normalised ones (mean 0, deviation 1 in the
            demonstrations) or those in [-1, 1] that a robot takes.
        extend: Continues the backbone's text model behind a context, see `Backbone.extend`.
    """

    config_class: ClassVar[type[HeadConfig]]
    exploration: ClassVar[tuple[str, ...]] = ()
    exploration_parameters: ClassVar[tuple[str, ...]] = ()
    is_normalized: ClassVar[bool] = True
    extend: Callable[..., Tensor]

    def __init__(self, config: Any, sizes: HeadSizes) -> None:
        """Keep settings and sizes; a subclass builds its layers."""
        super().__init__()
        self.config: Any = config
        self.sizes = sizes

    @abstractmethod
    def sample(
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None
    ) -> Sampled:
        """Sample a chunk for each of B contexts; called without gradients.

        Args:
            context: As insulated as the policy is.
            deterministic: Return the mode, or what comes closest to it.
            generator: Source of all randomness, on the CPU, so that all devices draw alike.
        """

    @abstractmethod
    def density(self, context: Context, trace: Any) -> Density:
        """Return the density of stored traces [B], with the graph."""

    @abstractmethod
    def imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the supervised loss [B, H] of each action of chunks [B, H, A]."""


def find_head(kind: str) -> type[ActionHead]:
    """Return a head by its name in `HEADS`, or any other by "package.module:Class".

    Raises:
        ConfigError: There is no such head, its module fails, or it is called in another way.
    """
    if kind not in HEADS and ":" not in kind:
        raise unknown_name("head", "head", kind, all_names(HEADS, ActionHead.__name__))
    found = load_attribute(HEADS.get(kind, kind), "head", fits=_is_head)
    if not _is_head(found):
        raise ConfigError(f"head '{kind}': is not a subclass of ActionHead")
    head_class = cast(type[ActionHead], found)
    if missing := sorted(head_class.__abstractmethods__):
        raise ConfigError(f"head '{kind}': has no {', '.join(missing)}; each head needs them")
    config_class = getattr(head_class, "config_class", None)
    if not (isinstance(config_class, type) and issubclass(config_class, HeadConfig)):
        raise ConfigError(
            f"head '{kind}': config_class is {config_class!r}, expected a frozen dataclass that "
            "derives from HeadConfig"
        )
    require_hooks(head_class, ActionHead, f"head '{kind}'", "a policy")
    return head_class


def _is_head(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ActionHead) and value is not ActionHead
