"""What `vla-crl evaluate --output FILE.json` writes: a row a task, and beside it every episode."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_crl.continual.statistics import wilson_interval
from vla_crl.files.writing import replacing, write_atomically
from vla_crl.rollout.results import TaskResult, episode_rows
from vla_crl.runs.episodes import EVALUATION_COLUMNS, EpisodeFile


def result_rows(results: Sequence[TaskResult], measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the counts of every task with Wilson's interval.

    Args:
        results: Tasks of which an episode ended.
        measured: What they depend on, for every row.
    """
    rows = []
    for result in results:
        low, high = wilson_interval(result.successes, result.episodes)
        rows.append(
            {
                "task": result.task,
                "split": result.split,
                "successes": result.successes,
                "episodes": result.episodes,
                "low": low,
                "high": high,
                "fingerprint": measured,
            }
        )
    return rows


def write_results(
    path: Path, rows: Sequence[dict[str, Any]], results: Sequence[TaskResult]
) -> None:
    """Write the rows of an evaluation as JSON and, beside them, its episodes as CSV."""
    with replacing(episodes_beside(path)) as file:
        EpisodeFile(file, EVALUATION_COLUMNS, 1).append(episode_rows(results, stage="", seed=0))
    write_atomically(path, json.dumps(rows, indent=2) + "\n")


def episodes_beside(path: Path) -> Path:
    """Return where the episodes go of an evaluation with these rows: FILE.episodes.csv."""
    return path.with_suffix(".episodes.csv")
