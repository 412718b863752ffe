"""Files of one's own: what is written is read, and what does not fit is told with its place."""

import tracemalloc
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.npz import save_demonstrations
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError
from vla_crl.rollout.demonstrations import Demonstrations, collect_demonstrations
from vla_crl.sim.backends import find_suite
from vla_crl.testing.fake_worlds import FakeSuite, fake_suite

PIXELS = 16
ROBOT = {"action": ["delta_x", "delta_y", "gripper"], "state": ["x", "y"], "cameras": ["top"]}
Arrays = dict[str, Any]


def suite_of(**settings: Any) -> FakeSuite:
    return fake_suite(**settings)


def read(path: Path, suite: Any = None, pixels: int = PIXELS, **settings: Any) -> Demonstrations:
    config = DatasetConfig(**settings)
    return read_demonstrations(path, config, suite or suite_of(), pixels=pixels)


def write(path: Path, arrays: Arrays, *, compressed: bool = True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.fixture
def arrays() -> Arrays:
    """Three episodes of 4, 2 and 3 steps, as somebody might record them."""
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (9, 1, PIXELS, PIXELS, 3), dtype=np.uint8),
        "states": rng.uniform(-1, 1, (9, 2)),
        "actions": np.where([False, False, True], -1.0, rng.uniform(-1, 1, (9, 3))),
        "instructions": ["reach the red square", "grab the red one", "reach the red square"],
        "episode_lengths": [4, 2, 3],
        "cameras": ROBOT["cameras"],
        "state_names": ROBOT["state"],
        "action_names": ROBOT["action"],
    }


@pytest.fixture
def collected() -> tuple[FakeSuite, Demonstrations]:
    suite = suite_of()
    return suite, collect_demonstrations(suite, 6, image_size=PIXELS)


