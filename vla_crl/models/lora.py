"""What low-rank adapters a policy has, and of what weights they are adapters."""

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


@dataclass(frozen=True)
class BaseWeights:
    """The weights that adapters leave alone, the value head left out, as they lie on disk.

    Attributes:
        sha256: Of their names and bytes, whatever the type of numbers they are held in.
        sums: By name, of their bits as they are held: seen again, nothing has changed.
    """

    sha256: str
    sums: dict[str, int]
