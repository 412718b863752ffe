"""LeRobot folders of LIBERO in all layouts, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.sim.backends import find_suite

PIXELS = 64
LOSSY = 12
"""By how much a coded frame may differ on average; turned ones differ by more than 60."""
LEROBOT = ("observation.images.image", "observation.images.image2")
UNCLEAR = ("observation.images.image", "observation.images.wrist_image")


def read(path: Path, suite: str = "libero_spatial", **settings: Any) -> Demonstrations:
    config = DatasetConfig(**settings)
    return read_demonstrations(path, config, find_suite(suite), pixels=PIXELS)


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("codec", [None, "libx264", "libsvtav1"])
@pytest.mark.parametrize(
    ("version", "cameras"),
    [("v2.0", ("image", "wrist_image")), ("v2.1", LEROBOT), ("v3.0", LEROBOT)],
)
def test_every_layout_gives_the_steps_that_were_recorded(
    write_lerobot, steps_of, version: str, cameras: tuple[str, str], codec: str | None
):
    import av

    if codec and codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    demonstrations = read(write_lerobot(version=version, cameras=cameras, codec=codec))
    assert demonstrations.task.tolist() == [0] * 4 + [1] * 5 + [0] * 6
    assert demonstrations.episode_end.tolist() == [4] * 4 + [9] * 5 + [15] * 6
    assert demonstrations.state.dtype == demonstrations.label.dtype == np.float32
    for episode, rows in enumerate((slice(0, 4), slice(4, 9), slice(9, 15))):
        images, state, actions = steps_of(episode, 4 + episode)
        np.testing.assert_allclose(demonstrations.state[rows], state, rtol=1e-6)
        np.testing.assert_allclose(demonstrations.label[rows], actions, rtol=1e-6)
        difference = np.abs(demonstrations.images[rows].astype(int) - images)
        assert difference.mean(axis=(2, 3, 4)).max() <= (LOSSY if codec else 0)
        mirrored = np.abs(demonstrations.images[rows].astype(int) - images[:, :, :, ::-1])
        assert mirrored.mean() > LOSSY


def test_protocols_of_turned_pictures_get_them_as_they_are_stored(write_lerobot, steps_of):
    demonstrations = read(write_lerobot(), suite="libero_spatial@openpi")
    np.testing.assert_array_equal(demonstrations.images[:4], steps_of(0, 4)[0][:, :, :, ::-1])


@pytest.mark.parametrize("view", ["raw", "upright"])
def test_pictures_stored_otherwise_are_read_when_it_is_said(write_lerobot, steps_of, view: str):
    demonstrations = read(write_lerobot(view=view), view=view)
    np.testing.assert_array_equal(demonstrations.images[:4], steps_of(0, 4)[0])


def test_of_conversions_that_differ_it_must_be_said_what_they_mean(write_lerobot, capsys):
    folder = write_lerobot(cameras=UNCLEAR)
    with pytest.raises(ConfigError, match="cameras .*wrist_image differ .*; give view and gripper"):
        read(folder)
    with pytest.raises(ConfigError, match="; give gripper$"):
        read(folder, view="rotated")
    assert len(read(folder, view="rotated", gripper="closes")) == 15
    told = capsys.readouterr().err
    assert "pictures are 'rotated', the gripper closes at 1, a step is seen before its acti" in told
    assert len(read(folder, view="rotated", gripper="closes", seen="after")) == 12


def test_a_part_is_read_when_it_is_asked_for(write_lerobot, capsys):
    folder = write_lerobot()
    assert len(read(folder, episodes_per_task=1)) == 9
    second = "pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate"
    few = read(folder, tasks=(second,))
    assert few.task.tolist() == [0] * 5
    assert few.instructions == (second.replace("_", " "),)
    assert "left out are 2 demonstrations of 1 tasks" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="unknown task of suite 'libero_object' 'pick up the bla"):
        read(folder, suite="libero_object")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"codebase_version": "v1.6"}, "version 'v1.6', expected v2.0, v2.1, v3.0; convert it"),
        (
            {"features": None},
            "info.json: not LeRobot's: features = None .NoneType., exp",
        ),
        ({"fps": 0}, "info.json: not LeRobot's: fps = 0.0, expected more than 0"),
        ({"features": {"image": {}}}, "features are image; expected the cameras of a conversion"),
        (
            {"features": {"image": {}, "wrist_image": {}, "state": {}}},
            "features are image, wrist_image, state; expected actions or action",
        ),
        ({"data_path": "data/{chunk}"}, "data_path of episode 0: KeyError: 'chunk'"),
        ({"data_path": None}, "data_path = None .NoneType., expected str"),
        ({"data_path": "data/none.parquet"}, "none.parquet: cannot be read .No such file"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(write_lerobot, entries, message: str):
    folder = write_lerobot()
    change(folder / "meta" / "info.json", **entries)
    with pytest.raises(ConfigError, match=message):
        read(folder)


def test_files_of_which_a_part_is_missing_are_told(write_lerobot):
    folder = write_lerobot()
    (folder / "meta" / "info.json").write_text("{")
    with pytest.raises(ConfigError, match="info.json: not JSON: Expecting"):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"episode_index": 0, "tasks": ["one"]},
            "episode 0: key 'length' of Episode is missing",
        ),
        ({"episode_index": 0, "tasks": [], "length": 4}, r"episode 0 has the tasks \[\], expected"),
        ("{", "episodes.jsonl:1: not JSON: Expecting"),
    ],
)
def test_a_list_of_episodes_that_is_no_list_is_told(write_lerobot, line: Any, message: str):
    folder = write_lerobot()
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "meta" / "episodes.jsonl").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        read(folder)


def test_a_folder_of_version_3_without_episodes_is_told(write_lerobot):
    folder = write_lerobot(version="v3.0")
    (folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").unlink()
    with pytest.raises(ConfigError, match="meta/episodes: no parquet file in it, expected some"):
        read(folder)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_damaged_parquet_file_is_told(write_lerobot, size: int):
    folder = write_lerobot(version="v3.0")
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigError, match="file-000.parquet: not a whole parquet file .*again"):
        read(folder)


def edited(folder: Path, edit: Any) -> None:
    from pyarrow import parquet

    file = folder / "data" / "chunk-000" / "episode_000000.parquet"
    parquet.write_table(edit(parquet.read_table(file)), file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop_columns(["state"]), "has no column state but actions,"),
        (lambda t: t.slice(1), "3 steps of episode 0, expected 4; download it again"),
        (
            lambda t: t.set_column(0, "state", [[[0.0] * 8] * 3 + [[0.0]]]),
            "episode 0: state: expected equally many numbers in each step",
        ),
        (
            lambda t: t.set_column(0, "state", [[[0.0] * 7] * 4]),
            r"episode 0: states of shape \(4, 7\), expected \(4, 8\)",
        ),
        (
            lambda t: t.set_column(7, "image", [[{"bytes": b"\x89PNG", "path": ""}] * 4]),
            "episode 0: image: the picture of step 0 is damaged .*expected the bytes of a PNG",
        ),
        (
            lambda t: t.set_column(7, "image", [[{"bytes": None, "path": "elsewhere"}] * 4]),
            r"picture of step 0 is damaged \(UnidentifiedImageError\)",
        ),
    ],
)
def test_columns_that_are_not_as_described_are_told(write_lerobot, edit, message: str):
    folder = write_lerobot()
    edited(folder, edit)
    with pytest.raises(ConfigError, match=message):
        read(folder)


def test_videos_that_are_damaged_or_too_short_are_told(write_lerobot):
    folder = write_lerobot(version="v3.0", cameras=LEROBOT, codec="libx264")
    file = folder / "videos" / LEROBOT[1] / "chunk-000" / "file-000.mp4"
    whole = file.read_bytes()
    file.write_bytes((folder / "videos" / LEROBOT[1] / "chunk-000" / "file-001.mp4").read_bytes())
    message = r"file-000.mp4: 2 frames from second 0.4 on, expected 5, 10 a second; download it aga"
    with pytest.raises(ConfigError, match=message):
        read(folder)
    file.write_bytes(whole[:200])
    with pytest.raises(ConfigError, match="file-000.mp4: not a whole video .*download it again"):
        read(folder)


def test_a_missing_package_is_told_with_the_command(write_lerobot, monkeypatch):
    folder = write_lerobot()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"the package pyarrow: pip install --editable '.\[datasets\]'"
    with pytest.raises(ConfigError, match=message):
        read(folder)
