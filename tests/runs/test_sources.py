"""What of one's own a run is made with."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from vla_crl.algos.learners import find_learner
from vla_crl.continual.known_methods import find_method
from vla_crl.continual.methods.sequential import SequentialFineTuning
from vla_crl.errors import ConfigError
from vla_crl.runs.directory import RunDirectory
from vla_crl.runs.sources import Sources, source_records


@dataclass(frozen=True)
class Config:
    suite: str = "table"


@pytest.fixture
def own(own_folder: Path) -> Path:
    """A folder with suites, parts that they share, and a method in a package."""
    for name in ("table", "shelf"):
        (own_folder / "envs" / name / "meshes").mkdir(parents=True)
        (own_folder / "envs" / name / "suite.toml").write_text('description = "Two pots."\n')
        (own_folder / "envs" / name / "meshes/pot.obj").write_text("v 0 0 0\n")
    (own_folder / "envs/robots").mkdir()
    (own_folder / "envs/robots/arm.xml").write_text("<mujoco/>")
    (own_folder / "pack").mkdir()
    (own_folder / "pack/__init__.py").write_text("from pack import parts\n")
    (own_folder / "pack/parts.py").write_text("X = 1\n")
    (own_folder / "pack/unused.py").write_text("Y = 1\n")
    (own_folder / "pack/anchor.py").write_text(
        "import numpy\nfrom vla_crl.continual.method import ContinualMethod\n"
        "class Anchor(ContinualMethod): ...\n"
    )
    return own_folder


def begin(path: Path, sources: Sources) -> RunDirectory:
    record = asdict(sources.record())
    return RunDirectory.create(path, Config(), seed=0, command=[], sources=[record])


def test_sources_are_the_loaded_modules_and_the_suite_with_its_parts(own: Path) -> None:
    sources = Sources.read([find_method("pack.anchor:Anchor")], "table@eef_pose")
    modules = {"pack/__init__.py", "pack/parts.py", "pack/anchor.py"}
    suite = {"envs/table/suite.toml", "envs/table/meshes/pot.obj", "envs/robots/arm.xml"}
    assert sources.sums.keys() == sources.content.keys() == modules | suite
    assert all(data == (own / name).read_bytes() for name, data in sources.content.items())


def test_a_suite_that_collects_others_brings_them_along(own: Path) -> None:
    (own / "envs/both").mkdir()
    tasks = 'tasks = [{ task = "table.lift" }, { task = "tabletop_goal.open_drawer" }]\n'
    (own / "envs/both/suite.toml").write_text(tasks)
    sources = Sources.read([SequentialFineTuning], "both")
    suites = {name.split("/")[1] for name in sources.sums}
    assert suites == {"both", "table", "robots"}


def test_nothing_of_ours_or_of_a_package_is_a_source(own: Path) -> None:
    assert Sources.read([SequentialFineTuning], "tabletop_goal").sums == {}


def test_a_method_outside_of_the_folders_is_kept_with_what_lies_beside_it(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLA_CRL_PATH")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    shutil.copytree(own / "pack", tmp_path / "lab/pack")
    (tmp_path / "lab/mine.py").write_text(
        "from pack.anchor import Anchor\nclass Firm(Anchor): ...\n"
    )
    names = {"mine.py", "pack/__init__.py", "pack/parts.py", "pack/anchor.py"}
    assert Sources.read([find_method("mine:Firm")], "tabletop_goal").sums.keys() == names


def test_other_classes_of_a_run_are_kept_too(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLA_CRL_PATH")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/mine.py").write_text("from vla_crl.algos.ppo import PPO\nclass My(PPO): ...\n")
    learner = find_learner("mine:My")
    sources = Sources.read([SequentialFineTuning, learner], "tabletop_goal")
    assert sources.sums.keys() == {"mine.py"}


def test_the_fingerprint_is_of_names_and_contents(own: Path) -> None:
    first = Sources.read([SequentialFineTuning], "table").record().fingerprint
    assert Sources.read([SequentialFineTuning], "table").record().fingerprint == first
    (own / "envs/robots/arm.xml").rename(own / "envs/robots/leg.xml")
    assert Sources.read([SequentialFineTuning], "table").record().fingerprint != first


def test_sources_that_were_not_copied_before_a_kill_are_copied_on_resuming(
    own: Path, tmp_path: Path
) -> None:
    sources = Sources.read([SequentialFineTuning], "table")
    run = begin(tmp_path / "run", sources)
    assert not (run.path / "sources").exists()
    for _ in range(2):
        sources.require(run, may_differ=False)
        sources.keep(run)
        assert (run.path / "sources/envs/robots/arm.xml").read_text() == "<mujoco/>"
    assert len(run.read_versions()["sources"]) == 1


def test_changed_sources_are_refused_and_on_request_kept_beside(own: Path, tmp_path: Path) -> None:
    began = Sources.read([SequentialFineTuning], "table")
    run = begin(tmp_path / "run", began)
    began.keep(run)
    for name in "abcd":
        (own / f"envs/table/{name}.xml").touch()
    (own / "envs/robots/arm.xml").unlink()
    now = Sources.read([SequentialFineTuning], "table")
    message = (
        "run: what it is made with has changed since it began: envs/robots/arm.xml, "
        "envs/table/a.xml, envs/table/b.xml and 2 more .as it was: .*/run/sources.. Put it back"
    )
    with pytest.raises(ConfigError, match=message):
        now.require(run, may_differ=False)
    now.require(run, may_differ=True)
    run.append_metrics({"stage": 2, "episodes": 3})
    now.keep(run)
    first, second = source_records(run.read_versions(), "versions.json")
    assert (first.folder, first.since_stage) == ("sources", 0)
    assert (second.folder, second.since_stage) == ("sources_2", 2)
    assert (run.path / "sources/envs/robots/arm.xml").exists()
    assert not (run.path / "sources_2/envs/robots/arm.xml").exists()
    now.require(run, may_differ=False)  # what the run goes on with
    with pytest.raises(ConfigError, match="as it was: .*/run/sources_2"):
        began.require(run, may_differ=False)


def test_sources_that_take_too_much_are_known_by_their_checksums(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vla_crl.runs.sources.MAX_BYTES", 1000)
    (own / "envs/table/pan.obj").write_bytes(bytes(5 * 2**20))
    os.symlink("/dev/zero", own / "envs/table/zeros")  # no file
    large = Sources.read([SequentialFineTuning], "table")
    assert "the files of suite 'table' take 5 MiB: the run keeps their checksums" in caplog.text
    run = begin(tmp_path / "run", large)
    large.keep(run)
    assert not (run.path / "sources").exists()
    (own / "envs/table/pan.obj").write_bytes(b"1")
    small = Sources.read([SequentialFineTuning], "table")
    with pytest.raises(ConfigError, match="since it began: envs/table/pan.obj .as it was"):
        small.require(run, may_differ=False)
    assert large.sums["envs/robots/arm.xml"] == small.sums["envs/robots/arm.xml"]


def test_a_record_that_is_none_is_refused_and_none_is_needed(own: Path, tmp_path: Path) -> None:
    sources = Sources.read([SequentialFineTuning], "table")
    run = begin(tmp_path / "run", sources)
    versions = run.read_versions()
    run.versions_file.write_text(json.dumps(versions | {"sources": [{"folder": 3}]}))
    message = r"versions.json:sources\[0\]: key 'fingerprint' of SourceRecord is missing"
    with pytest.raises(ConfigError, match=message):
        sources.require(run, may_differ=False)
    versions.pop("sources")  # of an older version
    run.versions_file.write_text(json.dumps(versions))
    sources.require(run, may_differ=False)
    sources.keep(run)
    assert not (run.path / "sources").exists()
