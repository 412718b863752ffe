"""What a benchmark returns: a rate, the peer it is compared with, and the machine."""

import dataclasses
from collections.abc import Sequence

from vla_crl.errors import SpecError
from vla_crl.hardware import hardware_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """One measured rate. More is better, for the value and for the peer."""

    name: str
    """What was measured, e.g. "sim.step"."""
    value: float
    unit: str
    """Unit of `value` and `peer_value`, e.g. "frames/s"."""
    peer: str | None
    """What it is compared with, measured in the same run; None: nothing."""
    peer_value: float | None
    ratio: float | None
    """value / peer_value."""
    goal: float | None
    """The smallest ratio wanted; None: no goal."""
    hardware: str

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the goal; None without a goal."""
        return None if self.goal is None or self.ratio is None else self.ratio >= self.goal


def against_peer(
    name: str, value: float, unit: str, peer: str, peer_value: float, *, goal: float | None = None
) -> BenchRecord:
    """Build the record of a rate and of its peer's rate in the same unit.

    Args:
        name: What was measured.
        value: The rate.
        unit: Unit of both rates.
        peer: What the rate is compared with.
        peer_value: The peer's rate, > 0.
        goal: The smallest value / peer_value wanted.

    Raises:
        SpecError: The peer's rate is not positive, so there is no ratio.
    """
    if not peer_value > 0:
        raise SpecError(f"{name}: peer '{peer}' measured {peer_value} {unit}, expected more than 0")
    return BenchRecord(
        name=name,
        value=value,
        unit=unit,
        peer=peer,
        peer_value=peer_value,
        ratio=value / peer_value,
        goal=goal,
        hardware=hardware_name(),
    )


def print_table(records: Sequence[BenchRecord]) -> None:
    """Print the records as a table, with the machine below."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", caption=records[0].hardware if records else None)
    for column in ("value", "unit", "peer", "peer value", "ratio", "goal"):
        table.add_column(column, justify="left" if column in {"unit", "peer"} else "right")
    for record in records:
        met = {None: "", True: " met", False: " missed"}[record.met]
        table.add_row(
            record.name,
            f"{record.value:,.1f}",
            record.unit,
            record.peer or "",
            "" if record.peer_value is None else f"{record.peer_value:,.1f}",
            "" if record.ratio is None else f"{record.ratio:.2f}",
            "" if record.goal is None else f">= {record.goal:g}{met}",
        )
    Console().print(table)
