"""What commands return, as tables in the terminal."""

import itertools
from collections.abc import Sequence
from typing import Any

_NAMES = {"name", "task"}
"""Columns that are there to be copied: never wrapped, nothing cut."""
_READABLE = 8
"""Characters that other columns have at least, if need be by a table wider than the terminal."""


def print_rows(result: Sequence[dict[str, Any]] | dict[str, Any]) -> None:
    """Print rows as a table; an object as its values and, below, its list of rows."""
    from rich.table import Table

    from vla_crl.progress import PlainConsole

    console = PlainConsole()
    if isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, list):
                print_rows(value)
            else:
                console.print(f"{key}: {value}", soft_wrap=True)
        return
    width, columns = console.width, [column for column in result[0] if column != "suite"]
    for suite, rows in itertools.groupby(result, key=lambda row: row.get("suite")):
        table = Table(title=suite, title_justify="left")
        for column in columns:
            table.add_column(column, no_wrap=column in _NAMES, overflow="fold")
        cells = [[_cell(row[column]) for column in columns] for row in rows]
        for row in cells:
            table.add_row(*row)
        console.width = max(width, _least_width(columns, cells))
        console.print(table)


def _least_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return how wide a table must be for its other columns to stay readable beside long names."""
    width = 1
    for place, column in enumerate(columns):
        longest = max(len(column), *(len(row[place]) for row in cells))
        width += 3 + (longest if column in _NAMES else min(longest, _READABLE))
    return width


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if 0.0 < abs(value) < 0.0005 else f"{value:.3f}"
    return str(value)
