"""Success counts of every task after every stage, and the long-format files that hold them.

Conventions:

- Stage 0 is the policy before any training, stage k the policy after k training tasks. The k-th
  training task is trained in stage k. Their order is the order of the rows of stage 0; if some
  tasks are missing there, of the first stage that has them all; if there is none (only tasks seen
  so far were evaluated), the order in which they first appear.
- Where T tasks are run through again (Continual World's CW20 is CW10 twice), stage T + k trains the
  k-th task once more. The file does not say so: who reads it gives the number of rounds.
- A joint (multitask) run has seen all T tasks at its end and writes its row as stage T.
- A cell that was not evaluated has no row in the file and the rate NaN. It never counts as 0.
- Files are CSV with a header, or JSON lines (`.jsonl`, `.ndjson`, `.json`). Columns other than the
  five named here are ignored on reading and stay untouched when a stage is appended.
- CSV is read as spreadsheets write it (`vla_crl.files.csv_text`), and "held_out" is "heldout" too.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vla_crl.contracts import Split
from vla_crl.errors import ConfigError
from vla_crl.files.csv_text import CsvText
from vla_crl.files.reading import MAX_TABLE_BYTES, parse_lines, read_text, shown
from vla_crl.files.writing import write_atomically

COLUMNS = ("stage", "task", "split", "successes", "episodes")
MAX_COUNT = 10**12
"""No file counts further; keeps sums and arrays within 64 bits."""
MAX_STAGES = 10_000
SPLIT_SPELLING = str.maketrans("", "", "_- ")
"""What files may have between the parts of "heldout"."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How often one task succeeded after one stage."""

    stage: int
    task: str
    split: Split
    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ConfigError(
                f"unknown split '{self.split}'; it is 'train' for a task of the training stream "
                "and 'heldout' for one that is only evaluated"
            )
        if not self.task or not self.task.isprintable():
            raise ConfigError(f"task is {self.task!r}; expected a name of printable characters")
        if self.stage < 0:
            raise ConfigError(f"stage is {self.stage}; stages count from 0 (before training)")
        if self.episodes < 1:
            raise ConfigError(
                f"episodes is {self.episodes}; it must be at least 1 "
                "(a task that was not evaluated has no row)"
            )
        if not 0 <= self.successes <= self.episodes:
            raise ConfigError(
                f"successes is {self.successes}; it must lie between 0 and episodes = "
                f"{self.episodes}"
            )


