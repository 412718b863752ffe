"""Results as tables: for the terminal, for Markdown files, and over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_crl.continual.metrics import METRICS, compute_metrics
from vla_crl.continual.statistics import SeedSummary, summarize_seeds, wilson_interval
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.errors import ConfigError
from vla_crl.files.writing import write_atomically
from vla_crl.report.pairing import HOW, Comparison, stage_tables
from vla_crl.report.run_record import RunRecord, run_names
from vla_crl.report.wording import (
    MISSING,
    duration,
    loss_sentence,
    metric_interval,
    metric_value,
    percent,
    sentences,
    stage_label,
    task_label,
)
from vla_crl.rollout.fingerprint import PACKAGES, differences
from vla_crl.rounding import percentage

Row = tuple[str, ...]
TASK_WIDTH, STAGE_WIDTH = 36, 6
"""Characters that task and split take in a terminal's table, and each stage."""
MAX_CELLS = 2000
"""Of a success matrix that is written out cell by cell."""


@dataclass(frozen=True)
class RunsSummary:
    """Metrics of runs that differ in their seed only.

    Attributes:
        names: Names of the runs.
        values: For each metric one value a run; None where a run cannot give it.
        summaries: For each metric its mean over the runs; None where a run lacks it.
        facts: What ran where for how long, one mapping a run (`run_facts`).
        matrices: Success matrix of each run.
        unlike: In what the runs were not made alike, one line each.
    """

    names: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]
    summaries: dict[str, SeedSummary | None]
    facts: tuple[dict[str, str], ...]
    matrices: tuple[SuccessMatrix, ...]
    unlike: tuple[str, ...]


