"""The figures of a run: success matrix, retention, learning curves, diagnostics of the update."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vla_crl.continual.statistics import wilson_interval
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.files.writing import replacing
from vla_crl.report.drawing import (
    BLUE,
    DPI,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    SUCCESS_COLORS,
    WIDTH,
    draw_curve,
    smooth,
    use_log_scale,
    values_of,
)
from vla_crl.report.plots_of_many import (
    draw_all_stages,
    draw_learning_curve,
    draw_mean_retention,
    draw_success_map,
)
from vla_crl.report.run_record import RunRecord
from vla_crl.report.wording import task_label
from vla_crl.rounding import percentage

MAX_PANELS, MAX_NUMBERS, MAX_COLUMNS = 30, 1000, 40
"""Panels of a figure, cells with numbers and columns of them; of more `plots_of_many` draws."""
T = TypeVar("T")


def write_plots(record: RunRecord) -> dict[str, Path]:
    """Write the figures that the run has data for into its plots folder.

    Returns:
        Figure name to png file, in the order in which to show them.
    """
    draw: dict[str, Callable[[], Figure]] = {}
    matrix, sampled = record.matrix, record.sampled_matrix
    if matrix is not None:
        draw |= _matrix_figure("success_matrix", matrix)
        if len(matrix.tasks) <= MAX_PANELS:
            draw["retention"] = lambda: draw_retention(matrix)
        else:
            draw["mean_retention"] = lambda: draw_mean_retention(matrix)
    if sampled is not None:
        draw |= _matrix_figure("success_matrix_sampled", sampled)
    if record.iterations:
        if len(record.stages) <= MAX_PANELS:
            if matrix is not None or _is_told(record, "success"):
                draw["learning_curves"] = lambda: draw_learning_curves(record)
        elif _is_told(record, "success"):
            draw["learning_curve"] = lambda: draw_learning_curve(record)
        draw["diagnostics"] = lambda: draw_diagnostics(record)
        if _felt_terms(record):
            draw["gradient_norms"] = lambda: draw_gradient_norms(record)
    record.run.plots.mkdir(exist_ok=True)
    paths = {}
    for name, function in draw.items():
        paths[name] = record.run.plots / f"{name}.png"
        with mpl.rc_context(STYLE), replacing(paths[name]) as file:
            function().savefig(file, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    return paths


def _matrix_figure(name: str, matrix: SuccessMatrix) -> dict[str, Callable[[], Figure]]:
    """Choose between cells with numbers and, where these are too many, colours alone."""
    if matrix.rates.size <= MAX_NUMBERS and len(matrix.tasks) <= MAX_COLUMNS:
        return {name: lambda: draw_success_matrix(matrix)}
    return {name.replace("matrix", "map"): lambda: draw_success_map(matrix)}


def draw_success_matrix(matrix: SuccessMatrix) -> Figure:
    """Draw success in percent with counts; columns are tasks, rows stages."""
    stages, num_train = matrix.shown_stages, matrix.num_train_tasks
    rates = matrix.rates[list(stages)]
    gap = 0.35 if matrix.heldout_tasks else 0.0
    left = [column + (gap if column >= num_train else 0.0) for column in range(rates.shape[1])]
    num_rows, width = rates.shape[0], rates.shape[1] + gap
    figure = Figure(figsize=(1.5 + 1.02 * width, 1.05 + 0.66 * num_rows))
    axes = figure.add_axes((0, 0, 1, 1))
    for (row, column), rate in np.ndenumerate(rates):
        cell = stages[row], column
        counts = (int(matrix.successes[cell]), int(matrix.episodes[cell]))
        _draw_cell(axes, left[column], row, rate, counts)
    for row in range(1, num_rows):
        first, size = matrix.trained_column(stages[row]), 1
        if matrix.has_rounds_only:
            first, size = 0, num_train
        corner = (first + 0.02, row + 0.02)
        axes.add_patch(Rectangle(corner, size - 0.04, 0.96, fill=False, ec=ORANGE, lw=2.4))
    axes.set(xlim=(-0.02, width + 0.02), ylim=(num_rows + 0.02, -0.02))
    axes.set_xticks(
        [position + 0.5 for position in left],
        [_wrap(task_label(task)) for task in matrix.tasks],
        color=INK,
        fontsize=8.5,
    )
    axes.set_yticks(
        [row + 0.5 for row in range(num_rows)],
        ["before\ntraining", *(f"after\nstage {stage}" for stage in stages[1:])],
        color=INK,
    )
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    num_lines = max(_wrap(task_label(task)).count("\n") + 1 for task in matrix.tasks)
    height = 1.0 + (0.22 + 0.15 * num_lines) / (0.66 * num_rows + 1.05)
    heading: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "ha": "left", "va": "bottom"}
    heading["transform"] = axes.get_xaxis_transform()
    axes.text(0.02, height, "Training tasks, in the order of training", **heading)
    if matrix.heldout_tasks:
        axes.text(left[num_train], height, "Held-out tasks, never trained", **heading)
    return figure


def _draw_cell(axes: Axes, left: float, row: int, rate: float, counts: tuple[int, int]) -> None:
    box = {"xy": (left + 0.02, row + 0.02), "width": 0.96, "height": 0.96, "lw": 0}
    if np.isnan(rate):
        axes.add_patch(Rectangle(**box, fc="white", ec=FAINT, hatch="////"))
        return
    color = SUCCESS_COLORS(rate)
    axes.add_patch(Rectangle(**box, fc=color))
    luminance = float(np.dot(color[:3], (0.299, 0.587, 0.114)))
    ink = INK if luminance > 0.52 else "white"
    centre: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(left + 0.5, row + 0.42, percentage(rate), fontsize=13, fontweight="bold", **centre)
    axes.text(left + 0.5, row + 0.76, f"{counts[0]}/{counts[1]}", fontsize=7, alpha=0.85, **centre)


def draw_retention(matrix: SuccessMatrix) -> Figure:
    """Draw the success of every task over the stages, one panel a task, with 95 % intervals."""
    rows = [*_panel_rows(matrix.train_tasks), *_panel_rows(matrix.heldout_tasks)]
    num_columns = max(len(row) for row in rows)
    figure = Figure(figsize=(WIDTH, 2.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), num_columns, sharey=True, squeeze=False)
    for axes_row, tasks in zip(grid, rows, strict=True):
        for axes in axes_row[len(tasks) :]:
            axes.set_visible(False)
        for axes, task in zip(axes_row, tasks, strict=False):
            _draw_retention_panel(axes, matrix, task)
        is_trained = tasks[0] in matrix.train_tasks
        axes_row[0].set_ylabel("trained: success %" if is_trained else "held out: success %")
    for axes in grid[-1]:
        axes.set_xlabel("stages finished")
    return figure


def _draw_retention_panel(axes: Axes, matrix: SuccessMatrix, task: str) -> None:
    rates, column = 100 * matrix.rates, matrix.tasks.index(task)
    stages = np.arange(len(rates))
    num_train = matrix.num_train_tasks
    is_trained = column < num_train
    color = BLUE if is_trained else PURPLE
    peers = slice(num_train) if is_trained else slice(num_train, None)
    axes.plot(stages, rates[:, peers], color=FAINT, lw=1)
    cells = [cell for cell in matrix.cells() if cell.task == task]
    ends = 100 * np.array([wilson_interval(cell.successes, cell.episodes) for cell in cells])
    axes.fill_between([cell.stage for cell in cells], *ends.T, color=color, alpha=0.16, lw=0)
    size = num_train if matrix.has_rounds_only else 1
    first = 0 if matrix.has_rounds_only else column
    for start in range(first, matrix.num_stages, num_train) if is_trained else ():
        axes.axvspan(start, start + size, color=ORANGE, alpha=0.10, lw=0)
        axes.text(start + size / 2, 3, "trained", color=ORANGE, fontsize=7, ha="center")
    axes.plot(stages, rates[:, column], color=color, marker="o", ms=4)
    gap = 0.045 * len(stages)
    for cell, offset, side in ((cells[-1], gap, "left"), (cells[0], -gap, "right"))[: len(cells)]:
        text: dict[str, Any] = {
            "color": color,
            "fontsize": 9,
            "fontweight": "bold",
            "ha": side,
            "va": "center",
        }
        rate = cell.successes / cell.episodes
        axes.text(cell.stage + offset, 100 * rate, percentage(rate), **text)
    margin = 0.2 * len(stages)
    axes.set(xlim=(-margin, len(stages) - 1 + margin), ylim=(0, 104))
    axes.set(xticks=stages, yticks=[0, 50, 100])
    axes.set_title(_wrap(task_label(task), 22), color=INK, fontsize=9)


def draw_learning_curves(record: RunRecord) -> Figure:
    """Draw training success within each stage, one panel a stage, with the test results."""
    rows_of_stages = _panel_rows(list(record.stages.items()))
    num_columns = max(len(row) for row in rows_of_stages)
    figure = Figure(figsize=(WIDTH, 0.4 + 2.4 * len(rows_of_stages)), layout="constrained")
    grid = figure.subplots(len(rows_of_stages), num_columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(record.stages) :]:
        axes.set_visible(False)
    for axes, (stage, rows) in zip(grid.flat, record.stages.items(), strict=False):
        episodes = np.array([row["episodes"] for row in rows], dtype=float)
        success = 100 * values_of(rows, "success")
        look: dict[str, Any] = {"color": BLUE, "lw": 0.8, "alpha": 0.35}
        draw_curve(axes, episodes, success, label="training, latest episodes", **look)
        draw_curve(axes, episodes, smooth(success), label="training, smoothed", color=BLUE)
        _mark_test_results(axes, record.matrix, stage, rows[-1]["task"], float(episodes[-1]))
        axes.set(ylim=(0, 104), xlabel="training episodes", yticks=[0, 25, 50, 75, 100])
        title = f"stage {stage}\n{_wrap(task_label(rows[-1]['task']), 22)}"
        axes.set_title(title, color=INK, fontsize=9)
        axes.locator_params(axis="x", nbins=3)
    for axes in grid[:, 0]:
        axes.set_ylabel("success %")
    drawn: dict[str, Any] = {}
    for axes in grid.flat:
        drawn |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend([*drawn.values()], [*drawn], loc="outside lower left", ncols=3, fontsize=8.5)
    return figure


def _mark_test_results(
    axes: Axes, matrix: SuccessMatrix | None, stage: int, task: str, num_episodes: float
) -> None:
    """Put the evaluations before and after the stage at the two ends of its curve."""
    cells = [] if matrix is None else [cell for cell in matrix.cells() if cell.task == task]
    for cell in cells:
        if cell.stage not in {stage - 1, stage}:
            continue
        rate = cell.successes / cell.episodes
        low, high = wilson_interval(cell.successes, cell.episodes)
        axes.errorbar(
            0.0 if cell.stage < stage else num_episodes,
            100 * rate,
            yerr=[[100 * (rate - low)], [100 * (high - rate)]],
            color=ORANGE,
            marker="D",
            ms=5,
            lw=1.4,
            label="test before and after the stage" if cell.stage < stage else None,
            clip_on=False,
            zorder=3,
        )


DIAGNOSTICS = {
    "return": "mean return",
    "kl": "KL to the rollout policy",
    "clip_fraction": "clipped samples (fraction)",
    "value_loss": "value loss",
    "grad_norm": "gradient norm",
    "steps_per_s": "control steps/s",
}


def _is_told(record: RunRecord, key: str) -> bool:
    return any(row.get(key) is not None for row in record.iterations)


def draw_diagnostics(record: RunRecord) -> Figure:
    """Draw what the update reports over all training episodes, with the stages marked."""
    keys = [key for key in DIAGNOSTICS if _is_told(record, key)]
    num_rows = -(-len(keys) // 2) or 1
    figure = Figure(figsize=(WIDTH, 1.75 * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, 2, sharex=True, squeeze=False).flat)
    for axes in panels:
        axes.set_visible(False)
    for axes in panels[-2:]:
        axes.set_xlabel("training episodes, stages shaded in turn")
    for axes, key in zip(panels, keys, strict=False):
        axes.set_visible(True)
        draw_all_stages(axes, record, key)
        axes.set_title(DIAGNOSTICS[key], color=INK)
        if key != "return":
            axes.set_ylim(bottom=0)
    return figure


OWN_TERMS: dict[str, dict[str, Any]] = {
    "policy_loss": {"label": "policy", "color": BLUE, "ls": "-"},
    "value_loss": {"label": "value", "color": ORANGE, "ls": "--"},
}
OTHER_COLORS = (PURPLE, INK, GREEN, SKY)
OTHER_DASHES = (":", "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")
OTHER_DOTS = ("s", "^", "D", "v", "p")
"""Of terms that the method, or the learner's settings, add, in turn: 20 pairs, all different."""
NORM = "_grad_norm"
"""Behind a term's name in metrics.jsonl, that of the norm of its gradient."""