@dataclass(frozen=True)
class SuccessMatrix:
    """Counts [S + 1 stages, T training tasks then H held-out tasks]; S = T in a single round.

    Attributes:
        train_tasks: The T training tasks; task (k - 1) mod T is the one that stage k trains.
        heldout_tasks: The H tasks that are only evaluated.
        successes: Integer counts; 0 where not evaluated.
        episodes: Integer counts; 0 where not evaluated.
    """

    train_tasks: tuple[str, ...]
    heldout_tasks: tuple[str, ...]
    successes: np.ndarray
    episodes: np.ndarray

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks in column order."""
        return self.train_tasks + self.heldout_tasks

    @property
    def num_stages(self) -> int:
        """The number of training stages S, stage 0 not counted; T in every round."""
        return len(self.episodes) - 1

    @property
    def num_train_tasks(self) -> int:
        """The number of training tasks T."""
        return len(self.train_tasks)

    @property
    def has_rounds_only(self) -> bool:
        """Whether no stage was evaluated but the last of every round, as of a joint run."""
        last = [stage for stage in self.evaluated_stages if stage]
        return (
            bool(last)
            and self.num_train_tasks > 1
            and not any(stage % self.num_train_tasks for stage in last)
        )

    @property
    def shown_stages(self) -> tuple[int, ...]:
        """The stages that a table of all has: those that were or will be evaluated."""
        step = self.num_train_tasks if self.has_rounds_only else 1
        return tuple(range(0, self.num_stages + 1, step))

    def trained_column(self, stage: int) -> int:
        """Return the column of the task that a stage, counted from 1, trains."""
        return (stage - 1) % self.num_train_tasks

    @property
    def rates(self) -> np.ndarray:
        """Success rates [S + 1, T + H] in [0, 1], NaN where not evaluated."""
        evaluated = self.episodes > 0
        return np.where(evaluated, self.successes / np.maximum(self.episodes, 1), np.nan)

    @property
    def evaluated_stages(self) -> tuple[int, ...]:
        """The stages with at least one evaluated cell."""
        return tuple(int(stage) for stage in np.flatnonzero(self.episodes.any(axis=1)))

    def cells(self) -> Iterator[Cell]:
        """Yield the evaluated cells, stage by stage in column order."""
        for stage, column in np.argwhere(self.episodes > 0):
            yield Cell(
                stage=int(stage),
                task=self.tasks[column],
                split="train" if column < self.num_train_tasks else "heldout",
                successes=int(self.successes[stage, column]),
                episodes=int(self.episodes[stage, column]),
            )

    @classmethod
    def from_cells(
        cls, cells: Iterable[Cell], where: str = "success matrix", *, rounds: int = 1
    ) -> "SuccessMatrix":
        """Build the matrix from evaluated cells in any order.

        Args:
            cells: At least one of them belongs to a training task.
            where: What error messages name as the place.
            rounds: How often the training tasks are run through.

        Raises:
            ConfigError: A cell twice, a task with two splits, no training task, or a stage for
                which there is no training task.
        """
        return _build([(where, cell) for cell in cells], where, rounds)

    @classmethod
    def read(cls, path: str | Path, *, rounds: int = 1) -> "SuccessMatrix":
        """Read a long-format file, whoever wrote it.

        Args:
            path: CSV or JSON lines.
            rounds: How often the training tasks are run through.

        Raises:
            ConfigError: The file or a line of it cannot be used; names file and line.
        """
        path = Path(path)
        return _parse(_read_text(path), path, rounds)

    def write(self, path: str | Path) -> None:
        """Write all evaluated cells to a new file.

        Raises:
            ConfigError: The file exists already.
        """
        path = Path(path)
        if path.exists():
            raise ConfigError(f"{path}: exists already; append_stage adds to it")
        write_atomically(path, _format(self.cells(), path, COLUMNS, ",", with_header=True))


def append_stage(path: str | Path, cells: Iterable[Cell], *, rounds: int = 1) -> SuccessMatrix:
    """Add the cells of an evaluated stage to a file, which is created if missing.

    The file is replaced in one step, so a reader or a crash never meets half a stage. It keeps its
    delimiter, and is in UTF-8 afterwards.

    Returns:
        The matrix that the file now holds.

    Raises:
        ConfigError: The cells do not fit what the file holds (it stays as it was).
    """
    path = Path(path)
    text = _read_text(path) if path.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    columns, delimiter = COLUMNS, ","
    if text and not _is_json(path):
        table = CsvText(text, path)
        columns, delimiter = table.columns, table.delimiter
    text += _format(cells, path, columns, delimiter, with_header=not text)
    matrix = _parse(text, path, rounds)
    write_atomically(path, text)
    return matrix


def _build(placed_cells: list[tuple[str, Cell]], where: str, rounds: int) -> SuccessMatrix:
    """Arrange cells, each with the place that errors name."""
    splits: dict[str, Split] = {}
    seen: set[tuple[int, str]] = set()
    for place, cell in sorted(placed_cells, key=lambda placed: placed[1].stage):
        if splits.setdefault(cell.task, cell.split) != cell.split:
            raise ConfigError(
                f"{place}: task '{cell.task}' is '{cell.split}' here and "
                f"'{splits[cell.task]}' elsewhere; a task belongs to one split"
            )
        if (cell.stage, cell.task) in seen:
            raise ConfigError(
                f"{place}: task '{cell.task}' was already evaluated in stage {cell.stage}; "
                "keep one row for each stage and task"
            )
        seen.add((cell.stage, cell.task))
    cells = [cell for _, cell in placed_cells]
    train_tasks = _column_order([cell for cell in cells if cell.split == "train"])
    heldout_tasks = _column_order([cell for cell in cells if cell.split == "heldout"])
    if not train_tasks:
        raise ConfigError(f"{where}: no row has the split 'train'; nothing to measure")
    columns = {task: column for column, task in enumerate(train_tasks + heldout_tasks)}
    num_stages = rounds * len(train_tasks)
    if num_stages > MAX_STAGES:
        raise ConfigError(
            f"{where}: {rounds} rounds of {len(train_tasks)} training tasks are {num_stages} "
            f"stages, expected at most {MAX_STAGES}"
        )
    successes = np.zeros((num_stages + 1, len(columns)), dtype=np.int64)
    episodes = np.zeros_like(successes)
    for place, cell in placed_cells:
        if cell.stage > num_stages:
            raise ConfigError(
                f"{place}: stage {cell.stage}, but there are only {num_stages} "
                f"({len(train_tasks)} training tasks in {rounds} round(s)); stage k is the policy "
                "after k trainings; --rounds says how often the stream was run through"
            )
        successes[cell.stage, columns[cell.task]] = cell.successes
        episodes[cell.stage, columns[cell.task]] = cell.episodes
    return SuccessMatrix(train_tasks, heldout_tasks, successes, episodes)


def _column_order(cells: list[Cell]) -> tuple[str, ...]:
    """Return the tasks in the order of the first complete stage, else of first appearance."""
    stages: dict[int, list[str]] = {}
    for cell in sorted(cells, key=lambda cell: cell.stage):
        stages.setdefault(cell.stage, []).append(cell.task)
    appearance = dict.fromkeys(task for tasks in stages.values() for task in tasks)
    complete = (tasks for tasks in stages.values() if len(tasks) == len(appearance))
    return tuple(next(complete, appearance))


def _parse(text: str, path: Path, rounds: int) -> SuccessMatrix:
    records = parse_lines(text, path) if _is_json(path) else _csv_records(text, path)
    placed_cells = []
    for place, record in records:
        try:
            placed_cells.append((place, _parse_cell(record)))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
    if not placed_cells:
        raise ConfigError(f"{path}: no rows; expected the columns {', '.join(COLUMNS)}")
    return _build(placed_cells, str(path), rounds)


def _parse_cell(record: Mapping[str, Any]) -> Cell:
    missing = [column for column in COLUMNS if record.get(column) is None]
    if missing:
        raise ConfigError(f"no '{missing[0]}'; expected the columns {', '.join(COLUMNS)}")
    if not isinstance(record["task"], str | int):
        raise ConfigError(f"task is {shown(record['task'])}; expected its name")
    split = str(record["split"]).strip()
    known = split.lower().translate(SPLIT_SPELLING)
    return Cell(
        stage=_parse_count(record, "stage"),
        task=str(record["task"]).strip(),
        split=known if known in get_args(Split) else split,  # pyright: ignore[reportArgumentType] (Cell checks)
        successes=_parse_count(record, "successes"),
        episodes=_parse_count(record, "episodes"),
    )


def _parse_count(record: Mapping[str, Any], column: str) -> int:
    value = record[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # pandas writes 2.0
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (number.is_integer() and abs(number) <= MAX_COUNT):
        raise ConfigError(
            f"{column} is {shown(value)}; it must be a whole number up to {MAX_COUNT:.0e}"
        )
    return int(number)


def _csv_records(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    table = CsvText(text, path)
    columns, lines = table.columns, table.lines()
    for number, _ in itertools.islice(lines, 1):
        wrong = [column for column in COLUMNS if columns.count(column) != 1]
        if wrong:
            found = ", ".join(columns)
            raise ConfigError(
                f"{path}:{number}: {columns.count(wrong[0]) or 'no'} column '{wrong[0]}'; "
                f"found {found[:200]}, expected {', '.join(COLUMNS)}"
            )
    for number, values in lines:
        if len(values) != len(columns):
            raise ConfigError(f"{path}:{number}: {len(values)} values, expected {len(columns)}")
        yield f"{path}:{number}", dict(zip(columns, values, strict=True))


def _format(
    cells: Iterable[Cell],
    path: Path,
    columns: Iterable[str],
    delimiter: str,
    *,
    with_header: bool,
) -> str:
    rows = [asdict(cell) for cell in cells]
    if _is_json(path):
        return "".join(json.dumps(row) + "\n" for row in rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, list(columns), restval="", lineterminator="\n", delimiter=delimiter
    )
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson", ".json")


def _read_text(path: Path) -> str:
    try:
        return read_text(path, MAX_TABLE_BYTES)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; expected a long-format success matrix (.csv or .jsonl) with the columns "
            f"{', '.join(COLUMNS)}"
        ) from error
