"""Files with one line an episode: how it was played and how it ended.

Lines are only added, so that a long run does not write its past again and again. A process that was
killed may leave a line without its end, or lines that a resumed run writes once more: `keep_until`
drops them.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_crl.errors import ConfigError
from vla_crl.files.reading import MAX_TABLE_BYTES, read_text
from vla_crl.files.writing import append, sync, write_atomically

EVALUATION_COLUMNS = ("stage", "task", "state_id", "success", "num_steps", "seed")
"""Of every evaluation: the stage after which it was, empty outside of a run; the task's name, the
initial state, 1 or 0, control steps, the seed of the run."""
TRAINING_COLUMNS = (
    *("stage", "iteration", "episode", "task", "state_id", "group", "num_steps", "success"),
)
"""Of training: the iteration in which it ended, its number in the stage, the task's name, the
initial state, the group of `Batch`, control steps, 1 or 0."""


@dataclass(frozen=True)
class EpisodeFile:
    """One CSV file.

    Attributes:
        path: Where; the file is begun with the first lines.
        columns: Names in its first line.
        num_ordering: The lines are in the order of so many first columns, whole numbers.
    """

    path: Path
    columns: Sequence[str]
    num_ordering: int

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Add lines, and wait until the disk has them."""
        is_new = not self.path.exists()
        append(self.path, _text([self.columns] * is_new + [*rows]))
        sync(self.path)

    def places(self) -> list[tuple[int, ...]]:
        """Return the ordering columns of every line below the head.

        Raises:
            ConfigError: The file cannot be read, is another one, or a line has no such columns.
        """
        return [self._place(line) for line in self.lines()]

    def keep_until(self, *last: float) -> None:
        """Drop the lines that a resumed run will write again.

        Args:
            last: Ordering columns of the last line that stays.

        Raises:
            ConfigError: As `places`; the file stays as it was.
        """
        if self.path.exists():
            kept = [line for line in self.lines() if self._place(line) <= last]
            write_atomically(self.path, _text([self.columns, *kept]))

    def lines(self) -> Iterator[list[str]]:
        """Yield the lines below the head; one cut off by a kill is left out.

        Raises:
            ConfigError: The file cannot be read, or is another one.
        """
        if not self.path.exists():
            return
        whole, _, _ = read_text(self.path, MAX_TABLE_BYTES).rpartition("\n")
        lines = _records(whole, self.path)
        head = next(lines, list(self.columns))
        if head != list(self.columns):
            raise ConfigError(
                f"{self.path}:1: got the columns {','.join(head)[:200]}, expected "
                f"{','.join(self.columns)}{_renamed(head, self.path)}"
            )
        yield from lines

    def _place(self, line: Sequence[str]) -> tuple[int, ...]:
        try:
            if len(line) < len(self.columns):
                raise ValueError
            return tuple(map(int, line[: self.num_ordering]))
        except ValueError as error:
            begins = " and ".join(self.columns[: self.num_ordering])
            raise ConfigError(
                f"{self.path}: the line {','.join(line)[:60]!r} does not begin with {begins}, or "
                f"has not {len(self.columns)} columns; restore the file"
            ) from error


def _records(text: str, path: Path) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        yield from reader
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _renamed(head: Sequence[str], path: Path) -> str:
    """Tell who goes on with an older run what its file is called now."""
    if tuple(head) != TRAINING_COLUMNS:
        return ""
    return (
        "; older versions kept the episodes of training under this name: rename the file to "
        f"training_{path.name}"
    )


def _text(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
