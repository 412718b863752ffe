"""Numbers, task names and results as words."""

import re
from collections.abc import Sequence

import numpy as np

from vla_crl.continual.metrics import METRICS, compute_metrics, largest_loss
from vla_crl.continual.statistics import Estimate
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.rounding import percentage

MISSING = "\N{EN DASH}"
"""Stands for a number that was not or cannot be computed."""


def percent(fraction: float) -> str:
    """Write 0.834 as "83 %"."""
    return f"{percentage(fraction)} %"


def points(difference: float) -> str:
    """Write a difference of fractions in percentage points: 0.214 as "+21.4"."""
    size = percentage(abs(difference), 1)
    sign = "\N{MINUS SIGN}" if difference < 0 and float(size) else "+"
    return f"{sign}{size}"


def metric_value(name: str, value: float | None) -> str:
    """Write a metric in percent, or with its sign in points if it is a difference."""
    if value is None:
        return MISSING
    return points(value) if METRICS[name].is_difference else f"{percentage(value, 1)} %"


def metric_interval(name: str, low: float | None, high: float | None) -> str:
    """Write the interval of a metric in the unit of `metric_value`."""
    if low is None or high is None:
        return MISSING
    if METRICS[name].is_difference:
        return f"{points(low)} to {points(high)}"
    return f"{percentage(max(low, 0.0), 1)} to {percentage(min(high, 1.0), 1)} %"


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


def stage_label(stage: int, matrix: SuccessMatrix) -> str:
    """Name a row of a success matrix."""
    if stage == 0:
        return "before training"
    if matrix.has_rounds_only:
        return f"after stage {stage}: all tasks"
    return f"after stage {stage}: {task_label(matrix.train_tasks[matrix.trained_column(stage)])}"


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
    in_a_row = "" if matrix.has_rounds_only else " in a row"
    subject = "One task trained" if num_stages == 1 else f"{num_stages} tasks trained{in_a_row}"
    start = percent(final.value - gain.value)
    change = _change(gain, rose="rose", fell="fell")
    if change:
        result = f"mean success {change} from {start} to {percent(final.value)}"
    else:
        result = f"mean success went from {start} to {percent(final.value)}, {within_chance(gain)}"
    if forgetting is None:
        return f"{subject}: {result}."
    lost = f"{percentage(abs(forgetting.value))} points"
    ending = _change(
        forgetting,
        rose=f"{lost} were forgotten on the way",
        fell=f"earlier tasks gained {lost} after their own stage",
    )
    unclear = f"{points(forgetting.value)} points forgotten, {within_chance(forgetting)}"
    return f"{subject}: {result}, {ending or unclear}."


def sentences(matrix: SuccessMatrix) -> list[str]:
    """Say what happened: to the trained tasks, to the one that lost most, to those held out."""
    told = (headline(matrix), loss_sentence([matrix]), transfer_sentence(matrix))
    return [sentence for sentence in told if sentence]


def within_chance(estimate: Estimate) -> str:
    """Say how far a difference may be from nothing that its interval does not tell from 0."""
    return f"no clear change (95 % interval {points(estimate.low)} to {points(estimate.high)})"


def loss_sentence(matrices: Sequence[SuccessMatrix]) -> str | None:
    """Name the task that lost most after its own stage; None where there is no other.

    Args:
        matrices: Of one run, or of several, whose episodes are counted together.
    """
    loss = largest_loss(matrices)
    if loss is None:
        return None
    runs = f" over {len(matrices)} runs" if len(matrices) > 1 else ""
    span = f"95 % interval of the loss {points(loss.lost.low)} to {points(loss.lost.high)}"
    return (
        f"Of the trained tasks '{task_label(loss.task)}' lost most after its own stage{runs}: from "
        f"{percent(loss.own)} to {percent(loss.last)} ({span})."
    )


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
    return f"{tasks} never trained went {span}, {within_chance(gain)}."


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
