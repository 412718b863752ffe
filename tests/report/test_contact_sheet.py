from pathlib import Path

import numpy as np
from matplotlib.image import imread

from vla_crl.report.contact_sheet import write_contact_sheet
from vla_crl.sim.native.suite import load_suite


def test_a_contact_sheet_shows_one_picture_per_task(tmp_path: Path):
    path = tmp_path / "new" / "tasks.png"
    write_contact_sheet(load_suite("tabletop_object"), path)
    pixels = imread(path)
    assert pixels.shape[:2] == (620, 1300)  # 2 rows of 5 panels
    quarters = [
        np.std(part) for half in np.array_split(pixels, 2) for part in np.array_split(half, 5, 1)
    ]
    assert min(quarters) > 0.05  # no panel is empty


def test_every_task_of_a_collection_has_its_picture(tmp_path: Path):
    write_contact_sheet(load_suite("tabletop_perturbed"), tmp_path / "tasks.png")
    pixels = imread(tmp_path / "tasks.png")
    assert pixels.shape[:2] == (660, 1300)  # 2 rows of 5 panels with three lines of text
    panels = [part for half in np.array_split(pixels, 2) for part in np.array_split(half, 5, 1)]
    assert min(np.std(panel) for panel in panels) > 0.05
    light, nominal = (np.mean(panels[index][100:300]) for index in (1, 5))
    assert light < 0.93 * nominal
