"""Numbers, task names and results as words."""

import re
from collections.abc import Sequence

import numpy as np

from vla_crl.continual.metrics import METRICS, compute_metrics
from vla_crl.continual.statistics import Estimate
from vla_crl.continual.success_matrix import SuccessMatrix

MISSING = "\N{EN DASH}"
"""Stands for a number that was not or cannot be computed."""


def percent(fraction: float) -> str:
    """Write 0.834 as "83 %"."""
    return f"{100 * fraction:.0f} %"


def points(difference: float) -> str:
    """Write a difference of fractions in percentage points: 0.214 as "+21.4"."""
    rounded = round(100 * difference, 1) + 0.0  # adding 0 makes a negative zero positive
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}")


def metric_value(name: str, value: float | None) -> str:
    """Write a metric in percent, or with its sign in points if it is a difference."""
    if value is None:
        return MISSING
    return points(value) if METRICS[name].is_difference else f"{100 * value:.1f} %"


def metric_interval(name: str, low: float | None, high: float | None) -> str:
    """Write the interval of a metric in the unit of `metric_value`."""
    if low is None or high is None:
        return MISSING
    if METRICS[name].is_difference:
        return f"{points(low)} to {points(high)}"
    return f"{100 * max(low, 0.0):.1f} to {100 * min(high, 1.0):.1f} %"


def p_value(p: float) -> str:
    """Write a probability with three decimals: 0.0421 as "0.042"."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Write 4380 as "1 h 13 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def task_label(task: str) -> str:
    """Write the name of a task as words: "red_cube_in_basket" as "red cube in basket"."""
    return re.sub(r"[_\s]+", " ", task).strip()


def stage_label(stage: int, train_tasks: Sequence[str]) -> str:
    """Name a row of the success matrix."""
    if stage == 0:
        return "before training"
    return f"after stage {stage}: {task_label(train_tasks[(stage - 1) % len(train_tasks)])}"


def headline(matrix: SuccessMatrix | None) -> str:
    """Say in one sentence what happened, claiming nothing that its interval does not support."""
    if matrix is None:
        return "The run has begun; nothing is evaluated yet."
    values = compute_metrics(matrix)
    last, num_stages = max(matrix.evaluated_stages), matrix.num_stages
    if last == 0:
        return f"The base policy is evaluated; training on {num_stages} tasks has begun."
    if last < num_stages:
        return f"{last} of {num_stages} stages finished{_latest(matrix, last)}."
    final, gain, forgetting = values["avg"], values["delta_avg"], values["nbt_final"]
    if final is None or gain is None:
        return f"All {num_stages} stages finished, but some tasks were not evaluated."
    subject = "One task trained" if num_stages == 1 else f"{num_stages} tasks trained in a row"
    start = percent(final.value - gain.value)
    change = _change(gain, rose="rose", fell="fell")
    if change:
        result = f"mean success {change} from {start} to {percent(final.value)}"
    else:
        result = f"mean success did not measurably change ({start} to {percent(final.value)})"
    if forgetting is None:
        return f"{subject}: {result}."
    lost = f"{100 * abs(forgetting.value):.0f} points"
    ending = _change(
        forgetting,
        rose=f"{lost} were forgotten on the way",
        fell=f"earlier tasks gained {lost} after their own stage",
    )
    return f"{subject}: {result}, {ending or 'with no measurable forgetting'}."


def transfer_sentence(matrix: SuccessMatrix) -> str | None:
    """Say what happened to the tasks that were never trained; None where that is unknown."""
    values = compute_metrics(matrix)
    final, gain = values["zs"], values["delta_zs"]
    if final is None or gain is None:
        return None
    num_tasks = len(matrix.heldout_tasks)
    tasks = f"The {num_tasks} tasks" if num_tasks > 1 else "The one task"
    span = f"from {percent(final.value - gain.value)} to {percent(final.value)}"
    change = _change(gain, rose="rose", fell="fell")
    if change:
        return f"{tasks} never trained {change} {span}."
    return f"{tasks} never trained did not measurably change ({span})."


def _latest(matrix: SuccessMatrix, stage: int) -> str:
    """Say what the newest stage did to the task that it trained."""
    column = matrix.trained_column(stage)
    before, after = matrix.rates[stage - 1 : stage + 1, column]
    if np.isnan(before) or np.isnan(after):
        return ""
    task = task_label(matrix.train_tasks[column])
    return f"; in the latest '{task}' went from {percent(before)} to {percent(after)}"


def _change(estimate: Estimate, *, rose: str, fell: str) -> str | None:
    """Choose the words for a difference, or none where its interval contains 0."""
    if estimate.low > 0:
        return rose
    return fell if estimate.high < 0 else None
