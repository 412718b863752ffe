import json
import logging
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vla_crl.continual.loggers.loggers import Loggers
from vla_crl.continual.loggers.wandb import STEP
from vla_crl.continual.success_matrix import Cell, append_stage
from vla_crl.errors import ConfigError
from vla_crl.runs.directory import RunDirectory


@dataclass(frozen=True)
class Config:
    seed: int = 0


def row(stage: int, iteration: int, success: float | None = 0.5) -> dict:
    return {
        "stage": stage,
        "task": "red",
        "iteration": iteration,
        "episodes": 10 * iteration,
        "success": success,
        "kl": 0.01 * iteration,
    }


def cells(stage: int, *successes: int) -> list[Cell]:
    splits = {"red": "train", "green": "train", "mug": "heldout"}
    return [
        Cell(stage=stage, task=task, split=split, successes=count, episodes=10)  # pyright: ignore[reportArgumentType]
        for (task, split), count in zip(splits.items(), successes, strict=True)
    ]


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", Config(), seed=0, command=[])


@pytest.fixture
def play(run):
    """Return a function that trains two iterations on from where the run directory ends.

    TensorBoard's is never closed, as by a killed process; of W&B there is one at a time.
    """

    def iterate(loggers, stage, numbers, success):
        for number in numbers:
            run.append_metrics(row(stage, number, success))
            loggers.iteration(row(stage, number, success))

    def evaluate(loggers, stage, *successes):
        append_stage(run.matrix_file, cells(stage, *successes))
        loggers.evaluation(run.matrix_file, cells(stage, *successes))

    def play(name: str) -> None:
        first = Loggers((name,), run, {"seed": 0})  # pyright: ignore[reportArgumentType]
        first.begin(1)
        evaluate(first, 0, 1, 2, 3)
        iterate(first, 1, (1, 2, 3, 4), 0.25)
        if name == "wandb":
            first.finish()
        # Killed: the state of iteration 2 was stored, what was written after it is dropped.
        run.keep_until(1, 2)
        second = Loggers((name,), run, {"seed": 0})  # pyright: ignore[reportArgumentType]
        second.begin(1)
        iterate(second, 1, (3, 4, 5), 0.75)
        evaluate(second, 1, 4, 5, 6)
        second.finish()

    return play


def test_tensorboard_shows_all_steps_of_a_resumed_run_once(run, play):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play("tensorboard")
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    success = [(event.step, event.value) for event in events.Scalars("training/success")]
    assert success == [(1, 0.25), (2, 0.25), (3, 0.75), (4, 0.75), (5, 0.75)]
    red = [(event.step, event.value) for event in events.Scalars("test_success/red")]
    assert red == [(0, pytest.approx(0.1)), (5, pytest.approx(0.4))]
    assert events.Scalars("test_success/mean_train")[-1].value == pytest.approx(0.45)
    assert "training/task" not in events.Tags()["scalars"]
    assert {"training/kl", "training/stage", "test_success/mug"} <= set(events.Tags()["scalars"])


def history(path: Path) -> list[dict]:
    """Read what W&B has kept: records of protobuf in the log format of LevelDB.

    The process that writes it may be later than the one that has ended the run.
    """
    while not (records := list(kept_records(path))) or not records[-1].HasField("exit"):
        time.sleep(0.1)
    return [
        {item.nested_key[-1]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def kept_records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no record begins so late in a block
            place += 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_is_sent_all_steps_of_a_resumed_run_once(run, play, tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (run.videos / "after.mp4").write_bytes(b"film")
    play("wandb")
    kept = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    sent = json.loads((run.path / "wandb.json").read_text())
    assert [path.stem for path in kept] == [f"run-{sent['id']}"] * 2
    rows = [row for path in kept for row in history(path)]
    success = [(r[STEP], r["training/success"]) for r in rows if "training/success" in r]
    # A real training repeats itself, so what was sent of iterations 3 and 4 is right.
    assert success == [(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25), (5, 0.75)]
    red = [(r[STEP], r["test_success/red"]) for r in rows if "test_success/red" in r]
    assert red == [(0, 0.1), (5, 0.4)]
    assert [r["_step"] for r in rows] == [*range(9)]  # the last has the film
    assert next((tmp_path / "wandb").rglob("after*.mp4")).read_bytes() == b"film"
    run.refuse_links()  # nor does it leave any in the run's folder


def test_a_number_that_is_not_there_is_left_out(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = Loggers(("tensorboard",), run, {})
    loggers.begin(1)
    for number, success in enumerate((None, float("nan"), 0.5), start=1):
        loggers.iteration(row(1, number, success))
    loggers.finish()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/success")] == [3]
    assert [event.step for event in events.Scalars("training/kl")] == [1, 2, 3]


def test_a_logger_that_fails_is_left_out_and_told_of_once(run, caplog):
    (run.path / "tensorboard").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        loggers = Loggers(("tensorboard",), run, {})
        loggers.begin(1)
        for number in range(1, 4):
            loggers.iteration(row(1, number))
        loggers.finish()
    (told,) = caplog.messages
    assert told.startswith("tensorboard: failed and is left out from here on (")
    assert "the training goes on" in told


def test_ctrl_c_in_a_logger_is_no_failure_of_it(run, monkeypatch):
    from vla_crl.continual.loggers.tensorboard import TensorBoardLogger

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardLogger, "write", interrupted)
    loggers = Loggers(("tensorboard",), run, {})
    loggers.begin(1)
    with pytest.raises(KeyboardInterrupt):
        loggers.iteration(row(1, 1))


def test_a_missing_package_is_told_before_the_training(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip .*'.\[wandb\]'.*leave it"):
        Loggers(("wandb",), run, {})


def test_without_loggers_nothing_is_written(run):
    before = sorted(run.path.rglob("*"))
    loggers = Loggers((), run, {})
    loggers.begin(1)
    loggers.iteration(row(1, 1))
    loggers.evaluation(run.matrix_file, cells(0, 1, 2, 3))
    loggers.finish()
    assert sorted(run.path.rglob("*")) == before
