"""Runs as one table of pandas, in long format."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_crl.config import differing_settings
from vla_crl.errors import ConfigError, install_extra

if TYPE_CHECKING:
    from pandas import DataFrame

    from vla_crl.continual.success_matrix import SuccessMatrix
    from vla_crl.report.run_record import RunRecord

Runs = str | Path | Sequence[str | Path]
"""A run directory or several."""
RUN_COLUMNS = ("run", "recipe", "suite", "method", "seed")
"""What stands first in every row; then the settings in which the runs differ."""
CELL_COLUMNS = (
    *("acting", "stage", "trained_task", "task", "split"),
    *("successes", "episodes", "success", "low", "high"),
)


def frame(runs: Runs) -> "DataFrame":
    """Return the success matrices of runs: a row a run, kind of acting, stage and task.

    Columns: run (name of its folder, with the folders above it where runs share a name), recipe,
    suite, method, seed; every other setting in which the runs differ, as `learner.learning_rate`;
    acting ("deterministic" or "sampled"), stage (0:
    before training), trained_task (of that stage, None in stage 0), task, split ("train" or
    "heldout"), successes, episodes, success (their ratio), low and high (its 95 % interval,
    Wilson's).

    Example:
        table = frame(["runs/a", "runs/b"])
        table[table.acting == "deterministic"].groupby(["run", "stage", "split"]).success.mean()

    Raises:
        ConfigError: Not a run directory, one twice, a damaged file, or pandas is missing.
    """
    return _table(runs, _cells, CELL_COLUMNS)


def iterations(runs: Runs) -> "DataFrame":
    """Return the training of runs: a row an iteration, with all numbers of metrics.jsonl.

    Columns: those of a run as in `frame`; stage, task, iteration (of the stage), episodes (of the
    stage so far), success and what else the update tells; a number that there is none of is NaN.

    Raises:
        ConfigError: As in `frame`.
    """
    return _table(runs, lambda record: iter(record.iterations), ("stage", "task", "iteration"))


def _table(runs: Runs, rows_of: Any, columns: Sequence[str]) -> "DataFrame":
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigError(
            f"a table of runs needs pandas, which is not installed; {install_extra('pandas')}"
        ) from error
    from vla_crl.report.run_record import RunRecord, run_names

    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    records = [RunRecord.read(path) for path in paths]
    settings = _differing(records)
    rows = [
        _described(record, name, settings) | row
        for record, name in zip(records, run_names(records), strict=True)
        for row in rows_of(record)
    ]
    first = [*RUN_COLUMNS, *settings, *columns]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*first, *(n for n in table.columns if n not in first)])


def _differing(records: Sequence["RunRecord"]) -> list[str]:
    """Return the settings in which runs differ and that have no column anyway."""
    names: dict[str, None] = {}
    for record in records[1:]:
        names |= dict.fromkeys(differing_settings(records[0].config, record.config))
    return [name for name in names if name not in RUN_COLUMNS]


def _described(record: "RunRecord", name: str, settings: Sequence[str]) -> dict[str, Any]:
    config = record.config
    values = {key: own for key, (own, _) in differing_settings(config, {}).items()}
    return {
        "run": name,
        "recipe": _recipe(record.versions.get("command", [])),
        "suite": config.get("suite"),
        "method": config.get("method"),
        "seed": config.get("seed"),
        **{setting: values.get(setting) for setting in settings},
    }


def _recipe(command: Sequence[str]) -> str | None:
    """Return the recipe that a command line names."""
    rest = iter(command)
    recipe = next(rest, None) if "train" in rest else None
    return None if recipe is None or recipe.startswith("-") else recipe


def _trained(matrix: "SuccessMatrix | None", stage: int) -> str | None:
    """Return the task that a stage trained, None where there is none or all were."""
    if matrix is None or not stage or matrix.has_rounds_only:
        return None
    return matrix.train_tasks[matrix.trained_column(stage)]


def _cells(record: "RunRecord") -> Iterator[dict[str, Any]]:
    from vla_crl.continual.statistics import wilson_interval

    for acting, matrix in (("deterministic", record.matrix), ("sampled", record.sampled_matrix)):
        for cell in matrix.cells() if matrix else ():
            low, high = wilson_interval(cell.successes, cell.episodes)
            yield {
                "acting": acting,
                "stage": cell.stage,
                "trained_task": _trained(matrix, cell.stage),
                "task": cell.task,
                "split": cell.split,
                "successes": cell.successes,
                "episodes": cell.episodes,
                "success": cell.successes / cell.episodes,
                "low": low,
                "high": high,
            }
