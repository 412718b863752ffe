"""One picture of a suite: what the robot sees in each task, with the instruction."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vla_crl.files.writing import replacing
from vla_crl.sim.backends import simulate
from vla_crl.sim.task_suite import TaskSuite

PIXELS = 256
"""Height and width of a picture."""
NUM_COLUMNS = 5


def write_contact_sheet(suite: TaskSuite, path: Path) -> None:
    """Draw every task from the first camera, each on another test state.

    Args:
        suite: Its tasks are drawn.
        path: The image file; its suffix names the format.
    """
    num_tasks = len(suite.tasks)
    sim = simulate(suite, num_tasks, image_size=PIXELS)
    slots = np.arange(num_tasks)
    sim.reset(slots, tasks=slots, state_ids=np.resize(suite.test_ids, num_tasks))
    seen = sim.observe()
    sim.close()
    titles = ["\n".join(textwrap.wrap(said, 28)) for said in seen.instruction]
    if len({task.instruction for task in suite.tasks}) < num_tasks:  # names tell the difference
        titles = [f"{task.name}\n{t}" for task, t in zip(suite.tasks, titles, strict=True)]
    num_lines = max(2, *(title.count("\n") + 1 for title in titles))
    num_columns = min(NUM_COLUMNS, num_tasks)
    num_rows = -(-num_tasks // num_columns)
    figure = Figure(
        figsize=(2.6 * num_columns, (2.7 + 0.2 * num_lines) * num_rows), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, task, title, image in zip(panels, suite.tasks, titles, seen.images, strict=False):
        panel.imshow(image[0])
        panel.set_title(title, fontsize=9, parse_math=False)
        panel.text(
            6, 14, "held out" if task.split == "heldout" else task.split, fontsize=8, va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2, "alpha": 0.85},
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)
