"""Whatever lies in the place of a file or stands behind a flag: a result, or one line and code 2.

Inputs are good ones, changed at random. `FUZZ_SEED` and `FUZZ_INPUTS` in the environment try
others, and more of them.
"""

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzzing.changes import change, change_arrays, change_tensors
from tests.fuzzing.good_files import write_good_files
from vla_crl.cli import main as cli
from vla_crl.datasets.npz import npz_episodes
from vla_crl.errors import USER_ERRORS, describe
from vla_crl.models.checkpoint import build_policy, load_policy
from vla_crl.report.pairing import stage_tables
from vla_crl.report.run_record import RunRecord
from vla_crl.report.tables import run_facts
from vla_crl.sim.backends import find_suite
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.native.suite import read_suite

SEED = int(os.environ.get("FUZZ_SEED", "0"))
NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "500"))
MAX_BYTES, MAX_SECONDS, MAX_LINE = 2**30, 120, 3000
TEXTS = (
    *("0", "1", "-1", "1e9", "999999999999999999999", "1" * 5000, "nan", "inf", "1e38", "1e-300"),
    *("", " ", "None", "True", "a", "a:b", "os:system", ".:a", "..", "/dev/zero", "[/red]", "$x$"),
    *("a\nb", "\x1b[2J", "\u2028", "\U0001f916", "a" * 10_000, "--", "-", "@", "cuda:99", "\udcff"),
)
COMMANDS = """
? | list ? | list tasks --suite ? | show suite ? | show policy ? | show recipe ? --json
metrics ? | metrics FOLDER/run/matrix.csv --rounds ? | report ? | report FOLDER/run --markdown ?
collect --suite fake --output new.npz --image-size 8 --episodes ?
collect --suite fake --output new.npz --episodes 2 --image-size ?
collect --suite fake --output new.npz --episodes 2 --image-size 8 --seed ?
evaluate --suite fake --episodes 1 --policy ?
evaluate --policy FOLDER/policies/small --episodes 1 --suite ?
evaluate --policy FOLDER/policies/small --suite fake --episodes ?
evaluate --policy FOLDER/policies/small --suite fake --episodes 1 --num-envs ?
evaluate --policy FOLDER/policies/small --suite fake --episodes 1 --tasks ?
evaluate --policy FOLDER/policies/small --suite fake --episodes 1 --base ?
evaluate --policy expert --suite fake --episodes 1 --num-sim-threads ?
rollout --policy expert --suite fake --output new.mp4 --states ?
train ? | pretrain ? | bench ? | doctor --device ? | verify ?
"""
FLAGS = """
seed suite policy base method rounds insulation episodes-per-task tasks lora.rank lora.alpha
lora.site learner.learning-rate learner.gamma learner.num-epochs learner.kind
collector.num-envs collector.num-chunks
evaluation.num-envs evaluation.num-episodes compute.device compute.num-sim-threads compute.dtype
exploration.noise-level variation.light-gain variation.seed method-settings video-episodes x learner
"""
FILES = """
experiments/small.toml: train FOLDER/experiments/small.toml --run-dir FOLDER
experiments/small.toml: show recipe small --json
experiments/pretrain.toml: pretrain FOLDER/experiments/pretrain.toml --output new
envs/fake/suite.toml: evaluate --policy expert --suite fake --episodes 1 --json
envs/fake/expert.json: show suite fake --json
adapter/adapter.json: evaluate --policy FOLDER/adapter --suite fake --episodes 1
run/matrix.csv: metrics FOLDER/run/matrix.csv --json
run/matrix.jsonl: metrics FOLDER/run/matrix.jsonl
"""
"""Files with commands that read them. What is good after all is not trained: --run-dir is taken."""
Run = Callable[[], object]


class Hanging(BaseException):
    """An input took too long."""


def read_run(run: Path) -> None:
    """Read what a report does, without its pictures, which take seconds."""
    record = RunRecord.read(run)
    json.dumps([record.config, record.num_episodes, record.wall_s, run_facts(record)])
    for table in stage_tables(record):
        assert table.rows


def read_own_demonstrations(path: Path) -> None:
    """Read a file of demonstrations as pretraining does, but for the cache of pictures."""
    for episode in npz_episodes(path, find_suite("fake"), 32):
        episode.read()


