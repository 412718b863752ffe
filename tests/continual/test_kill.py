import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vla_crl.models.checkpoint import save_policy
from vla_crl.run_directory import RunDirectory
from vla_crl.sim.backends import find_suite

SCRIPT = Path(__file__).with_name("killed_runs.py")
pytestmark = pytest.mark.slow
WALL_CLOCK = {"steps_per_s", "wall_s"} | {
    f"{part}_s" for part in ("collect", "render", "policy", "wait", "physics", "update")
}
RECIPE = """
suite = "fake"
policy = "base"
method = "killed_runs:Remembering"
episodes_per_task = 12
checkpoint_every = 2
video_episodes = 1
compute = { num_torch_threads = 1, num_sim_threads = 1 }
ppo = { minibatch_size = 4, value_warmup_iterations = 1, num_epochs = 2 }
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
    return json.loads((runs / "statuses.json").read_text())[name]


def content(path: Path) -> dict:
    """Return what a run has found out, without what the clock says."""
    run = RunDirectory(path)
    rows = [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in run.read_metrics()]
    files = {
        file.name: file.read_text()
        for file in (run.matrix_file, run.sampled_matrix_file, run.episodes_file)
    }
    weights = {}
    for file in sorted(run.checkpoints.glob("*/*.safetensors")):
        tensors = load_file(file)
        tensors.pop("wall_s", None)
        weights[f"{file.parent.name}/{file.name}"] = {k: v.tolist() for k, v in tensors.items()}
    return {"metrics": rows, "weights": weights} | files


def assert_as_if_never_stopped(runs: Path, name: str) -> None:
    killed, whole = content(runs / name), content(runs / "whole")
    for part, expected in whole.items():
        assert killed[part] == expected, f"{part} of {name}"
    paths = {p.relative_to(runs / name).as_posix() for p in (runs / name).rglob("*")}
    assert paths == {p.relative_to(runs / "whole").as_posix() for p in (runs / "whole").rglob("*")}


def test_the_run_that_is_killed_is_long_enough_to_tell_something(runs):
    found = content(runs / "whole")
    assert len(found["metrics"]) > 6
    assert {row["stage"] for row in found["metrics"]} == {1, 2}
    assert any(row["optimizer_steps"] and row["iteration"] > 1 for row in found["metrics"])
    assert len(found["weights"]["stage_2/method.safetensors"]["method/memory"]) > 20
    assert not (runs / "whole/state").exists()


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_a_run_killed_at_any_moment_ends_as_if_it_never_was(runs, name):
    *killed, last = statuses(runs, name)
    assert set(killed) == {-9}
    assert last == 0
    assert_as_if_never_stopped(runs, name)


def test_a_run_killed_from_outside_ends_as_if_it_never_was(runs):
    first, *_, last = statuses(runs, "outside")
    assert (first, last) == (-9, 0)
    assert_as_if_never_stopped(runs, "outside")


def test_sigterm_ends_a_run_with_143_so_that_it_can_be_resumed(runs):
    assert statuses(runs, "terminated") == [143, 143, 143, 0]
    assert_as_if_never_stopped(runs, "terminated")
    log = (runs / "terminated.log").read_text()
    command = f"vla-crl train {runs}/recipe.toml --run-dir {runs}/terminated --resume"
    assert log.count(f"vla-crl: ended by SIGTERM; go on with: {command}\n") == 3
    # The iteration in which it came is finished, though no checkpoint is due after it.
    assert "SIGTERM: stage 1 is stored after iteration 1" in log
    assert "goes on in stage 1 after iteration 1" in log
