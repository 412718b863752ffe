"""What a training says of itself, a line at a time."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from vla_crl.continual.stage import StageTraining
from vla_crl.continual.success_matrix import Cell
from vla_crl.rounding import percentage


def end_line(stage: StageTraining, every: int) -> str:
    """Tell what SIGTERM leaves of a stage, stored after so many iterations."""
    if every:
        return f"SIGTERM: stage {stage.number} is stored after iteration {stage.iteration}"
    return f"SIGTERM: stage {stage.number} will begin again (checkpoint_every is 0)"


def iteration_line(row: Mapping[str, Any]) -> str:
    """Tell of a row of metrics.jsonl."""
    total = row["collect_s"] + row["update_s"]
    parts = ("render", "policy", "physics", "wait", "update")
    shares = " ".join(f"{part} {100 * row[f'{part}_s'] / total:.0f}" for part in parts)
    rate = _number(row["success"], 3)  # none while there are too few episodes
    return (
        f"stage {row['stage']}  iteration {row['iteration']:4d}  episodes {row['episodes']:6d}  "
        f"success {rate}  return {rate}  kl {_number(row['kl'], 4)}  "
        f"clip {_number(row['clip_fraction'], 2)}  {row['steps_per_s']:.0f} steps/s "
        f"(%: {shares})"
    )


def _number(value: float, places: int) -> str:
    return "-".rjust(places + 2) if isnan(value) else f"{value:.{places}f}"


def stage_line(stage: int, cells: Sequence[Cell]) -> str:
    """Tell the success after a stage."""
    rates = "  ".join(f"{cell.task} {percentage(cell.successes / cell.episodes)}" for cell in cells)
    return f"after stage {stage}, success in % on test states: {rates}"
