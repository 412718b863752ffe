"""Figures have what it takes to read them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.report.plots import (
    DIAGNOSTICS,
    draw_diagnostics,
    draw_learning_curves,
    draw_retention,
    write_plots,
)
from vla_crl.report.run_record import RunRecord


def test_every_panel_of_the_diagnostics_has_numbers_at_its_own_axis(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    figure = draw_diagnostics(record)
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [title for key, title in DIAGNOSTICS.items() if key in record.iterations[0]]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in panels] == titles
    for axes in panels:
        assert any(label.get_text() for label in axes.get_yticklabels() if label.get_visible())
    assert [bool(axes.get_xlabel()) for axes in panels] == [False] * (len(titles) - 2) + [True] * 2


def test_the_smoothed_curve_begins_where_there_are_numbers(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    rows = [
        {"stage": 1, "task": "a", "episodes": e, "success": s}
        for e, s in ((10, None), (20, 0.5), (30, 1.0))
    ]
    figure = draw_learning_curves(replace(record, iterations=rows))
    raw, smoothed = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert np.array_equal(np.isnan(np.asarray(raw)), [True, False, False])
    assert np.array_equal(np.asarray(smoothed), [np.nan, 75.0, 75.0], equal_nan=True)


def test_learning_curves_of_tasks_with_long_names_lie_beside_each_other(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    task = "_".join(["pick_up_the_black_bowl_in_the_top_drawer"] * 2)
    rows = [
        {"stage": stage, "task": task, "episodes": episodes, "success": 0.5}
        for stage in range(1, 6)
        for episodes in (500, 1000)
    ]
    figure = draw_learning_curves(replace(record, iterations=rows))
    figure.draw_without_rendering()  # a warning is an error
    widths = [axes.get_position().width for axes in figure.axes]
    assert min(widths) > 0.1


def test_figures_appear_in_the_order_in_which_to_show_them(run_path: Path) -> None:
    paths = write_plots(RunRecord.read(run_path))
    assert list(paths) == [
        "success_matrix",
        "retention",
        "success_matrix_sampled",
        "learning_curves",
        "diagnostics",
    ]
    assert all(path.stat().st_size > 1000 for path in paths.values())


def test_a_single_stage_is_labelled_once() -> None:
    def labels(num_stages: int) -> list[str]:
        cells = [
            Cell(stage=stage, task="a", split="train", successes=stage + 1, episodes=10)
            for stage in range(num_stages)
        ]
        (axes,) = draw_retention(SuccessMatrix.from_cells(cells)).axes
        return sorted(text.get_text() for text in axes.texts if text.get_text() != "trained")

    assert labels(1) == ["10"]
    assert labels(2) == ["10", "20"]


@pytest.mark.parametrize("task", ["costs_$5_or_$6", "$\\frac{$", "a_{b^c_[/red]"])
def test_the_name_of_a_task_is_no_formula(
    make_run: Callable[..., Path], tmp_path: Path, task: str
) -> None:
    run = make_run(tmp_path / "run")
    for file in (run / "matrix.csv", run / "metrics.jsonl"):
        written = json.dumps(task)[1:-1] if file.suffix == ".jsonl" else task
        file.write_text(file.read_text().replace("red_cube_in_basket", written))
    paths = write_plots(RunRecord.read(run))
    assert all(path.stat().st_size > 1000 for path in paths.values())
