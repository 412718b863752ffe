"""Figures of runs with so many tasks or stages that none has a panel or a number of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.report.drawing import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SUCCESS_COLORS,
    WIDTH,
    draw_curve,
    smooth,
    values_of,
)
from vla_crl.report.run_record import RunRecord


def draw_success_map(matrix: SuccessMatrix) -> Figure:
    """Draw success as colours: a row a stage, a column a task; trained ones under orange dots."""
    figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
    axes = figure.subplots()
    num_stages, num_train, num_tasks = matrix.num_stages, matrix.num_train_tasks, len(matrix.tasks)
    image = axes.imshow(
        100 * matrix.rates,
        cmap=SUCCESS_COLORS,
        vmin=0,
        vmax=100,
        aspect="auto",
        interpolation="none",
        extent=(0.5, num_tasks + 0.5, num_stages + 0.5, -0.5),  # tasks count from 1
    )
    axes.set_facecolor(MUTED)
    stages = np.arange(1, num_stages + 1)
    if not matrix.has_rounds_only:
        axes.plot((stages - 1) % num_train + 1, stages, ".", color=ORANGE, ms=2)
    axes.set(xlabel="training tasks, in the order of training", ylabel="stages finished")
    if matrix.heldout_tasks:
        axes.axvline(num_train + 0.5, color=INK, lw=1)
        axes.set_xlabel("training tasks, in the order of training | held-out tasks")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="success %", shrink=0.6)
    return figure


def draw_mean_retention(matrix: SuccessMatrix) -> Figure:
    """Draw the mean success over the stages of tasks trained so far, of those to come, and others.

    Behind them every task by itself.
    """
    rates, num_train = 100 * matrix.rates, matrix.num_train_tasks
    stages = np.arange(len(rates))
    was_trained = np.arange(num_train) < stages[:, None]
    train, heldout = rates[:, :num_train], rates[:, num_train:]
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(stages, rates, color=FAINT, lw=0.4, alpha=0.5)
    curves: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("trained so far", np.where(was_trained, train, np.nan), {"color": BLUE}),
        ("to be trained", np.where(was_trained, np.nan, train), {"color": ORANGE, "ls": "--"}),
        ("held out", heldout, {"color": PURPLE, "ls": ":"}),
    ]
    for label, values, look in curves:
        axes.plot(stages, _mean_of_known(values), label=label, lw=2, **look)
    axes.set(ylim=(0, 104), yticks=[0, 25, 50, 75, 100], xlabel="stages finished")
    axes.set_ylabel("mean success %")
    figure.legend(loc="outside lower left", ncols=3, fontsize=8.5)
    return figure


def draw_learning_curve(record: RunRecord) -> Figure:
    """Draw training success of all stages one after another."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    draw_all_stages(axes, record, "success", scale=100.0, is_smoothed=True)
    axes.set(ylim=(0, 104), yticks=[0, 25, 50, 75, 100], ylabel="success %")
    axes.set_xlabel("training episodes, stages shaded in turn")
    return figure


def draw_all_stages(
    axes: Axes,
    record: RunRecord,
    key: str,
    *,
    scale: float = 1.0,
    is_smoothed: bool = False,
    look: Mapping[str, Any] = {"color": BLUE},
) -> None:
    """Draw a number over all training episodes, as one line with a gap between stages.

    Args:
        axes: Where.
        record: Of the run.
        key: Of its metrics.
        scale: What numbers are multiplied with.
        is_smoothed: Draw a running mean within each stage above the numbers.
        look: Of the line.
    """
    start, spans = 0.0, []
    places, values, means = [], [], []
    for stage, rows in record.stages.items():
        episodes = start + np.array([row["episodes"] for row in rows], dtype=float)
        numbers = scale * values_of(rows, key)
        places.append([*episodes, np.nan])
        values.append([*numbers, np.nan])
        means.append([*smooth(numbers), np.nan])
        if stage % 2:
            spans.append((start, episodes[-1] - start))
        start = float(episodes[-1])
    x = np.concatenate(places)
    faint: dict[str, Any] = {"lw": 0.8, "alpha": 0.35} if is_smoothed else {"lw": 1.3}
    draw_curve(axes, x, np.concatenate(values), **faint, **look)
    if is_smoothed:
        draw_curve(axes, x, np.concatenate(means), **look)
    if not axes.collections:
        axes.broken_barh(
            spans, (0, 1), transform=axes.get_xaxis_transform(), color=INK, alpha=0.035, lw=0
        )


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row, NaN left out and where a row has nothing else."""
    known = ~np.isnan(values)
    num = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.where(num > 0, sums / np.maximum(num, 1), np.nan)
