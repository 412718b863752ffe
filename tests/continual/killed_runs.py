"""Runs `vla-crl train` in children that are killed, for test_kill.py: `killed_runs.py FOLDER`.

FOLDER has `recipe.toml`. The children are forked by a process that has imported everything and
computed nothing. Each run is killed, resumed and killed again, and at last resumed until it is
done; it leaves a folder FOLDER/NAME and in NAME.json how its children ended: exit codes, or
signals as negative numbers. A moment is a call of a function; which one is drawn.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from matplotlib.figure import Figure

from vla_crl.cli import main as cli
from vla_crl.continual.method import ContinualMethod

for name in ("vla_crl.continual.trainer", "vla_crl.report.film", "vla_crl.report.page"):
    importlib.import_module(name)  # else every child does, on use

MOMENTS = {
    "collection": "vla_crl.rollout.collector_lane:CollectorLane._play",
    "update": "vla_crl.algos.learner:Learner._step",
    "closing": "vla_crl.continual.stage:StageTraining._collect_fresh",
    "rows": "vla_crl.runs.directory:RunDirectory.append_metrics",
    "tensors": "safetensors.torch:save_file",
    "text": "pathlib:Path.write_text",
    "syncing": "os:fsync",
    "renaming": "os:replace",
    "removing": "shutil:rmtree",
    "evaluation": "vla_crl.rollout.evaluate:save_divergences",
    "plots": "matplotlib.figure:Figure.savefig",
    "videos": "vla_crl.report.video:_Encoder.write",
}
KILLED = {
    "first": ("collection", "tensors", "evaluation", "plots"),
    "second": ("update", "renaming", "rows", "videos"),
    "third": ("syncing", "closing", "text", "removing"),
}
TERMINATED = (("update", 3), ("evaluation", 5), ("videos", 5))


class Remembering(ContinualMethod):
    """Draws at random, and has a memory that grows within a stage and when it is closed."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.steps, self.mean = torch.zeros(()), torch.zeros(())
        self.memory = torch.zeros(0)
        self.is_prepared = False

    def before_task(self, policy, stage):
        self.is_prepared, self.mean = True, torch.rand(())

    def sample_weights(self, batch, evaluation):
        assert self.is_prepared
        return 0.5 + torch.rand(batch.advantages.shape) * (1.0 + self.mean)

    def after_step(self, policy):
        self.steps = self.steps + 1
        trained = [p for _, p in policy.named_parameters() if p.requires_grad]
        norm = sum(parameter.detach().norm() for parameter in trained)
        self.mean = 0.9 * self.mean + 0.1 * norm

    def after_task(self, policy, stage):
        self.memory = torch.cat([self.memory, *stage.collect().values, stage.collect().returns[0]])

    def state_dict(self):
        return {"steps": self.steps, "mean": self.mean, "memory": self.memory}

    def load_state_dict(self, state):
        self.steps, self.mean, self.memory = state["steps"], state["mean"], state["memory"]


def on_call(place: str, act: Callable[..., None]) -> None:
    """Call `act(original, *arguments)` before every call of a function."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def acting(*arguments: Any, **keywords: Any) -> Any:
        act(original, *arguments)
        return original(*arguments, **keywords)

    setattr(owner, name, acting)


def send(place: str, number: int, number_of_signal: int) -> None:
    """Send this process a signal at a call of a function, half of which is done if it writes."""
    lock, calls = Lock(), 0

    def act(original: Callable[..., Any], *arguments: Any) -> None:
        nonlocal calls
        with lock:
            calls += 1
            if calls != number:
                return
        if place == MOMENTS["text"]:
            path, text = arguments
            original(path, text[: len(text) // 2])
        if place == MOMENTS["tensors"]:
            original(*arguments)
            os.truncate(arguments[1], arguments[1].stat().st_size // 2)
        if place == MOMENTS["rows"]:
            with arguments[0].metrics_file.open("a") as file:
                file.write('{"stage": 1, "iter')
        os.kill(os.getpid(), number_of_signal)

    on_call(place, act)


def save_quickly(figure: Any, file: Path, **_: Any) -> None:
    """Stand in for `Figure.savefig`, which takes longer than the training."""
    file.write_bytes(b"picture")


def start(run: Path, prepare: Callable[[], None]) -> int:
    """Begin or resume a run in a child, and return its process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with run.with_suffix(".log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        setattr(Figure, "savefig", save_quickly)  # noqa: B010
        prepare()
        resume = ["--resume"] * (run / "config.json").exists()
        recipe = str(run.parent / "recipe.toml")
        code = cli.main(["train", recipe, "--run-dir", str(run), *resume])
        sys.stdout.flush()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_calls(run: Path) -> dict[str, int]:
    """Make a run that nobody kills, and return how often each function was called."""
    file, lock = run.with_suffix(".json"), Lock()
    counts = dict.fromkeys(MOMENTS, 0)

    def count(name: str) -> None:
        def act(*_: Any) -> None:
            with lock:
                counts[name] += 1
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as out:
                    out.write(json.dumps(counts))

        on_call(MOMENTS[name], act)

    def count_all() -> None:
        for name in MOMENTS:
            count(name)

    assert wait(start(run, count_all)) == 0
    return json.loads(file.read_text())


def stop(run: Path, counts: Mapping[str, int], whole_s: float) -> list[int]:
    """Stop a run again and again, as its name says, and finish it; return how its children ended.

    Args:
        run: Its folder.
        counts: How often each function is called in a whole run.
        whole_s: How long that takes.
    """
    draw, ended = random.Random(run.name), []

    def stop_at(name: str, number: int, by: int) -> None:
        ended.append(wait(start(run, lambda: send(MOMENTS[name], number, by))))

    if run.name == "first":  # while its folder is made
        stop_at("renaming", 1, signal.SIGKILL)
        stop_at("renaming", 2, signal.SIGKILL)
    for name in KILLED.get(run.name, ()):  # few calls, so that enough are left for those to come
        stop_at(name, draw.randint(1, max(1, counts[name] // 4)), signal.SIGKILL)
    for name, number in TERMINATED if run.name == "terminated" else ():
        stop_at(name, number, signal.SIGTERM)
    for _ in range(2) if run.name == "outside" else ():
        child = start(run, lambda: None)
        time.sleep(whole_s * draw.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        ended.append(wait(child))
    return [*ended, wait(start(run, lambda: None))]


def main(folder: Path) -> None:
    begun = time.monotonic()
    counts = count_calls(folder / "whole")
    whole_s, children = time.monotonic() - begun, []
    for name in (*KILLED, "terminated", "outside"):  # at the same time
        children.append(os.fork())
        if not children[-1]:
            try:
                ended = stop(folder / name, counts, whole_s)
                (folder / f"{name}.json").write_text(json.dumps(ended))
            finally:
                os._exit(0)
    for child in children:
        wait(child)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
