"""Figures have what it takes to read them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.lines import Line2D

from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.report.drawing import STYLE, smooth
from vla_crl.report.plots import (
    DIAGNOSTICS,
    draw_diagnostics,
    draw_gradient_norms,
    draw_learning_curves,
    draw_retention,
    write_plots,
)
from vla_crl.report.plots_of_many import (
    draw_learning_curve,
    draw_mean_retention,
    draw_success_map,
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


def test_terms_that_are_felt_have_a_line_of_gradient_norms_and_no_others(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    assert "gradient_norms" not in write_plots(record)  # of a run from before they were measured
    norms = {"policy_loss_grad_norm": 0.5, "anchor_grad_norm": 0.0, "replay_grad_norm": 0.0}
    norms |= {"grad_norm": 1.0, "value_grad_norm": 1.0, "anchor_grad_ratio": 1.0}
    rows = [
        {"stage": stage, "task": "a", "episodes": 10 * i, **norms, "value_loss_grad_norm": 0.1 * i}
        for stage in (1, 2)
        for i in (1, 2, 3)
    ]
    rows[4]["anchor_grad_norm"] = 0.02
    rows[5]["ewc/my_term_grad_norm"] = 0.03
    figure = draw_gradient_norms(replace(record, iterations=rows))
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["policy", "value", "anchor", "ewc/my term"]
    value = np.asarray(axes.lines[1].get_ydata())
    assert np.allclose(value, [0.1, 0.2, 0.3, np.nan] * 2, equal_nan=True)
    assert len(axes.collections) == 1  # stages are shaded once


def make_rows(
    num_stages: int, num_iterations: int, **numbers: float | None
) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "task": "red_cube_in_basket", "episodes": 10 * i, **numbers}
        for stage in range(1, num_stages + 1)
        for i in range(1, num_iterations + 1)
    ]


def look_of(line: Line2D) -> tuple[str, str]:
    dashes = line._unscaled_dash_pattern  # pyright: ignore[reportAttributeAccessIssue]
    return str(line.get_color()), str(dashes)


@pytest.mark.parametrize("exponent", [-7, 0, 1, 5])
def test_labels_of_a_logarithmic_axis_are_numbers_and_no_formulas(
    run_path: Path, exponent: int
) -> None:
    rows = make_rows(2, 3, policy_loss_grad_norm=2.0 * 10**exponent)
    rows[3]["policy_loss_grad_norm"] = 9.0 * 10**exponent
    with mpl.rc_context(STYLE):
        figure = draw_gradient_norms(replace(RunRecord.read(run_path), iterations=rows))
        figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels(which="both")]
    numbers = [float(label) for label in labels if label]  # a formula is none
    assert any(2 * 10**exponent <= number <= 9 * 10**exponent for number in numbers)
    assert not any("$" in label for label in labels)


def test_a_number_that_is_alone_in_its_stage_is_marked(run_path: Path) -> None:
    rows = make_rows(2, 3, policy_loss_grad_norm=0.5, **{"ewc/penalty_grad_norm": 0.0})
    rows[5]["ewc/penalty_grad_norm"] = 0.3  # 0 has no place on the axis, so it is no neighbour
    record = replace(RunRecord.read(run_path), iterations=rows)
    (axes,) = draw_gradient_norms(record).axes
    policy, penalty = axes.lines
    assert str(policy.get_marker()) == "None"
    assert str(penalty.get_marker()) != "None"
    marked = cast(np.ndarray, penalty.get_markevery())
    assert np.asarray(penalty.get_ydata())[marked].tolist() == [0.3]
    single = replace(record, iterations=make_rows(1, 1, success=0.5, **{"return": 0.5}))
    for figure in (draw_learning_curves(single), draw_diagnostics(single)):
        for line in figure.axes[0].lines[:2]:
            assert str(line.get_marker()) == "o"
            assert list(cast(np.ndarray, line.get_markevery())) == [0]


def test_terms_of_many_composed_methods_look_different(run_path: Path) -> None:
    terms = {f"method_{number}/term_grad_norm": 0.1 for number in range(20)}
    terms |= {"policy_loss_grad_norm": 1.0, "value_loss_grad_norm": 1.0}
    record = replace(RunRecord.read(run_path), iterations=make_rows(2, 1, **terms))
    (axes,) = draw_gradient_norms(record).axes
    assert len({look_of(line) for line in axes.lines}) == 22
    first = [look_of(line) for line in axes.lines[:6]]
    assert len({color for color, _ in first}) == len({dashes for _, dashes in first}) == 6


def test_a_legend_tells_of_nothing_that_is_not_drawn(run_path: Path) -> None:
    record = replace(RunRecord.read(run_path), iterations=make_rows(2, 3, success=None))
    (legend,) = draw_learning_curves(record).legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["test before and after the stage"]
    assert "learning_curves" in write_plots(record)
    assert "learning_curves" not in write_plots(replace(record, matrix=None))
    # What only a later stage has is told, too.
    rows = make_rows(1, 3, success=None)
    rows += [{**row, "stage": 2, "success": 0.5} for row in rows]
    (legend,) = draw_learning_curves(replace(record, iterations=rows)).legends
    assert len(legend.get_texts()) == 3


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


def make_large_matrix(num_train: int, num_heldout: int) -> SuccessMatrix:
    """Succeed in what was trained, and in 1 of 4 states of all else."""
    episodes = np.full((num_train + 1, num_train + num_heldout), 4)
    successes = np.ones_like(episodes)
    successes[:, :num_train] += 3 * np.tri(num_train + 1, num_train, -1, dtype=int)
    train, heldout = (
        tuple(f"{split}_{number}" for number in range(num))
        for split, num in (("train", num_train), ("heldout", num_heldout))
    )
    return SuccessMatrix(train, heldout, successes, episodes)


def test_of_many_tasks_the_means_of_trained_and_untrained_ones_are_drawn() -> None:
    matrix = make_large_matrix(20, 12)
    (axes,) = draw_mean_retention(matrix).axes
    curves = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    assert np.isnan(curves["trained so far"][0])
    assert (curves["trained so far"][1:] == 100).all()
    assert (curves["to be trained"][:-1] == 25).all()
    assert np.isnan(curves["to be trained"][-1])
    assert (curves["held out"] == 25).all()


def test_a_map_of_success_has_every_cell_and_marks_what_was_trained() -> None:
    matrix = make_large_matrix(20, 30)
    axes = draw_success_map(matrix).axes[0]
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), 100 * matrix.rates)
    dots = np.asarray(axes.lines[0].get_xydata())
    np.testing.assert_array_equal(dots, [[stage, stage] for stage in range(1, 21)])


def test_the_curve_of_many_stages_has_a_gap_between_them(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    (axes,) = draw_learning_curve(record).axes
    raw, smoothed = (np.asarray(line.get_ydata()) for line in axes.lines)
    for line in (raw, smoothed):
        assert np.flatnonzero(np.isnan(line)).tolist() == [32, 65, 98]  # 32 iterations a stage
    assert np.nanmax(np.abs(raw)) > 50  # percent
    assert np.nanstd(np.diff(smoothed)) < np.nanstd(np.diff(raw))


def test_smoothing_is_a_mean_of_what_is_known_nearby() -> None:
    values = np.array([1.0, np.nan, 3.0, 8.0, 4.0])
    np.testing.assert_allclose(smooth(values), [1.0, np.nan, 5.5, 5.0, 6.0])


def test_of_400_tasks_there_are_figures_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    matrix = make_large_matrix(200, 200)
    rows = [
        {"stage": stage, "task": "a", "episodes": 8 * n, "success": 0.5, "kl": 0.1}
        for stage in range(1, 201)
        for n in range(1, 6)
    ]
    record = replace(RunRecord.read(tmp_path), matrix=matrix, iterations=rows)
    assert list(write_plots(record)) == [
        "success_map",
        "mean_retention",
        "learning_curve",
        "diagnostics",
    ]