FUNCTIONS: dict[str, Callable[[Path], object]] = {
    "policies/small.toml": lambda path: build_policy(str(path)),
    "policies/small/policy.json": lambda path: load_policy(path.parent),
    "policies/small/model.safetensors": lambda path: load_policy(path.parent),
    "adapter/adapter.safetensors": lambda path: load_policy(path.parent),
    "run/config.json": lambda path: read_run(path.parent),
    "run/versions.json": lambda path: read_run(path.parent),
    "run/metrics.jsonl": lambda path: read_run(path.parent),
    "run/episodes.csv": lambda path: read_run(path.parent),
    "demonstrations.npz": read_own_demonstrations,
    "divergence.npz": Divergence.load,
    "table.toml": read_suite,
}
"""Files with what reads them, where a command would take long."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_small_policy) -> Path:
    """A folder with good files of every kind."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_CRL_PATH", str(folder))
        write_good_files(folder, make_small_policy)
    return folder


def make_input(rng: Random, folder: Path) -> tuple[str, Run]:
    """Change a file of a folder, or make up a flag; return what, and what then runs."""

    def command(text: str, *values: str) -> Run:
        words = [word.replace("FOLDER", str(folder)) for word in text.split() if word != "?"]
        return lambda: cli.main([*words, *values])

    in_file = [line.split(": ") for line in FILES.strip().splitlines()]
    kind = rng.randrange(len(in_file) + len(FUNCTIONS) + 5)
    if kind < len(in_file):
        name, text = in_file[kind]
        change(rng, folder / name)
        return f"{name}: {text}", command(text)
    if kind < len(in_file) + len(FUNCTIONS):
        name = [*FUNCTIONS][kind - len(in_file)]
        path = folder / name
        changes = {".npz": change_arrays, ".safetensors": change_tensors}
        changes.get(path.suffix, change)(rng, path)
        return name, lambda: FUNCTIONS[name](path)
    value = rng.choice(TEXTS)
    if kind < len(in_file) + len(FUNCTIONS) + 2:
        flag = f"--{rng.choice(FLAGS.split())}"
        return f"{flag} {value}", command(in_file[0][1], flag, value)
    text = rng.choice(COMMANDS.strip().replace("\n", " | ").split(" | "))
    return f"{text} {value}", command(text, value)


def outcome(run: Run) -> object:
    """Return with which code a command ends, or would end that runs this function."""
    try:
        with _limits():
            code = run()
        return code if isinstance(code, int) else 0
    except (*USER_ERRORS, MemoryError, OSError) as error:
        sys.stderr.write(f"vla-crl: error: {describe(error)}\n")
        return 2
    except SystemExit as stop:
        return stop.code
    except BaseException as error:  # noqa: BLE001 (all others are faults)
        return f"{type(error).__name__}: {error}"[:300]


@contextmanager
def _limits() -> Iterator[None]:
    """Let the block take so much more memory, and so long."""

    def stop(*_: object) -> None:
        raise Hanging

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, hard))
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fault_of(code: object, told: str) -> str | None:
    """Say what is wrong with how a command ended and what it told, None if nothing is."""
    if code == 0 or (code == 1 and "Traceback" not in told):  # doctor may find something
        return None
    lines = told.removesuffix("\n").split("\n")
    errors = [line for line in lines if line.startswith("vla-crl: error: ")]
    is_line = errors == lines[-1:] and len(errors[0]) < MAX_LINE and "allocate" not in errors[0]
    return None if code == 2 and is_line else f"ended with {code!r}, told {told[-300:]!r}"


def content(folder: Path) -> dict[Path, Any]:
    """Return what lies in a folder; of what is huge or no file that it is there."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    small = {path: path.read_bytes() for path in files if path.stat().st_size < 2**30}
    return dict.fromkeys(folder.rglob("*")) | small


@pytest.mark.filterwarnings("default")  # they are told on stderr, before the line
def test_any_input_gives_a_result_or_one_line(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    faults: list[str] = []
    for number in range(NUM_INPUTS):
        folder, here = tmp_path / "input", tmp_path / "here"
        shutil.copytree(good, folder)
        here.mkdir()
        monkeypatch.chdir(here)
        monkeypatch.setenv("VLA_CRL_PATH", str(folder))
        what, run = make_input(Random(f"{SEED} {number}"), folder)
        before = content(folder)
        capfd.readouterr()
        fault = fault_of(outcome(run), capfd.readouterr().err)
        after = content(folder)
        if any(after.get(path, b"") != old for path, old in before.items()):
            fault = "changes its input"
        if fault:
            faults.append(f"input {number} of seed {SEED}, {what[:300]!r}: {fault}")
        shutil.rmtree(folder)
        shutil.rmtree(here)
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
