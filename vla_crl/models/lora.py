"""What low-rank adapters a policy has, and of what weights they are adapters."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

from vla_crl.config import Settings

Site = Literal["head", "action_expert", "backbone", "both"]
Rank = Annotated[int, Interval(ge=1, le=4096)]


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Settings):
    """Low-rank adapters, arXiv 2106.09685: W + (alpha / rank) B A with B = 0 at the start."""

    rank: Rank = 8
    """Rank of every adapter that `ranks` does not name."""
    alpha: Annotated[int, Interval(ge=1, le=2**16)] = 16
    """Scale; the update is multiplied by alpha / rank, also where `ranks` says another rank."""
    site: Site | tuple[str, ...] = "head"
    """Whose linear layers get an adapter. "head": those that compute actions, the action expert's,
    or the backbone's where there is no expert. Or patterns of layer names: "backbone.*.q_proj". Of
    the backbone only layers count that actions depend on."""
    ranks: dict[str, Rank] = field(default_factory=dict)
    """Ranks by pattern of layer names, of which the first that fits a layer counts."""


@dataclass(frozen=True, kw_only=True)
class AdapterLayout(Settings):
    """All that an adapter is but for its numbers."""

    scale: Annotated[float, Interval(gt=0, le=2**16)]
    """What B A is multiplied by: alpha / rank."""
    ranks: Annotated[dict[str, Rank], MinLen(1)]
    """By name of the layer."""

    def __str__(self) -> str:
        """Say it in a few words."""
        ranks = sorted(set(self.ranks.values()))
        span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        return f"rank {span} in {len(self.ranks)} layers, scale {self.scale:g}"


@dataclass(frozen=True)
class BaseWeights:
    """The weights that adapters leave alone, the value head left out, as they lie on disk.

    Attributes:
        sha256: Of their names and bytes, whatever the type of numbers they are held in.
        sums: By name, of their bits as they are held: seen again, nothing has changed.
        changed: Names of those that were once seen to have changed, also where they are again as
            they were: what is stored of the policy has to hold them from then on.
    """

    sha256: str
    sums: dict[str, int]
    changed: set[str] = field(default_factory=set)
