"""A synthetic run of three training and three held-out tasks, made without any simulation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_crl.continual.success_matrix import Cell, append_stage
from vla_crl.report.video import GridVideo

TRAIN_TASKS = ("red_cube_in_basket", "green_cube_in_tray", "blue_cylinder_in_basket")
HELDOUT_TASKS = ("purple_ball_in_tray", "yellow_cylinder_in_basket", "red_cube_in_tray")
SUCCESSES = [
    [46, 40, 52, 38, 44, 41],
    [88, 47, 50, 37, 49, 58],
    [85, 91, 57, 45, 47, 57],
    [82, 88, 93, 44, 56, 55],
]
EPISODES_PER_STAGE = 2048


def write_iterations(path: Path, num_stages: int) -> None:
    generator = np.random.default_rng(0)
    rows, wall_s = [], 0.0
    for stage in range(1, num_stages + 1):
        first, last = SUCCESSES[stage - 1][stage - 1], SUCCESSES[stage][stage - 1]
        for iteration in range(1, 33):
            wall_s += 3.1
            progress = 1 - np.exp(-iteration / 9)
            success = (first + (last - first) * progress) / 100 + generator.normal(0, 0.05)
            success = float(np.clip(success, 0, 1))
            rows.append(
                {
                    "stage": stage,
                    "task": TRAIN_TASKS[stage - 1],
                    "iteration": iteration,
                    "episodes": iteration * 64,
                    "success": success,
                    "return": success,
                    "kl": 0.012 * abs(float(generator.normal(1, 0.3))),
                    "clip_fraction": 0.12 * abs(float(generator.normal(1, 0.2))),
                    "steps_per_s": 1900 + float(generator.normal(0, 60)),
                    "wall_s": wall_s,
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_matrix(path: Path, num_stages: int, offset: int = 0) -> None:
    for stage in range(num_stages + 1):
        append_stage(
            path,
            [
                Cell(
                    stage=stage,
                    task=task,
                    split="train" if task in TRAIN_TASKS else "heldout",
                    successes=SUCCESSES[stage][column] + offset,
                    episodes=100,
                )
                for column, task in enumerate(TRAIN_TASKS + HELDOUT_TASKS)
            ],
        )


def write_video(path: Path) -> None:
    """Write four tiles: the first and third succeed, the second fails, the last is cut off."""
    instructions = [
        f"pick up the {task.replace('_', ' ')}" for task in (TRAIN_TASKS + HELDOUT_TASKS)[:4]
    ]
    background = np.linspace(90, 200, 64, dtype=np.uint8)[None, :, None, None]
    background = np.broadcast_to(background, (4, 64, 64, 3))
    with GridVideo(path, instructions, title="After stage 3", num_columns=4) as video:
        for step in range(24):
            frames = background.copy()
            for tile, color in enumerate(
                [(200, 40, 40), (40, 160, 60), (40, 80, 200), (140, 60, 160)]
            ):
                frames[tile, 20:30, 2 * step : 2 * step + 10] = color
            outcomes = [step >= 12 or None, False if step == 23 else None, step >= 18 or None, None]
            video.write(frames, outcomes)


def make_run(path: Path, num_stages: int = 3, *, offset: int = 0, seed: int = 0) -> Path:
    """Write a run directory in which `num_stages` of three stages have ended."""
    (path / "videos").mkdir(parents=True)
    config = {"suite": "tabletop_object", "learner": {"learning_rate": 3e-4}, "seed": seed}
    (path / "config.json").write_text(json.dumps(config))
    versions = {
        "vla_crl": "0.1.0",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "python": "3.11.2",
        "platform": "Linux-x86_64",
        "cpu_model": "Example CPU @ 2.10GHz",
        "num_cores": 2,
        "seed": seed,
        "command": ["vla-crl", "train", "demo"],
        "packages": {"mujoco": "3.8.1", "numpy": "2.2.6", "torch": "2.13.0", "zipp": "3.0"},
    }
    (path / "versions.json").write_text(json.dumps(versions))
    write_iterations(path / "metrics.jsonl", num_stages)
    write_matrix(path / "matrix.csv", num_stages, offset)
    return path


@pytest.fixture(name="make_run")
def make_run_fixture() -> Callable[..., Path]:
    """Give tests the function `make_run`."""
    return make_run


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a video and both evaluations, shared by all tests."""
    path = make_run(tmp_path_factory.mktemp("runs") / "demo")
    write_matrix(path / "matrix_sampled.csv", 3, offset=-5)
    write_video(path / "videos" / "stage_3.mp4")
    return path


@pytest.fixture
def unfinished_run_path(tmp_path: Path) -> Path:
    """A run in its second stage: no videos, a last line cut off."""
    path = make_run(tmp_path / "unfinished", num_stages=1)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 2, "task": "gre')
    return path