def test_what_is_collected_is_read_back(collected, tmp_path, capsys):
    suite, demonstrations = collected
    save_demonstrations(demonstrations, suite, tmp_path / "new" / "mine.npz")
    found = read(tmp_path / "new" / "mine.npz", suite)
    for field in fields(Demonstrations):
        ours, theirs = getattr(found, field.name), getattr(demonstrations, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype, field.name
    assert isinstance(found.images, np.memmap)
    assert f"mine.npz: 6 demonstrations, {len(found)} steps" in capsys.readouterr().err


def test_a_file_is_not_overwritten(collected, tmp_path):
    (tmp_path / "taken.npz").write_text("precious")
    with pytest.raises(ConfigError, match="taken.npz exists; give another --output or remove it"):
        save_demonstrations(collected[1], collected[0], tmp_path / "taken.npz")
    assert (tmp_path / "taken.npz").read_text() == "precious"


def test_nothing_in_a_written_file_is_pickled(collected, tmp_path):
    save_demonstrations(collected[1], collected[0], tmp_path / "mine.npz")
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as file:
        assert not any(file[name].dtype.hasobject for name in file.files)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_written_by_hand_is_read(arrays, tmp_path, capsys, compressed):
    found = read(write(tmp_path / "mine.npz", arrays, compressed=compressed))
    assert found.instructions == ("reach the red square", "grab the red one")
    assert found.task.tolist() == [0] * 4 + [1] * 2 + [0] * 3
    assert found.episode_end.tolist() == [4] * 4 + [6] * 2 + [9] * 3
    np.testing.assert_array_equal(found.images, arrays["images"])
    np.testing.assert_array_equal(found.state, arrays["states"].astype(np.float32))
    np.testing.assert_array_equal(found.label, arrays["actions"].astype(np.float32))
    assert found.things == ()
    assert not found.has_grounding.any()
    told = capsys.readouterr().err
    assert "1 of 2 instructions are of no task of suite 'fake', such as 'grab the red one'" in told
    assert "no demonstration of 2 tasks of the suite, such as 'reach the green square'" in told


def test_what_is_read_again_comes_from_the_cache(arrays, tmp_path, cache, monkeypatch):
    path = write(tmp_path / "mine.npz", arrays)
    first = read(path)
    monkeypatch.setattr("vla_crl.datasets.reading.npz_episodes", pytest.fail)
    np.testing.assert_array_equal(read(path).images, first.images)
    assert len(list(cache.glob("*"))) == 1


def test_a_part_is_read_when_it_is_asked_for(arrays, tmp_path, capsys):
    path = write(tmp_path / "mine.npz", arrays)
    few = read(path, tasks=("reach_red",))
    assert few.instructions == ("reach the red square",)
    np.testing.assert_array_equal(few.images, arrays["images"][[0, 1, 2, 3, 6, 7, 8]])
    assert "left out are 1 demonstrations of 1 tasks" in capsys.readouterr().err
    assert len(read(path, episodes_per_task=1)) == 6
    with pytest.raises(ConfigError, match="dataset.tasks: unknown task .*Did you mean 'reach_red'"):
        read(path, tasks=("reach_rde",))
    with pytest.raises(ConfigError, match="unknown task of suite 'fake' in dataset.tasks 'reach t"):
        read(path, tasks=("reach_blue",))


def test_larger_pictures_become_what_the_policy_looks_at(arrays, tmp_path, capsys):
    from vla_crl.sim.libero.drawing import resized

    found = read(write(tmp_path / "mine.npz", arrays), pixels=8)
    np.testing.assert_array_equal(found.images, resized(arrays["images"], 8))
    assert "images of 16 pixels become 8 x 8" in capsys.readouterr().err


def test_failures_and_what_is_not_read_are_told(arrays, tmp_path, capsys):
    arrays |= {"success": [True, False, False], "forces": np.zeros(9)}
    found = read(write(tmp_path / "mine.npz", arrays))
    assert found.episode_success.tolist() == [True, False, False]
    told = capsys.readouterr().err
    assert "mine.npz: 3 demonstrations (2 of them failures, learnt as all others), 9 steps" in told
    assert "mine.npz: not read are forces" in told


def test_places_of_things_are_those_of_the_file(arrays, tmp_path):
    rng = np.random.default_rng(1)
    arrays |= {
        "things": ["cup", "red square"],
        "object_uv": rng.uniform(0, 1, (9, 1, 2, 2)).astype(np.float32),
        "object_visible": rng.uniform(0, 1, (9, 1, 2)) < 0.5,
        "named": np.tile([1, -1], (9, 1)),
    }
    found = read(write(tmp_path / "mine.npz", arrays))
    assert found.things == ("cup", "red square")
    assert found.has_grounding.all()
    for name in ("object_uv", "object_visible", "named"):
        np.testing.assert_array_equal(getattr(found, name), arrays[name])


def without(name: str):
    return lambda arrays: arrays.pop(name)


def put(name: str, index: Any, value: Any):
    def change(arrays: Arrays) -> None:
        array = np.array(arrays[name])
        array[index] = value
        arrays[name] = array

    return change


def replaced(name: str, make: Any):
    return lambda arrays: arrays.update({name: make(np.array(arrays.get(name)))})


LABELS = {
    "things": ["cup"],
    "object_uv": np.full((9, 1, 1, 2), 0.5),
    "object_visible": np.ones((9, 1, 1), bool),
    "named": np.zeros((9, 2), int),
}


def labelled(**changes: Any):
    return lambda arrays: arrays.update(LABELS | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("states"), "has no array 'states' but action_names, .*; expected cameras, state_"),
        (without("action_names"), "has no array 'action_names' but actions, cameras"),
        (replaced("images", lambda a: a / 255), r"images is float64 \[9, 1, 16, 16, 3\], expected "
         r"uint8 \[S, 1, H, H, 3\]"),
        (replaced("images", lambda a: a[:, :, :8]), r"images is uint8 \[9, 1, 8, 16, 3\], expect"),
        (replaced("images", lambda a: a[:, [0, 0]]), r"images is uint8 \[9, 2, 16, 16, 3\], exp"),
        (replaced("images", np.asfortranarray), "images are in Fortran's order, expected C's; np."),
        (replaced("images", lambda a: a[:, :, :8, :8]), "images of 8 pixels, but the policy looks "
         "at 16; collect them with --image-size 16, or give the policy an image_size of at most 8"),
        (replaced("states", lambda a: a[:8]), r"states is float64 \[8, 2\], expected num"),
        (replaced("states", lambda a: a[:, :1]), r"states is float64 \[9, 1\], expected numbers"),
        (replaced("states", lambda a: a.astype(str)), r"states is <U\d+ \[9, 2\], expected number"),
        (put("states", (5, 1), np.nan), r"episode 1: states\[1, 1\] is nan, expected a finite"),
        (put("states", (5, 1), 1e300), r"episode 1: states\[1, 1\] is 1e\+300, expected a finite"),
        (put("actions", (8, 0), np.inf), r"episode 2: actions\[2, 0\] is inf, expected a finite"),
        (put("actions", (8, 0), 1.5), r"episode 2: actions\[2, 0\] is 1.5, expected -1 to 1: the"),
        (put("actions", (6, 2), 0.0), r"episode 2: actions\[0, 2\] is 0, but of 'gripper' only the "
         "sign counts; expected below 0 or above it, -1 opens a gripper and 1 closes it"),
        (replaced("actions", lambda a: a.astype(complex)), "actions is complex128 .*expected numb"),
        (put("instructions", 1, "  "), r"instructions\[1\] is '  ', expected words"),
        (put("instructions", 1, "a\nb"), r"instructions\[1\] is 'a\\nb', expected words"),
        (replaced("instructions", lambda a: np.array(["x" * 201] * 3)), r".*\[0\] has 201 char"),
        (replaced("instructions", lambda a: a.astype(object)), r"instructions is object \[3\], "
         r"expected strings \[E\]; make it with np.array\(..., dtype=str\)"),
        (replaced("instructions", lambda a: a.astype("S")), r"instructions is \|S\d+ \[3\], ex"),
        (replaced("episode_lengths", lambda a: a[:2]), r"episode_lengths is int64 \[2\], expected "
         r"whole numbers \[3\]"),
        (put("episode_lengths", 0, 3), "episode_lengths add up to 8 steps, but images has 9"),
        (replaced("episode_lengths", lambda a: [9, 0, 0]), r"episode_lengths\[1\] is 0, expec"),
        (replaced("episode_lengths", lambda a: [11, -2, 0]), r"episode_lengths\[1\] is -2, expect"),
        (replaced("episode_lengths", lambda a: a * 1.0), "episode_lengths is float64 .*whole num"),
        (replaced("cameras", lambda a: ["front"]), r"cameras\[0\] is 'front', but that of suite 'fa"
         r"ke' is 'top'; it has top. Name the suite or controller \(SUITE@CONTROLLER\)"),
        (replaced("action_names", lambda a: [*a, "more"]), r"action_names\[3\] is 'more', but that "
         "of suite 'fake' is missing"),
        (replaced("state_names", lambda a: a[::-1]), r"state_names\[0\] is 'y', but that of suite"),
        (replaced("pictures", lambda a: "turned"), "its pictures are 'turned', but those of suite"),
        (replaced("success", lambda a: [1, 1, 0]), r"success is int64 \[3\], expected bool \[3\]"),
        (replaced("things", lambda a: ["cup"]), "has no array 'object_uv' but .*; where things a"),
        (labelled(named=np.ones((9, 2), int)), r"episode 0: named\[0, 0\] is 1, expected the num"),
        (labelled(object_uv=np.full((9, 1, 1, 2), 1.5)), r"episode 0: object_uv\[0, 0, 0, 0\] is"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(arrays, tmp_path, cache, change, message):
    change(arrays)
    path = write(tmp_path / "mine.npz", arrays)
    with pytest.raises(ConfigError, match=f"mine.npz: {message}"):
        read(path)
    assert not list(cache.glob("[!.]*"))


def test_things_are_named_once(arrays, tmp_path):
    arrays |= {
        "things": ["cup", "cup"],
        "object_uv": np.zeros((9, 1, 2, 2)),
        "object_visible": np.zeros((9, 1, 2), bool),
        "named": np.zeros((9, 2), int),
    }
    with pytest.raises(ConfigError, match=r"things are \['cup', 'cup'\], expected each once"):
        read(write(tmp_path / "mine.npz", arrays))


def test_a_file_without_episodes_is_told(arrays, tmp_path):
    for name in ("images", "states", "actions", "instructions", "episode_lengths"):
        arrays[name] = np.array(arrays[name])[:0]
    with pytest.raises(ConfigError, match="mine.npz: no episode in it"):
        read(write(tmp_path / "mine.npz", arrays))


@pytest.mark.parametrize("controller", ["eef_position", "joint_position"])
def test_another_controller_of_the_robot_is_told(arrays, tmp_path, controller):
    robot = find_suite("tabletop_goal").embodiment
    arrays |= {
        "cameras": robot.cameras,
        "state_names": robot.state,
        "action_names": robot.action,
    }
    message = r"mine.npz: (state|action)_names\[\d\] is .* of suite 'tabletop_goal@\w+' is .*SUITE@"
    with pytest.raises(ConfigError, match=message):
        read(
            write(tmp_path / "mine.npz", arrays),
            find_suite(f"tabletop_goal@{controller}"),
        )


@pytest.mark.parametrize("kept", [0, 1, 30, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_torn_file_is_told(arrays, tmp_path, kept, compressed):
    path = write(tmp_path / "mine.npz", arrays, compressed=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ConfigError, match="mine.npz: not a whole file of numpy arrays .*again"):
        read(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_byte_among_the_pictures_is_told(arrays, tmp_path, cache, compressed):
    path = write(tmp_path / "mine.npz", arrays, compressed=compressed)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        middle = archive.getinfo("images.npy").header_offset + 3000
    content[middle] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="mine.npz: not a whole file of numpy arrays .*again"):
        read(path)
    assert not list(cache.glob("[!.]*"))


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04cut"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="mine.npz: not a whole file of numpy arrays"):
        read(tmp_path / "mine.npz")


def test_an_array_that_claims_to_be_larger_than_its_file_is_told(arrays, tmp_path):
    path = write(tmp_path / "mine.npz", arrays, compressed=False)
    content = path.read_bytes()
    for old, new in ((b"(9, 1, 16, 16, 3)", b"(9, 1, 96, 96, 3)"), (b"(9, 2)", b"(9, 3)")):
        (tmp_path / "lies.npz").write_bytes(content.replace(old, new))
        with pytest.raises(ConfigError, match=r"images is damaged|states is .*9, 3|not a whole"):
            read(tmp_path / "lies.npz")


def test_pictures_are_never_held_all_at_once(arrays, tmp_path):
    steps, size = 1500, 64
    arrays |= {
        "images": np.zeros((steps, 1, size, size, 3), np.uint8),  # 18 MB
        "states": np.zeros((steps, 2)),
        "actions": np.full((steps, 3), -1.0),
        "instructions": ["reach the red square"] * 30,
        "episode_lengths": [50] * 30,
    }
    path = write(tmp_path / "mine.npz", arrays)
    read(write(tmp_path / "small.npz", {**arrays}), pixels=8)  # what is imported on the way
    tracemalloc.start()
    try:
        read(path, pixels=64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.25 * arrays["images"].nbytes
