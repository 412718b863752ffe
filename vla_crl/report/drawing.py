"""What figures share: colours, type, curves.

Colours are those of Okabe & Ito, told apart with any colour vision; no figure relies on colour
alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogFormatter

BLUE, ORANGE, PURPLE, GREEN, SKY = "#0072B2", "#D55E00", "#A8588B", "#009E73", "#56B4E9"
INK, MUTED, FAINT = "#1B2733", "#5C6B7A", "#D5DCE3"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECF0F3",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a task with two dollar signs in its name is no formula
}
SUCCESS_COLORS = LinearSegmentedColormap.from_list(
    "success", ["#F7F4EA", "#CFE3D8", "#8CC3CB", "#4393BC", "#1D5E96", "#0B2F5B"]
)
WIDTH, DPI = 9.2, 180
"""Inches and dots an inch: all curves share the width, so their text has one size on the page."""


class _PlainLogFormatter(LogFormatter):
    """Labels where matplotlib's own has them, as numbers: 0.1 and not a formula."""

    def __call__(self, x: float, pos: Any = None) -> str:
        """Return the label of a tick, empty where there is none."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def use_log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic; what is not positive has no place there."""
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter(_PlainLogFormatter())
    axes.yaxis.set_minor_formatter(_PlainLogFormatter())


def draw_curve(axes: Axes, x: np.ndarray, y: np.ndarray, dot: str = "o", **look: Any) -> None:
    """Draw a line with gaps at NaN; a number alone between gaps is a mark.

    Args:
        axes: Where, with the scale that it will have.
        x: [N].
        y: [N]; without any number nothing is drawn, so that no legend tells of it.
        dot: The mark.
        look: Of the line.
    """
    known = np.isfinite(y)
    if axes.get_yscale() == "log":
        known &= np.nan_to_num(y) > 0
    if not known.any():
        return
    beside = np.pad(known, 1)
    alone = np.flatnonzero(known & ~beside[:-2] & ~beside[2:])
    marks: dict[str, Any] = {"marker": dot, "ms": 5, "mfc": "none", "markevery": alone}
    axes.plot(x, y, **look, **(marks if len(alone) else {}))


def values_of(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return one number a row, NaN where a row has none."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return a running mean over about a tenth of the curve, NaN left out."""
    half = max(1, len(values) // 20)
    known = ~np.isnan(values)
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(array)]) for array in (np.where(known, values, 0.0), known)
    )
    with np.errstate(invalid="ignore"):
        means = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return np.where(known, means, np.nan)
