"""The learning curve of a baseline: success on test states over control steps of training."""

import csv
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vla_crl.files.writing import replacing
from vla_crl.report.drawing import BLUE, DPI, MUTED, STYLE, WIDTH


def write_baseline_curve(file: Path) -> None:
    """Draw a `curve.csv` of `vla-crl baseline` into a png of the same name beside it."""
    with matplotlib.rc_context(STYLE), replacing(file.with_suffix(".png")) as picture:
        draw_baseline_curve(file).savefig(picture, dpi=DPI, format="png")


def draw_baseline_curve(file: Path) -> Figure:
    """Draw success on test states, and in the latest training episodes."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    figure = Figure(figsize=(WIDTH / 2, 2.8), layout="constrained")
    axes = figure.subplots()
    steps = column["num_steps"]
    training, test = column["training_success"], column["successes"] / column["episodes"]
    axes.plot(steps, 100 * training, color=MUTED, lw=1.0, label="latest training episodes, sampled")
    axes.plot(steps, 100 * test, color=BLUE, marker="o", ms=4, label="test states")
    axes.set(xlabel="control steps of training", ylabel="success %", ylim=(0, 104))
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    figure.legend(loc="outside lower left", fontsize=8.5)
    return figure