def draw_gradient_norms(record: RunRecord) -> Figure:
    """Draw what each term of the loss adds to the gradient; one that never does is left out."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    use_log_scale(axes)
    others = [term for term in _felt_terms(record) if term not in OWN_TERMS]
    for term in _felt_terms(record):
        place = others.index(term) if term in others else 0
        look = OWN_TERMS.get(term) or {
            "label": term.replace("_", " "),
            "color": OTHER_COLORS[place % len(OTHER_COLORS)],
            "ls": OTHER_DASHES[place % len(OTHER_DASHES)],
            "dot": OTHER_DOTS[place % len(OTHER_DOTS)],
        }
        draw_all_stages(axes, record, term + NORM, look=look)
    axes.set(xlabel="training episodes, stages shaded in turn", ylabel="gradient norm")
    figure.legend(loc="outside lower left", ncols=4, fontsize=8.5)
    return figure


def _felt_terms(record: RunRecord) -> list[str]:
    """Return the names of terms whose gradient was not always 0, the learner's own first."""
    felt = {key for row in record.iterations for key, value in row.items() if value}
    terms = {key.removesuffix(NORM) for key in felt if key.endswith(NORM)} - {"", "value"}
    return [
        *(t for t in OWN_TERMS if t in terms),
        *sorted(terms - OWN_TERMS.keys() - {"grad_norm"}),
    ]


def _panel_rows(panels: Sequence[T]) -> list[Sequence[T]]:
    """Split panels into rows of at most five."""
    return [panels[start : start + 5] for start in range(0, len(panels), 5)]


def _wrap(label: str, width: int = 16) -> str:
    """Break a label into as few lines as fit, of about equal length."""
    num_lines = len(textwrap.wrap(label, width))
    while width > 1 and len(textwrap.wrap(label, width - 1)) == num_lines:
        width -= 1
    return "\n".join(textwrap.wrap(label, width))
