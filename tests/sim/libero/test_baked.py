"""The cache of baked tasks: damage is found, what is missing is said, nothing is left half."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.libero import bake, baked, mjcf
from vla_crl.sim.libero.baked import (
    check_files,
    load_task,
    load_train_states,
    task_folder,
    train_states_folder,
)

KEY = "turn_on_the_stove"


@pytest.fixture(scope="module")
def whole(libero_cache: Path) -> Path:
    """A baked task."""
    bake.bake_tasks([("libero_goal", KEY)])
    return task_folder("libero_goal", KEY)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "task"))


def test_the_manifest_tells_versions_and_checksums(whole):
    manifest = json.loads((whole / baked.MANIFEST).read_text())
    assert manifest["versions"]["robosuite"] == "1.4.0"
    assert set(manifest["files"]) == {baked.PHYSICS, baked.DRAWN, baked.TASK, baked.STATES}
    assert manifest["format"] == baked.FORMAT
    assert load_task("libero_goal", KEY).about["goal"] == [
        {
            "kind": "any_joint",
            "joints": ["flat_stove_1_button"],
            "comparison": "from_on",
            "threshold": 0.5,
        }
    ]
    with np.load(whole / baked.STATES, allow_pickle=False) as states:
        assert states["test"].shape[0] == 50
        # The same fixtures in every state but from one reset to the next.
        assert np.ptp(states["fixtures seed 7"], axis=0)[:, :2].max() < 0.03


def test_nothing_is_baked_twice(whole, monkeypatch):
    monkeypatch.setattr(bake, "import_libero", lambda: pytest.fail("it is there"))
    bake.bake_tasks([("libero_goal", KEY)])


def test_training_states_are_sampled_beside_the_task_and_checked(whole, monkeypatch):
    bake.bake_train_states([("libero_goal", KEY, 2)])
    sampled = load_train_states("libero_goal", KEY, 2)
    assert sampled["states"].shape == (2, load_task("libero_goal", KEY).states["test"].shape[1])
    assert sampled["fixtures"].shape[::2] == (2, 7)
    monkeypatch.setattr(bake, "import_libero", lambda: pytest.fail("they are there"))
    bake.bake_train_states([("libero_goal", KEY, 2)])
    folder = train_states_folder("libero_goal", KEY, 2)
    content = (folder / baked.STATES).read_bytes()
    (folder / baked.STATES).write_bytes(content + b" ")
    try:
        with pytest.raises(ConfigError, match="states.npz: its checksum is"):
            check_files(folder)
    finally:
        (folder / baked.STATES).write_bytes(content)


def test_two_lanes_that_need_the_same_states_sample_them_once(whole, monkeypatch):
    runs, run = [], subprocess.run
    monkeypatch.setattr(
        bake.subprocess, "run", lambda command, **how: runs.append(command) or run(command, **how)
    )
    with ThreadPoolExecutor(2) as lanes:
        jobs = [lanes.submit(bake.bake_train_states, [("libero_goal", KEY, 1)]) for _ in range(2)]
        for job in jobs:
            job.result()
    assert len(runs) == 1
    assert len(load_train_states("libero_goal", KEY, 1)["states"]) == 1


def test_a_changed_file_is_told_with_what_to_delete(copied):
    with (copied / baked.PHYSICS).open("a") as file:
        file.write(" ")
    with pytest.raises(ConfigError, match=f"physics.xml: its checksum is .*; delete {copied}, and"):
        check_files(copied)


def test_a_missing_file_is_told_with_what_to_delete(copied):
    (copied / baked.STATES).unlink()
    with pytest.raises(ConfigError, match="what was baked is damaged .*delete the folder"):
        check_files(copied)


def test_a_changed_mesh_is_told_with_what_to_delete(whole, monkeypatch, tmp_path):
    assets = Path(shutil.copytree(baked.assets_folder(), tmp_path / "assets"))
    monkeypatch.setattr(baked, "assets_folder", lambda: assets)
    task = load_task("libero_goal", KEY)
    assert task.compile(baked.PHYSICS).nq
    meshes = json.loads((whole / baked.MANIFEST).read_text())["assets"][baked.PHYSICS]
    (assets / meshes[0]).write_bytes(b"no mesh")
    with pytest.raises(ConfigError, match=f"its checksum is not its name; delete {whole}, and"):
        task.compile(baked.PHYSICS)
    (assets / meshes[0]).unlink()
    message = f"a mesh or texture of LIBERO is missing .No such file.*; delete {whole}, and"
    with pytest.raises(ConfigError, match=message):
        task.compile(baked.PHYSICS)


def test_a_task_that_is_baked_again_mends_its_meshes_and_no_other_task(
    whole, libero_cache, monkeypatch, tmp_path
):
    others = [path for path in baked.libero_cache().rglob("manifest.json") if path.parent != whole]
    shutil.copytree(libero_cache.parent, tmp_path / "vla_crl", symlinks=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = task_folder("libero_goal", KEY)
    names = json.loads((folder / baked.MANIFEST).read_text())["assets"][baked.PHYSICS]
    damaged, missing = (baked.assets_folder() / name for name in names[:2])
    damaged.write_bytes(b"no mesh")
    missing.unlink()
    shutil.rmtree(folder)  # as the error messages say
    bake.bake_tasks([("libero_goal", KEY)])
    check_files(folder)
    assert baked.BakedTask(folder, {}).compile(baked.PHYSICS).nq
    for kept in others:
        check_files(tmp_path / kept.relative_to(libero_cache.parent.parent).parent)


def test_what_cannot_be_baked_is_told_in_a_line_and_leaves_nothing(libero_cache):
    with pytest.raises(ConfigError, match="baking LIBERO: libero_goal 'sing': .*no task 'sing'"):
        bake.bake_tasks([("libero_goal", "sing")])
    folder = task_folder("libero_goal", "sing")
    assert not folder.exists()
    assert not list(folder.parent.glob(".*"))


def test_a_model_that_moves_otherwise_is_no_stripped_one(whole):
    task = load_task("libero_goal", KEY)
    one, other = (task.compile(baked.PHYSICS) for _ in range(2))
    mjcf.require_same_physics(one, other)
    other.geom_friction[-1, 0] *= 1.01
    with pytest.raises(ConfigError, match="differs from the whole: geom_friction"):
        mjcf.require_same_physics(one, other)
    other.geom_friction[:] = one.geom_friction
    other.opt.timestep = 0.004
    with pytest.raises(ConfigError, match="differs from the whole: timestep"):
        mjcf.require_same_physics(one, other)


def test_a_scene_that_is_too_large_is_refused(whole, monkeypatch):
    task = load_task("libero_goal", KEY)
    monkeypatch.setattr(baked, "MAX_BODIES", 5)
    with pytest.raises(ConfigError, match="here: the scene has 38 bodies, expected at most 5"):
        baked.require_room(task.physics, 3, "here")
