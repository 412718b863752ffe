"""The page is complete, self-contained, and shows up in a real browser."""

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_crl.errors import ConfigError
from vla_crl.report.page import write_report

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Collects sections, headings and every address, and checks that tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.open_tags: list[str] = []
        self.feed(html)
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"] or "")
        self.addresses += [attributes[key] or "" for key in ("src", "href") if key in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def page(run_path: Path) -> Path:
    """The page of the finished run."""
    return write_report(run_path)


def test_the_page_of_a_finished_run_holds_everything_and_loads_nothing(
    page: Path, run_path: Path
) -> None:
    assert page == run_path / "report.html"
    html = page.read_text(encoding="utf-8")
    outline = Outline(html)
    assert outline.sections == [
        "success_matrix",
        "retention",
        "learning_curves",
        "videos",
        "metrics",
        "success_matrix_sampled",
        "diagnostics",
        "facts",
    ]
    assert len(outline.addresses) == 6  # five figures, one video
    assert all(re.match(r"data:(image/png|video/mp4);base64,", a) for a in outline.addresses)
    assert "url(" not in html
    assert "<script" not in html
    assert "mean success rose from 46\N{NO-BREAK SPACE}% to 88\N{NO-BREAK SPACE}%" in outline.text
    assert "pick up the green cube in tray: failure" in outline.text
    assert "Example CPU @ 2.10GHz, 2 cores" in outline.text
    assert "commit 0123456789ab" in outline.text
    assert "87.7 %" in outline.text
    plots = {path.stem for path in (run_path / "plots").iterdir()}
    assert plots == set(outline.sections) - {"videos", "metrics", "facts"}


def test_the_page_of_a_run_in_progress_says_so_and_shows_no_zeros(
    unfinished_run_path: Path,
) -> None:
    outline = Outline(write_report(unfinished_run_path).read_text(encoding="utf-8"))
    assert "1 of 3 stages finished" in outline.text
    assert "The run is not complete" in outline.text
    assert "videos" not in outline.sections
    assert "0.0 %" not in outline.text


def test_the_page_of_a_run_that_has_only_begun_exists(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    outline = Outline(write_report(tmp_path).read_text(encoding="utf-8"))
    assert outline.sections == ["facts"]
    assert "nothing is evaluated yet" in outline.text


def test_the_page_is_rebuilt_from_the_directory_alone(page: Path, tmp_path: Path) -> None:
    skip = shutil.ignore_patterns("plots", "report.html")
    copy = shutil.copytree(page.parent, tmp_path / page.parent.name, ignore=skip)
    assert write_report(copy).read_bytes() == page.read_bytes()


def test_names_cannot_smuggle_html_into_the_page(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_run(tmp_path / "run", num_stages=0)
    matrix = (path / "matrix.csv").read_text()
    (path / "matrix.csv").write_text(matrix.replace("red_cube_in_tray", "<b>&"))
    html = write_report(path).read_text(encoding="utf-8")
    assert "<b>&" not in html
    assert "&lt;b&gt;&amp;" in html


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_streams_and_null_numbers_are_drawn(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_run(tmp_path / "long", num_stages=0)
    tasks = [f"a_rather_long_name_of_task_{number}" for number in range(7)]
    lines = ["stage,task,split,successes,episodes", *(f"0,{task},train,0,9" for task in tasks)]
    (path / "matrix.csv").write_text("\n".join(lines) + "\n")
    row = '{"stage": 1, "task": "a", "episodes": 8, "success": null, "kl": null, "wall_s": 1.0}\n'
    (path / "metrics.jsonl").write_text(row)
    outline = Outline(write_report(path).read_text(encoding="utf-8"))
    assert "training on 7 tasks has begun" in outline.text


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs Chromium: apt-get install chromium"
)
def test_chromium_shows_the_page(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command += ["--window-size=1200,1600", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    assert pixels.shape == (1600, 1200, 3)
    # The matrix stands in the upper part: deep blue cells and the orange frames of its diagonal.
    deep_blue = (np.abs(pixels - (22, 76, 125)).sum(axis=2) < 40).sum()
    orange = (np.abs(pixels - (213, 94, 0)).sum(axis=2) < 40).sum()
    assert deep_blue > 10_000
    assert orange > 1_000
