"""What a benchmark returns: a rate, the peer it is compared with, and the machine."""

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from vla_crl.errors import SpecError


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


def without_peer(name: str, value: float, unit: str) -> BenchRecord:
    """Build the record of a rate that nothing is compared with."""
    return BenchRecord(
        name=name,
        value=value,
        unit=unit,
        peer=None,
        peer_value=None,
        ratio=None,
        goal=None,
        hardware=hardware_name(),
    )


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def hardware_name() -> str:
    """Return the machine in words, e.g. "AMD EPYC 7B13, 2 cores"."""
    return f"{cpu_model()}, {num_cores()} core{'s' if num_cores() > 1 else ''}"


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
