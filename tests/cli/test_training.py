"""Several seeds in one command, and the sources that a run keeps; real runs in fake worlds."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from safetensors.torch import load_file

from vla_crl.cli import main as cli
from vla_crl.models.checkpoint import save_policy
from vla_crl.report.run_record import RunRecord
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite

RECIPE = """
suite = "fake"
policy = "{base}"
method = "holding:Hold"
episodes_per_task = 4
video_episodes = 0
compute = {{ num_torch_threads = 1, num_sim_threads = 1 }}
learner = {{ minibatch_size = 4, value_warmup_iterations = 0, num_epochs = 1 }}
lora = {{ rank = 2 }}
collector = {{ num_envs = 4, num_chunks = 3 }}
evaluation = {{ num_episodes = 2, num_sampled_episodes = 0, num_envs = 6 }}
"""
METHOD = '''
import os
from dataclasses import dataclass
from holding_parts import strength_of
from vla_crl.continual.method import ContinualMethod

CLOSED = []

@dataclass(frozen=True, kw_only=True)
class HoldConfig:
    strength: float = 0.1


class Hold(ContinualMethod):
    """Weigh the loss by a number."""

    config_class = HoldConfig

    def sample_weights(self, batch, evaluation):
        return super().sample_weights(batch, evaluation) * strength_of(self)

    def after_task(self, policy, stage):
        CLOSED.append(stage.tasks[0])
        if os.environ.get("FAIL_AT") == str(len(CLOSED)):
            {}["nothing"]
'''
FAILS_AT = next(n for n, line in enumerate(METHOD.split("\n"), 1) if '"nothing"' in line)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_small_policy) -> Path:
    """A catalogue of one's own with a suite, and beside it a base policy."""
    folder = tmp_path_factory.mktemp("base")
    suite = folder / "own/envs/fake/suite.toml"
    suite.parent.mkdir(parents=True)
    suite.write_text('backend = "vla_crl.testing.fake_worlds:BACKEND"\nhorizon = 8\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_CRL_PATH", str(folder / "own"))
        save_policy(make_small_policy(find_suite("fake")), folder / "policy")
    return folder


@pytest.fixture
def own(own_folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite, a method of two modules and a recipe, and its parent to work in."""
    shutil.copytree(base / "own", own_folder, dirs_exist_ok=True)
    (own_folder / "envs/parts.xml").write_text("<mujoco/>")
    (own_folder / "envs/robots").mkdir()
    (own_folder / "envs/robots/arm.xml").write_text("<mujoco/>")
    (own_folder / "holding.py").write_text(METHOD)
    (own_folder / "holding_parts.py").write_text(
        "def strength_of(method):\n    return method.config.strength\n"
    )
    (own_folder / "unused.py").write_text("raise ValueError\n")
    (own_folder / "experiments").mkdir()
    (own_folder / "experiments/small.toml").write_text(RECIPE.format(base=base / "policy"))
    monkeypatch.chdir(own_folder.parent)
    return own_folder


@pytest.fixture
def train(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Return a function that trains the recipe; its reports have no plots, which take long."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write_bytes(b"picture"))

    def command(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["train", "small", *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def weights(run: str) -> dict[str, list[float]]:
    file = Path(run) / "checkpoints/stage_2/adapter.safetensors"
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def rows(run: str) -> str:
    return (Path(run) / "episodes.csv").read_text()


def test_a_run_of_each_seed_and_what_they_say_together(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = train("--seeds", "0", "5")
    assert code == 0
    pages = [f"runs/small_seed{seed}/report.html" for seed in (0, 5)]
    assert out.split() == [*pages, "runs/small_seeds.md"]
    assert "seed 5 of 0 5: runs/small_seed5\n" in err
    assert [RunDirectory(Path(page).parent).read_config()["seed"] for page in pages] == [0, 5]
    assert RunDirectory(Path("runs/small_seed5")).read_versions()["seed"] == 5

    # As a command that makes this seed alone, and as `report` averages them.
    assert train("--seed", "5", "--run-dir", "alone")[0] == 0
    assert rows("alone") == rows("runs/small_seed5")
    assert weights("alone") == weights("runs/small_seed5")
    assert weights("alone") != weights("runs/small_seed0")
    folders = [str(Path(page).parent) for page in pages]
    assert cli.main(["report", *folders, "--markdown", "again.md"]) == 0
    assert Path("again.md").read_text() == Path("runs/small_seeds.md").read_text()
    assert "mean ± SE (n = 2)" in Path("again.md").read_text()

    # Only with the settings of each.
    for flags, message in (
        (("--episodes-per-task", "5"), "seed0/config.json: episodes_per_task is 4 there but 5 now"),
        (("--method-settings.strength", "2"), "method_settings.strength is 0.1 there but 2.0 now"),
    ):
        code, _, err = train("--seeds", "0", "7", "--resume", *flags)
        assert code == 2
        assert message in err

    # What is complete is left alone; a seed more begins.
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.csv")}
    Path("runs/small_seeds.md").unlink()
    code, _, err = train("--seeds", "5", "0", "7", "--resume")
    assert code == 0
    for seed in (0, 5):
        assert f"runs/small_seed{seed}: is complete, nothing is left to do\n" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "mean ± SE (n = 3)" in Path("runs/small_seeds.md").read_text()


def test_a_seed_that_fails_does_not_keep_the_others_from_being_made(
    train: Command, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_AT", "3")  # of two stages a run
    code, out, err = train("--seeds", "0", "1", "2", "--run-dir", "mine")
    place = f"{own}/holding.py:{FAILS_AT}: KeyError: 'nothing'"
    assert code == 2
    assert f"mine_seed1: failed: {place}\n" in err
    assert err.splitlines()[-1] == (
        "vla-crl: error: 1 of 3 seeds failed, the others are complete: mine_seed1: "
        f"{place}. Go on with: vla-crl train small --seeds 0 1 2 --run-dir mine --resume "
        "--changed-sources"
    )
    assert out.split() == ["mine_seed0/report.html", "mine_seed2/report.html"]
    assert not Path("mine_seeds.md").exists()

    code, out, err = train("--seeds", "0", "1", "2", "--run-dir", "mine", "--resume")
    assert code == 0
    assert err.count("is complete, nothing is left to do") == 2
    assert out.split()[-1] == "mine_seeds.md"
    versions = [RunDirectory(Path(f"mine_seed{seed}")).read_versions() for seed in (0, 1)]
    assert versions[0]["command_s"] > 0
    assert "command_s" not in versions[1]  # two commands made it

    monkeypatch.setenv("FAIL_AT", "8")  # counted on, over all runs of this process
    code, _, err = train("--seeds", "8", "--run-dir", "alone")
    assert code == 2
    assert "vla-crl: error: 1 of 1 seeds failed: alone_seed8: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0 1 0", "--seeds 0 1 0: one is there twice; name each once"),
        ("--seeds 0 --seed 1", "train: --seeds names the seeds already; leave out --seed"),
        ("--seeds 0 --seed=1", "train: --seeds names the seeds already; leave out --seed"),
        ("--seeds 4294967296", "'4294967296' is not a whole number, 0 to 4294967295"),
        ("--seeds x", "'x' is not a whole number, 0 to 4294967295"),
        ("--seeds 0 --run-dir ..", "--run-dir ..: expected a name, to which the seeds are added"),
        ("--seeds 0 1 --resume", "runs/small_seed0: not a run directory"),
        ("--seeds 0 --policy none/such", "none/such: no such policy"),
        ("--changed-sources", "train: --changed-sources is for --resume; leave it out"),
    ],
)
def test_what_is_wrong_with_seeds_is_told_before_anything_begins(
    train: Command, flags: str, message: str
) -> None:
    code, out, err = train(*flags.split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("vla-crl: error: ")
    assert message in err.splitlines()[-1]
    assert not Path("runs").exists()


def test_seeds_overwrite_nothing(train: Command, own: Path) -> None:
    Path("runs/small_seed1").mkdir(parents=True)
    Path("runs/small_seed1/notes.txt").write_text("precious")
    code, _, err = train("--seeds", "0", "1")
    assert code == 2
    assert "runs/small_seed1: exists and is not empty; nothing was overwritten. Choose" in err
    shutil.rmtree("runs/small_seed1")
    Path("runs/small_seeds.md").write_text("precious")
    code, _, err = train("--seeds", "0", "1")
    assert code == 2
    assert "runs/small_seeds.md: exists; nothing was overwritten. Choose another --run-dir" in err
    assert not Path("runs/small_seed0").exists()


def test_a_run_keeps_the_sources_of_its_method_and_suite(
    train: Command, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train()[0] == 0
    kept = Path("runs/small/sources")
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert names == {
        "holding.py",
        "holding_parts.py",
        "envs/fake/suite.toml",
        "envs/parts.xml",
        "envs/robots/arm.xml",
    }
    assert all((kept / name).read_bytes() == (own / name).read_bytes() for name in names)
    (record,) = RunDirectory(Path("runs/small")).read_versions()["sources"]
    assert record["folder"] == "sources"
    assert record["files"].keys() == names
    assert record["fingerprint"] in Path("runs/small/report.html").read_text()
    assert json.loads(Path("runs/small/config.json").read_text())["method_settings"] == {
        "strength": 0.1
    }

    # The folder is one that VLA_CRL_PATH takes, and repeats the run.
    shutil.move(own, "gone")
    monkeypatch.setenv("VLA_CRL_PATH", str(kept.absolute()))
    for module in ("holding", "holding_parts"):
        sys.modules.pop(module)
    code = cli.main(["train", "gone/experiments/small.toml", "--run-dir", "again"])
    assert code == 0
    assert weights("again") == weights("runs/small")


def test_changed_sources_are_refused_unless_the_user_says_so(
    train: Command, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_AT", "1")
    code, _, err = train()
    assert code == 2
    assert err.splitlines()[-1] == (
        f"vla-crl: error: {own}/holding.py:{FAILS_AT}: KeyError: 'nothing'. When it is mended, go "
        "on with: vla-crl train small --resume --changed-sources"
    )
    (own / "holding.py").write_text(METHOD.replace('{}["nothing"]', "pass"))
    (own / "envs/robots/leg.xml").touch()
    sys.modules.pop("holding")
    code, _, err = train("--resume")
    assert code == 2
    assert (
        "runs/small: what it is made with has changed since it began: envs/robots/leg.xml, "
        "holding.py (as it was: runs/small/sources). Put it back, start a new run with another "
        "--run-dir, or, where the change is meant, go on with --changed-sources"
    ) in err
    assert train("--resume", "--changed-sources")[0] == 0
    run = RunDirectory(Path("runs/small"))
    first, second = run.read_versions()["sources"]
    assert (second["folder"], second["since_stage"]) == ("sources_2", 1)
    assert first["fingerprint"] != second["fingerprint"]
    assert (run.path / "sources/holding.py").read_text() == METHOD
    assert "pass" in (run.path / "sources_2/holding.py").read_text()
    assert f"{second['fingerprint']} from stage 1" in run.report_file.read_text()
    assert len(RunRecord.read(run.path).sources) == 2
