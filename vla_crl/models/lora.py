"""What low-rank adapters a policy has."""

from dataclasses import dataclass
from typing import Literal

from vla_crl.errors import ConfigError

Site = Literal["action_expert", "backbone", "both"]


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters, arXiv 2106.09685: W + (alpha / rank) B A with B = 0 at the start."""

    rank: int = 8
    """Rank of every adapter."""
    alpha: int = 16
    """Scale; the update is multiplied by alpha / rank."""
    site: Site = "action_expert"
    """Whose linear layers get an adapter; of the backbone those that feed the action expert."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rank < 1 or self.alpha < 1:
            raise ConfigError(
                f"LoRA: rank and alpha must be >= 1, got {self.rank} and {self.alpha}"
            )
