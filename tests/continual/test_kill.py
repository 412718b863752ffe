import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vla_crl.models.checkpoint import save_policy
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite

SCRIPT = Path(__file__).with_name("killed_runs.py")
pytestmark = pytest.mark.slow
RECIPE = """
suite = "fake"
policy = "base"
method = "killed_runs:Remembering"
episodes_per_task = 12
checkpoint_every = 2
video_episodes = 1
compute = { num_torch_threads = 1, num_sim_threads = 1 }
learner = { minibatch_size = 4, value_warmup_iterations = 1, num_epochs = 2 }
lora = { rank = 2 }
collector = { num_envs = 4, num_chunks = 3 }
evaluation = { num_episodes = 2, num_sampled_episodes = 2, num_envs = 6 }
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_small_policy) -> Path:
    """A folder of runs, one that nobody killed and those of `killed_runs.py`."""
    folder = tmp_path_factory.mktemp("runs")
    suite = folder / "catalogue/envs/fake/suite.toml"
    suite.parent.mkdir(parents=True)
    suite.write_text('backend = "vla_crl.testing.fake_worlds:BACKEND"\nhorizon = 8\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_CRL_PATH", str(folder / "catalogue"))
        save_policy(make_small_policy(find_suite("fake")), folder / "base")
        (folder / "recipe.toml").write_text(RECIPE)
        subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, cwd=folder)
    return folder


def statuses(runs: Path, name: str) -> list[int]:
    return json.loads((runs / f"{name}.json").read_text())


@pytest.fixture
def assert_as_if_never_stopped(runs, assert_same_run):
    def compare(name: str) -> None:
        assert_same_run(RunDirectory(runs / name), RunDirectory(runs / "whole"))
        paths = [
            {path.relative_to(run).as_posix() for path in run.rglob("*")}
            for run in (runs / name, runs / "whole")
        ]
        assert paths[0] == paths[1]

    return compare


def test_the_run_that_is_killed_is_long_enough_to_tell_something(runs):
    whole = RunDirectory(runs / "whole")
    rows = whole.read_metrics()
    assert [row["stage"] for row in rows] == [1] * 4 + [2] * 4
    assert all(row["optimizer_steps"] > 1 for row in rows if row["iteration"] in (1, 3))
    assert len(load_file(whole.checkpoint(2) / "method.safetensors")["method/memory"]) == 32
    assert not whole.state.exists()


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_run_killed_at_any_moment_ends_as_if_it_never_was(runs, name, assert_as_if_never_stopped):
    *killed, last = statuses(runs, name)
    assert set(killed) == {-9}
    assert last == 0
    assert_as_if_never_stopped(name)


def test_a_run_killed_from_outside_ends_as_if_it_never_was(runs, assert_as_if_never_stopped):
    first, *_, last = statuses(runs, "outside")
    assert (first, last) == (-9, 0)
    assert_as_if_never_stopped("outside")


def test_sigterm_ends_a_run_with_143_so_that_it_can_be_resumed(runs, assert_as_if_never_stopped):
    assert statuses(runs, "terminated") == [143, 143, 143, 0]
    assert_as_if_never_stopped("terminated")
    log = (runs / "terminated.log").read_text()
    command = f"vla-crl train {runs}/recipe.toml --run-dir {runs}/terminated --resume"
    assert log.count(f"vla-crl: ended by SIGTERM; go on with: {command}\n") == 3
    # The iteration in which it came is finished, though no checkpoint is due after it.
    assert "SIGTERM: stage 1 is stored after iteration 1" in log
    assert "goes on in stage 1 after iteration 1" in log
