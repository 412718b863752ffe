"""Progress bars with remaining time for long work, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class PlainConsole(Console):
    """Prints text as it is: nothing in it is markup, emoji or a number."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Print to the output, or to the error stream."""
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Let the caller know that nobody reads any more; rich itself would exit, with 1."""
        raise  # noqa: PLE0704 - rich calls this where it handles the error


console = PlainConsole(stderr=True)
"""Where people read along; stdout stays free for documents."""
LOG_EVERY_S = 60.0
"""In a log file, where no bar can move, a line tells the same so often."""


@dataclass
class Tracker:
    """Handle of one bar."""

    progress: Progress
    task: TaskID
    told: float = field(default_factory=perf_counter)

    def advance(self, amount: int, note: str = "") -> None:
        """Move the bar and show a short note behind it."""
        self.progress.update(self.task, advance=amount, note=note)
        if not console.is_terminal and perf_counter() - self.told > LOG_EVERY_S:
            self.told, bar = perf_counter(), self.progress.tasks[self.task]
            left = "" if bar.time_remaining is None else f", {bar.time_remaining:.0f} s left"
            self.print(f"{bar.description}: {bar.completed:.0f} of {bar.total:.0f}{left}")

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(line, soft_wrap=True)


@contextmanager
def track(description: str, total: int) -> Iterator[Tracker]:
    """Show a bar of `total` units while the block runs."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Tracker(progress, progress.add_task(description, total=total, note=""))