def metric_rows(matrix: SuccessMatrix) -> list[Row]:
    """Return (name, title, value, 95 % interval) of every metric as text."""
    rows = []
    for name, estimate in compute_metrics(matrix).items():
        value, low, high = (
            (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
        )
        note = ", lower is better" if METRICS[name].lower_is_better else ""
        title = f"{METRICS[name].title} ({METRICS[name].symbol}{note})"
        rows.append((name, title, metric_value(name, value), metric_interval(name, low, high)))
    return rows


def matrix_table(matrix: SuccessMatrix) -> tuple[Row, list[Row]] | None:
    """Return column titles, and one row a stage: its label, then "82 % (73 to 88)" for every task.

    In parentheses Wilson's 95 % interval in percent.

    Returns:
        None where there would be more than `MAX_CELLS`.
    """
    if matrix.rates.size > MAX_CELLS:
        return None
    texts = {}
    for cell in matrix.cells():
        low, high = wilson_interval(cell.successes, cell.episodes)
        rate = percent(cell.successes / cell.episodes)
        texts[cell.stage, cell.task] = f"{rate} ({percentage(low)} to {percentage(high)})"
    rows = [
        (
            stage_label(stage, matrix),
            *(texts.get((stage, task), MISSING) for task in matrix.tasks),
        )
        for stage in matrix.shown_stages
    ]
    return _matrix_header(matrix), rows


def too_large(matrix: SuccessMatrix, file: Path) -> str:
    """Say where the cells are that are not written out."""
    return f"{matrix.rates.size:,} cells, too many to be read here: {file.name} has them."


def _matrix_header(matrix: SuccessMatrix) -> Row:
    trained = [f"{number}. {task_label(task)}" for number, task in enumerate(matrix.train_tasks, 1)]
    return ("", *trained, *(f"held out: {task_label(task)}" for task in matrix.heldout_tasks))


def print_results(matrix: SuccessMatrix, console: Console) -> None:
    """Print the success matrix, tasks as rows and stages as columns, and the metrics.

    Stages that do not fit beside each other stand in further tables. Of a matrix that nobody would
    read so, the first and the last stage are printed.
    """
    num_stages = len(matrix.rates)
    num_columns = max((console.width - TASK_WIDTH) // STAGE_WIDTH, 1)
    shown = [
        range(first, min(first + num_columns, num_stages))
        for first in range(0, num_stages, num_columns)
    ]
    if matrix.rates.size > MAX_CELLS:
        shown = [[0, num_stages - 1]]
        console.print(f"{matrix.rates.size:,} cells, of which the first and the last stage follow")
    for stages in shown:
        rows = [
            (
                task_label(task),
                "trained" if task in matrix.train_tasks else "held out",
                *(MISSING if np.isnan(rate) else percentage(rate) for rate in rates[stages]),
            )
            for task, rates in zip(matrix.tasks, matrix.rates.T, strict=True)
        ]
        title = "Success on the test states in % after every stage (0: before training)"
        header = ("task", "split", *map(str, stages))
        console.print(_terminal_table(title, header, rows))
    header = ("metric", "name", "value", "95 % interval")
    rows = [(title, name, *rest) for name, title, *rest in metric_rows(matrix)]
    console.print(_terminal_table("Metrics, differences in percentage points", header, rows))


def run_facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return label and text of what ran where for how long; unknown facts are left out."""
    versions = record.versions
    facts: list[tuple[str, str]] = []
    if record.iterations:
        facts.append(("training episodes", f"{record.num_episodes:,}"))
    facts += _times(record)
    if record.matrix is not None:
        counts = np.unique(record.matrix.episodes[record.matrix.episodes > 0])
        span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        facts.append(("test episodes", f"{span} for each task and stage"))
    if {"cpu_model", "num_cores"} <= versions.keys():
        facts.append(("hardware", f"{versions['cpu_model']}, {versions['num_cores']} cores"))
    if versions.get("conditions"):
        told = (f"{key} {value}" for key, value in versions["conditions"].items())
        facts.append(("simulation", ", ".join(told)))
    if "seed" in versions:
        facts.append(("seed", str(versions["seed"])))
    if "command" in versions:
        facts.append(("command", " ".join(versions["command"])))
    if "vla_crl" in versions:
        facts.append(("code", f"vla-crl {versions['vla_crl']}{_commit(versions.get('git'))}"))
    if record.sources:
        told = (f"{kept.fingerprint} from stage {kept.since_stage}" for kept in record.sources[1:])
        facts.append(("own sources", ", ".join([record.sources[0].fingerprint, *told])))
    if "python" in versions:
        facts.append(("system", f"Python {versions['python']}, {versions.get('platform', '')}"))
    packages = versions.get("packages", {})
    if told := [f"{name} {packages[name]}" for name in PACKAGES if name in packages]:
        facts.append(("packages", ", ".join(told)))
    return facts


def _times(record: RunRecord) -> list[tuple[str, str]]:
    known = (
        ("training time", record.wall_s, "wall clock"),
        ("whole command", record.versions.get("command_s"), "with last evaluation and films"),
    )
    return [(label, f"{duration(s)} ({note})") for label, s, note in known if s is not None]


def write_markdown_summary(run_path: str | Path, path: str | Path) -> Path:
    """Write the numbers of a run as Markdown, to be committed beside its recipe.

    Raises:
        ConfigError: Not a run directory, or one in which nothing is evaluated yet.
    """
    record = RunRecord.read(run_path)
    matrix = record.matrix
    if matrix is None:
        raise ConfigError(f"{run_path}: no {record.run.matrix_file.name}, nothing to summarise yet")
    paragraphs = [
        f"# {record.name}",
        " ".join(sentences(matrix)),
        _markdown(("fact", ""), run_facts(record)),
        "## Metrics",
        _markdown(("name", "metric", "value", "95 % interval"), metric_rows(matrix)),
        "## Success on the test states",
        "Deterministic policy, in percent, with Wilson's 95 % interval.",
        _matrix_markdown(matrix, record.run.matrix_file),
    ]
    if paired := stage_tables(record):
        paragraphs += ["## State by state", HOW]
    for table in paired:
        paragraphs += [f"### {table.title}", _markdown(table.header, table.rows)]
    if record.sampled_matrix is not None:
        sampled = record.sampled_matrix
        paragraphs += [
            "## The same with the sampling policy",
            _markdown(("name", "metric", "value", "95 % interval"), metric_rows(sampled)),
            _matrix_markdown(sampled, record.run.sampled_matrix_file),
        ]
    write_atomically(Path(path), "\n\n".join(paragraphs) + "\n")
    return Path(path)


def _matrix_markdown(matrix: SuccessMatrix, file: Path) -> str:
    table = matrix_table(matrix)
    return _markdown(*table) if table else too_large(matrix, file)


def comparison_markdown(comparison: Comparison) -> str:
    """Write two runs beside each other as Markdown."""
    paragraphs = [
        f"# {' beside '.join(comparison.names)}",
        comparison.sentence,
        HOW,
        _markdown(comparison.table.header, comparison.table.rows),
        _markdown(("setting", *comparison.names), comparison.settings),
    ]
    if comparison.unlike:
        paragraphs.insert(2, f"**The runs were not made alike.** {'; '.join(comparison.unlike)}.")
    return "\n\n".join(paragraphs) + "\n"


def summarize_runs(run_paths: Sequence[str | Path]) -> RunsSummary:
    """Average the metrics of several runs; the run is the unit, not the episode.

    Args:
        run_paths: Run directories of the same tasks, one a seed.

    Raises:
        ConfigError: A run without results, or runs on different tasks.
    """
    records = [RunRecord.read(path) for path in run_paths]
    if not records:
        raise ConfigError("summarize_runs: no run given; name at least one run directory")
    _check_comparable(records)
    values: dict[str, tuple[float | None, ...]] = dict.fromkeys(METRICS, ())
    matrices: list[SuccessMatrix] = []
    for record in records:
        if record.matrix is None:
            raise ConfigError(
                f"{record.run.path}: no {record.run.matrix_file.name}, no results yet"
            )
        if matrices and set(record.matrix.tasks) != set(matrices[0].tasks):
            raise ConfigError(
                f"{record.run.path}: its tasks are not those of {records[0].run.path}; "
                "only runs on the same tasks can be averaged"
            )
        matrices.append(record.matrix)
        for name, estimate in compute_metrics(record.matrix).items():
            values[name] += (estimate.value if estimate else None,)
    summaries = {name: _summarize(runs) for name, runs in values.items()}
    facts = tuple(dict(run_facts(record)) for record in records)
    names = run_names(records)
    unlike = [line for record in records[1:] for line in differences(records[0].made, record.made)]
    return RunsSummary(
        names, values, summaries, facts, tuple(matrices), tuple(dict.fromkeys(unlike))
    )


def _check_comparable(records: Sequence[RunRecord]) -> None:
    """Refuse to average runs that differ in more than their seed."""
    first = records[0]
    for record in records[1:]:
        if wrong := first.differing_settings(record):
            raise ConfigError(
                f"{record.run.path}: differs from {first.run.path} in {', '.join(wrong)}; "
                "only runs that differ in their seed can be averaged"
            )
    seeds = [record.config.get("seed") for record in records]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"runs of the seeds {seeds}: one is there twice; name each seed once")


def runs_markdown(summary: RunsSummary) -> str:
    """Write the metrics of several runs, their mean, standard error and interval as Markdown."""
    num_runs = len(summary.names)
    header = ("metric", *summary.names, f"mean ± SE (n = {num_runs})", "95 % interval (t)")
    rows = []
    for name, item in summary.summaries.items():
        mean, interval = MISSING, MISSING
        if item is not None:
            mean = metric_value(name, item.mean)
            if item.standard_error is not None:
                mean += f" ± {percentage(item.standard_error, 1)}"
            interval = metric_interval(name, item.low, item.high)
        runs = [metric_value(name, value) for value in summary.values[name]]
        rows.append((f"{METRICS[name].symbol} `{name}`", *runs, mean, interval))
    notes = ["Differences in percentage points"]
    for label, text in summary.facts[0].items():
        texts = [facts.get(label, MISSING) for facts in summary.facts]
        if set(texts) == {text}:
            notes.append(f"{label}: {text}")
        else:
            rows.append((label, *texts, "", ""))
    paragraphs = [_markdown(header, rows), f"{'; '.join(notes)}.", _mean_matrix(summary)]
    if told := loss_sentence(summary.matrices):
        paragraphs.append(told)
    if summary.unlike:
        paragraphs.insert(0, f"**The runs were not made alike.** {'; '.join(summary.unlike)}.")
    return "\n\n".join(paragraphs) + "\n"


def _mean_matrix(summary: RunsSummary) -> str:
    """Average the matrices cell by cell, where the runs train the same tasks in the same order."""
    first = summary.matrices[0]
    if any(matrix.tasks != first.tasks for matrix in summary.matrices):
        return "The runs differ in the order of tasks, so their matrices have no common mean."
    if first.rates.size > MAX_CELLS:
        return f"The matrices have {first.rates.size:,} cells, so their mean is not written out."
    rates = np.stack([matrix.rates for matrix in summary.matrices])
    rows = [
        (
            stage_label(stage, first),
            *(
                f"{percentage(cells.mean())} ({percentage(cells.min())} to "
                f"{percentage(cells.max())})"
                if not np.isnan(cells).any()
                else MISSING
                for cells in rates[:, stage].T
            ),
        )
        for stage in first.shown_stages
    ]
    note = "Success in percent on the test states, mean (least to greatest) over the runs:"
    return f"{note}\n\n{_markdown(_matrix_header(first), rows)}"


def _summarize(values: Sequence[float | None]) -> SeedSummary | None:
    known = [value for value in values if value is not None]
    return summarize_seeds(known) if len(known) == len(values) else None


def _commit(git: dict[str, Any] | None) -> str:
    if git is None:
        return ""
    return f", commit {git['commit'][:12]}{' with uncommitted changes' if git['dirty'] else ''}"


def _markdown(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _terminal_table(title: str, header: Row, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*row)
    return table
