"""What low-rank adapters a policy has, and of what weights they are adapters."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from vla_crl.config import Settings

Site = Literal["action_expert", "backbone", "both"]


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Settings):
    """Low-rank adapters, arXiv 2106.09685: W + (alpha / rank) B A with B = 0 at the start."""

    rank: Annotated[int, Interval(ge=1, le=4096)] = 8
    """Rank of every adapter."""
    alpha: Annotated[int, Interval(ge=1, le=2**16)] = 16
    """Scale; the update is multiplied by alpha / rank."""
    site: Site = "action_expert"
    """Whose linear layers get an adapter; of the backbone those that feed the action expert."""


@dataclass(frozen=True)
class BaseWeights:
    """The weights that adapters leave alone, the value head left out, as they lie on disk.

    Attributes:
        sha256: Of their names and bytes, whatever the type of numbers they are held in.
        sums: By name, of their bits as they are held: seen again, nothing has changed.
    """

    sha256: str
    sums: dict[str, int]
