"""Outcomes compared state by state: two stages of a run, or two runs.

Evaluations begin from the same test states, so most of what makes one episode harder than another
is the same on both sides, and a comparison of pairs finds smaller differences than one of rates.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from vla_crl.continual.statistics import Pairs, mcnemar, paired_interval
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.errors import ConfigError
from vla_crl.report.run_record import RunRecord
from vla_crl.report.wording import p_value, percent, points, task_label
from vla_crl.rollout.fingerprint import differences
from vla_crl.runs.episodes import EpisodeFile

Cell = tuple[int, str]
"""Stage and task."""
Outcomes = Mapping[Cell, Mapping[int, bool]]
"""For each cell whether the episode from each initial state succeeded."""

HOW = (
    "Evaluations begin from the same test states, so they can be compared state by state. The "
    "interval of the difference, in percentage points, is Newcombe's for paired samples; p is "
    "McNemar's exact test: how probable so uneven a split of the states that changed would be if "
    "none of the two were better. Where nothing changed, one row in twenty still has p < 0.05."
)


@dataclass(frozen=True)
class PairedTable:
    """Two attempts at the same states, task by task.

    Attributes:
        title: What is compared.
        columns: Words for: success of the first, success of the second, states at which only the
            second succeeded, states at which only the first did.
        groups: Several tasks taken together, by what they are called.
        tasks: Each task by name.
    """

    title: str
    columns: tuple[str, str, str, str]
    groups: Mapping[str, Pairs]
    tasks: Mapping[str, Pairs]

    @property
    def header(self) -> tuple[str, ...]:
        """Column titles that belong to `rows`."""
        first, second, gained, lost = self.columns
        return ("", "states", first, second, "difference", "95 % interval", gained, lost, "p")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Groups, then tasks."""
        named = [*self.groups.items(), *((task_label(t), pairs) for t, pairs in self.tasks.items())]
        return [(name, *_numbers(pairs)) for name, pairs in named]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same test states.

    Attributes:
        names: Of the first and the second.
        stage: After which both are compared.
        settings: In what their recipes differ: name, value of the first, value of the second.
        unlike: In what else they were not made alike, one line each.
        total: All states.
        table: Task by task.
    """

    names: tuple[str, str]
    stage: int
    settings: tuple[tuple[str, str, str], ...]
    unlike: tuple[str, ...]
    total: Pairs
    table: PairedTable

    @property
    def sentence(self) -> str:
        """What came out, claiming nothing that its interval does not support."""
        first, second = self.names
        value, pairs = paired_interval(self.total), self.total
        if value.low <= 0 <= value.high:
            result = f"no difference between {first} and {second} is measurable"
        else:
            better, worse = (second, first) if value.low > 0 else (first, second)
            result = f"{better} succeeds more often than {worse}"
        span = f"{points(value.value)} points, 95 % interval {points(value.low)} to"
        return (
            f"After stage {self.stage} of both, on {pairs.num:,} shared test states, {result}: "
            f"{percent(pairs.first)} of {first}, {percent(pairs.second)} of {second} ({span} "
            f"{points(value.high)}, McNemar's exact p: {p_value(mcnemar(pairs))})."
        )


def stage_tables(record: RunRecord) -> list[PairedTable]:
    """Compare what a run could do before training, after each task's own stage, and last.

    Returns:
        None, one or two tables, as far as there are episodes to compare.

    Raises:
        ConfigError: A line of episodes.csv cannot be used.
    """
    matrix = record.matrix
    if matrix is None or (last := max(matrix.evaluated_stages)) == 0:
        return []
    own = {task: _own_stage(matrix, task, last) for task in matrix.train_tasks}
    taught = {task: stage for task, stage in own.items() if 0 < stage < last}
    needed = {(stage, task) for stage in (0, last) for task in matrix.tasks}
    outcomes = read_outcomes(record.run.episodes, needed | {(s, t) for t, s in taught.items()})
    end = f"after stage {last}"
    change = {task: _pairs(outcomes, (0, task), outcomes, (last, task)) for task in matrix.tasks}
    keeping = {
        task: _pairs(outcomes, (stage, task), outcomes, (last, task))
        for task, stage in taught.items()
    }
    tables = (
        _table(
            f"From before training to {end}",
            ("before", "after", "gained", "lost"),
            {"training tasks": matrix.train_tasks, "held-out tasks": matrix.heldout_tasks},
            change,
        ),
        _table(
            f"From right after a task's own stage to {end}",
            ("own stage", "last", "gained since", "forgotten"),
            {"tasks of earlier stages": tuple(taught)},
            keeping,
        ),
    )
    return [table for table in tables if table.tasks]


def compare_runs(first: RunRecord, second: RunRecord) -> Comparison:
    """Compare two runs after the last stage that both have evaluated.

    Raises:
        ConfigError: They share no test states, or no stage after which both have episodes.
    """
    where = f"{first.run.path} and {second.run.path}"
    if first.run.path.resolve() == second.run.path.resolve():
        raise ConfigError(f"{where}: are one run; name another to compare it with")
    suites = [record.config.get("suite") for record in (first, second)]
    if suites[0] != suites[1]:
        raise ConfigError(
            f"{where}: are on the suites '{suites[0]}' and '{suites[1]}', so their test states are "
            "not the same; compare runs on one suite"
        )
    if first.matrix is None or second.matrix is None:
        raise ConfigError(f"{where}: one has no {first.run.matrix_file.name}, no results yet")
    common = set(first.matrix.evaluated_stages) & set(second.matrix.evaluated_stages)
    if not common:
        raise ConfigError(f"{where}: no stage is evaluated in both")
    stage = max(common)
    needed = {(stage, task) for task in first.matrix.tasks}
    outcomes = [read_outcomes(record.run.episodes, needed) for record in (first, second)]
    pairs = {
        task: _pairs(outcomes[0], (stage, task), outcomes[1], (stage, task))
        for task in first.matrix.tasks
    }
    names = _names(first, second)
    splits = {"trained in both": "train_tasks", "held out of both": "heldout_tasks"}
    groups = {
        name: tuple(t for t in getattr(first.matrix, key) if t in getattr(second.matrix, key))
        for name, key in splits.items()
    }
    table = _table(
        f"{names[0]} and {names[1]}, after stage {stage}",
        (*names, f"only {names[1]}", f"only {names[0]}"),
        {"all shared tasks": first.matrix.tasks, **groups},
        pairs,
    )
    if not table.tasks:
        raise ConfigError(
            f"{where}: share no evaluated test state after stage {stage}; both need an "
            f"{first.run.episodes.path.name}, which older runs lack, and a task in common"
        )
    settings = first.differing_settings(second).items()
    return Comparison(
        names,
        stage,
        tuple((key, _text(one), _text(other)) for key, (one, other) in settings),
        tuple(differences(first.made, second.made)),
        reduce(add, table.tasks.values()),
        table,
    )


def read_outcomes(file: EpisodeFile, cells: Container[Cell]) -> Outcomes:
    """Read the episodes of some cells.

    Args:
        file: Of evaluations; it may be missing.
        cells: Stages and tasks.

    Raises:
        ConfigError: A line cannot be used, or an episode is there twice.
    """
    outcomes: dict[Cell, dict[int, bool]] = {}
    for line in file.lines():
        try:
            stage, task, state, success, _, _ = line
            cell, state_id, succeeded = (int(stage), task), int(state), ("0", "1").index(success)
        except ValueError as error:
            raise ConfigError(
                f"{file.path}: the line {','.join(line)[:60]!r} is no episode; expected "
                f"{','.join(file.columns)}; restore the file"
            ) from error
        if cell not in cells:
            continue
        states = outcomes.setdefault(cell, {})
        if state_id in states:
            raise ConfigError(
                f"{file.path}: the episode of task '{task}' from state {state_id} after stage "
                f"{stage} is there twice; restore the file"
            )
        states[state_id] = bool(succeeded)
    return outcomes


def _pairs(first: Outcomes, cell: Cell, second: Outcomes, other: Cell) -> Pairs:
    """Count the states that both cells have."""
    one, two = first.get(cell, {}), second.get(other, {})
    shared = [state for state in one if state in two]
    return Pairs.count([one[state] for state in shared], [two[state] for state in shared])


def _table(
    title: str,
    columns: tuple[str, str, str, str],
    groups: Mapping[str, Sequence[str]],
    pairs: Mapping[str, Pairs],
) -> PairedTable:
    """Leave out what has no pairs, and groups that say nothing that their tasks do not."""
    known = {task: counts for task, counts in pairs.items() if counts.num}
    sums, seen = {}, set[frozenset[str]]()
    for name, tasks in groups.items():
        members = frozenset(task for task in tasks if task in known)
        if len(members) > 1 and members not in seen:
            sums[f"{len(members)} {name}"] = reduce(add, (known[task] for task in members))
        seen.add(members)
    return PairedTable(title, columns, sums, known)


def _own_stage(matrix: SuccessMatrix, task: str, last: int) -> int:
    """Return the last stage until `last` that trained a task, 0 if there is none."""
    num_train = matrix.num_train_tasks
    first = num_train if matrix.has_rounds_only else matrix.train_tasks.index(task) + 1
    return max(range(first, last + 1, num_train), default=0)


def _numbers(pairs: Pairs) -> tuple[str, ...]:
    value = paired_interval(pairs)
    return (
        f"{pairs.num:,}",
        percent(pairs.first),
        percent(pairs.second),
        points(value.value),
        f"{points(value.low)} to {points(value.high)}",
        f"{pairs.gained:,}",
        f"{pairs.lost:,}",
        p_value(mcnemar(pairs)),
    )


def _names(first: RunRecord, second: RunRecord) -> tuple[str, str]:
    """Return the names of the folders, or their paths where these are the same."""
    if first.name != second.name:
        return first.name, second.name
    return str(first.run.path), str(second.run.path)


def _text(value: Any) -> str:
    return "not there" if value is None else str(value)
