"""What a benchmark returns: a number, the peer it is compared with, and the machine."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from vla_crl.errors import SpecError
from vla_crl.hardware import hardware_name

GoalKind = Literal["at least", "at most"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """One measured number: a rate, of which more is better, or a cost, of which less is."""

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
    """The ratio wanted; None: no goal."""
    goal_kind: GoalKind
    """Whether the ratio should be at least the goal, as for a rate, or at most, as for a cost."""
    hardware: str

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the goal; None without a goal."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio >= self.goal if self.goal_kind == "at least" else self.ratio <= self.goal


def against_peer(
    name: str, value: float, unit: str, peer: str, peer_value: float, *,
    goal: float | None = None, goal_kind: GoalKind = "at least",
) -> BenchRecord:  # fmt: skip
    """Build the record of a number and of its peer's number in the same unit.

    Args:
        name: What was measured.
        value: The number.
        unit: Unit of both numbers.
        peer: What the number is compared with.
        peer_value: The peer's number, > 0.
        goal: The value / peer_value wanted.
        goal_kind: Whether that is the smallest or the largest wanted.

    Raises:
        SpecError: The peer's number is not positive, so there is no ratio.
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
        goal_kind=goal_kind,
        hardware=hardware_name(),
    )


def alone(name: str, value: float, unit: str) -> BenchRecord:
    """Build the record of a number that is compared with nothing."""
    return BenchRecord(
        name=name,
        value=value,
        unit=unit,
        peer=None,
        peer_value=None,
        ratio=None,
        goal=None,
        goal_kind="at least",
        hardware=hardware_name(),
    )


def print_table(records: Sequence[BenchRecord]) -> None:
    """Print the records as a table, with the machine below."""
    from rich.table import Table

    from vla_crl.progress import PlainConsole

    table = Table(caption=records[0].hardware if records else None, show_lines=True)
    table.add_column("benchmark", overflow="fold")  # a name is there to be copied, never cut
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("peer", overflow="fold")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("goal", justify="right", no_wrap=True)
    for record in records:
        met = {None: "", True: " met", False: " missed"}[record.met]
        sign = {"at least": ">=", "at most": "<="}[record.goal_kind]
        peer = "" if record.peer_value is None else f"{record.peer_value:,.1f}: {record.peer}"
        table.add_row(
            record.name,
            f"{record.value:,.1f} {record.unit}",
            peer,
            "" if record.ratio is None else f"{record.ratio:.2f}",
            "" if record.goal is None else f"{sign} {record.goal:g}{met}",
        )
    PlainConsole().print(table)
