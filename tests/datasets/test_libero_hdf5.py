"""LIBERO's HDF5 files: pictures, states, pairing with actions, and what is refused."""

import sys
from collections.abc import Callable
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
SECOND = "pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate"
DEMO = "data/demo_0"


def read(path: Path, suite: str = "libero_spatial", **settings: Any) -> Demonstrations:
    pixels = settings.pop("pixels", PIXELS)
    config = DatasetConfig(**settings)
    return read_demonstrations(path, config, find_suite(suite), pixels=pixels)


def replace(file: Any, key: str, values: np.ndarray) -> None:
    del file[key]
    file[key] = values


def test_what_libero_records_after_an_action_goes_with_the_next_one(write_hdf5, steps_of):
    demonstrations = read(write_hdf5(lengths=(4, 3)))
    assert demonstrations.episode_end.tolist() == [3, 3, 3, 5, 5]
    for rows, episode, length in ((slice(0, 3), 0, 4), (slice(3, 5), 1, 3)):
        images, state, actions = (array[1:] for array in steps_of(episode, length))
        np.testing.assert_array_equal(demonstrations.images[rows], images)
        np.testing.assert_allclose(demonstrations.state[rows], state, rtol=1e-6)
        np.testing.assert_allclose(demonstrations.label[rows], actions, rtol=1e-6)


def test_what_openvla_records_before_an_action_goes_with_it(write_hdf5, steps_of):
    demonstrations = read(write_hdf5(lengths=(4, 3), observes="before"))
    images, state, actions = steps_of(1, 3)
    np.testing.assert_array_equal(demonstrations.images[4:], images)
    np.testing.assert_allclose(demonstrations.state[4:], state, rtol=1e-6)
    np.testing.assert_allclose(demonstrations.label[4:], actions, rtol=1e-6)


@pytest.mark.parametrize(
    ("stored", "settings"),
    [
        ({"view": "upright", "convention": "opencv"}, {}),
        ({"view": "upright"}, {"view": "upright"}),
        ({"view": "rotated", "convention": "by hand"}, {"view": "rotated"}),
    ],
)
def test_pictures_are_turned_upright_however_they_are_stored(
    write_hdf5, steps_of, stored, settings
):
    demonstrations = read(write_hdf5(observes="after", **stored), **settings)
    np.testing.assert_array_equal(demonstrations.images[:3], steps_of(0, 4)[0][1:])


def test_protocols_whose_policies_see_turned_pictures_are_served(write_hdf5, steps_of):
    demonstrations = read(write_hdf5(), suite="libero_spatial@openpi")
    np.testing.assert_array_equal(demonstrations.images[:3], steps_of(0, 4)[0][1:, :, :, ::-1])


def test_pictures_are_resized_as_those_of_an_evaluation(write_hdf5, steps_of):
    from vla_crl.sim.libero.drawing import resized

    demonstrations = read(write_hdf5(), pixels=48)
    np.testing.assert_array_equal(demonstrations.images[:3], resized(steps_of(0, 4)[0][1:], 48))


def test_each_file_is_of_the_task_of_its_name_and_episodes_are_in_order(write_hdf5):
    write_hdf5(task=SECOND, lengths=(3,))
    folder = write_hdf5(lengths=(3,) * 11, observes="before").parent
    demonstrations = read(folder)
    assert demonstrations.task.tolist() == [0] * 33 + [1] * 2
    assert demonstrations.state[:33:3, 0].tolist() == list(range(11))  # not demo_10 before demo_2


def test_a_part_is_read_when_it_is_asked_for(write_hdf5, capsys):
    write_hdf5(task=SECOND, lengths=(3, 3, 3))
    folder = write_hdf5(lengths=(3,)).parent
    few = read(folder, tasks=(SECOND,), episodes_per_task=2)
    assert few.task.tolist() == [0] * 4
    assert few.instructions == (SECOND.replace("_", " "),)
    assert "left out are 1 demonstrations of 1 tasks" in capsys.readouterr().err
    assert len(read(folder, episodes_per_task=1)) == 4
    told = capsys.readouterr().err
    assert "no demonstration of 8 tasks of the suite, such as 'pick_up_the_black_bowl_from" in told


def test_nothing_says_where_things_are(write_hdf5):
    demonstrations = read(write_hdf5())
    assert demonstrations.things == ()
    assert demonstrations.object_uv.shape == (5, 2, 0, 2)
    assert not demonstrations.has_grounding.any()
    assert not demonstrations.object_visible.any()
    assert (demonstrations.named == -1).all()


def test_a_gripper_that_opens_at_one_is_turned_round(write_hdf5, edit, steps_of):
    path = write_hdf5(lengths=(4,))
    with edit(path) as file:
        closes = file[f"{DEMO}/actions"][:, 6]
        file[f"{DEMO}/actions"][:, 6] = (1.0 - closes) / 2.0
    with pytest.raises(ConfigError, match="never opened .* closes at 1; .* give gripper 'opens'"):
        read(path)
    labels = read(path, gripper="opens").label
    np.testing.assert_allclose(labels, steps_of(0, 4)[2][1:], rtol=1e-6)


def test_a_gripper_that_closes_at_one_is_not_said_to_open(write_hdf5):
    message = r"demo_0: gripper numbers from -1 to 1, expected 0 \(closed\) to 1 \(open\)"
    with pytest.raises(ConfigError, match=message):
        read(write_hdf5(), gripper="opens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[DEMO].__delitem__("actions"), r"data/demo_0: has no 'actions' but .*states"),
        (lambda f: f.__delitem__("data"), r"_demo.hdf5: has no 'data' but nothing; expected LIB"),
        (lambda f: f[f"{DEMO}/obs"].__delitem__("ee_ori"), r"demo_0: has no 'obs/ee_ori'"),
        (
            lambda f: [f["data"].__delitem__(n) for n in ("demo_0", "demo_1")],
            "no demonstration in it, expected LIBERO's layout",
        ),
        (
            lambda f: replace(f, f"{DEMO}/obs/ee_pos", np.zeros((3, 3))),
            "demo_0: 3 rows of obs/ee_pos, but 4 actions",
        ),
        (
            lambda f: replace(f, f"{DEMO}/obs/ee_pos", np.zeros((4, 2))),
            r"demo_0: states of shape \(4, 7\), expected \(4, 8\)",
        ),
        (
            lambda f: f[f"{DEMO}/actions"].__setitem__((2, 1), np.nan),
            r"demo_0: actions\[2, 1\] is nan, expected a finite number",
        ),
        (
            lambda f: f[f"{DEMO}/obs/ee_pos"].__setitem__((1, 0), np.inf),
            r"demo_0: states\[1, 0\] is inf",
        ),
        (
            lambda f: f[f"{DEMO}/actions"].__setitem__((2, 1), 1.25),
            r"actions\[2, 1\] is 1.25, expected -1 to 1: the suite's own commands, neither",
        ),
        (
            lambda f: replace(f, f"{DEMO}/obs/agentview_rgb", np.zeros((4, 64, 64, 3))),
            r"a picture of float64 \(64, 64, 3\), expected uint8 and square",
        ),
        (
            lambda f: replace(f, f"{DEMO}/obs/agentview_rgb", np.zeros((4, 64, 80, 3), np.uint8)),
            r"a picture of uint8 \(64, 80, 3\), expected uint8 and square",
        ),
        (
            lambda f: f[DEMO].__delitem__("states"),
            "without states and obs/joint_states .* give seen 'before' or 'after'",
        ),
        (
            lambda f: replace(f, f"{DEMO}/states", np.zeros((3, 9))),
            "demo_0: 4 obs/joint_states, but 3 states",
        ),
        (
            lambda f: replace(f, f"{DEMO}/obs/joint_states", np.ones((4, 7))),
            "the arm stands still, .* give seen 'before' or 'after'",
        ),
        (
            lambda f: f["data"].attrs.__setitem__("macros_image_convention", "pil"),
            "its pictures are 'pil', expected opengl or opencv; give view",
        ),
    ],
)
def test_files_that_are_not_as_liberos_are_refused(
    write_hdf5, edit, cache, change: Callable[[Any], object], message: str
):
    path = write_hdf5()
    with edit(path) as file:
        change(file)
    with pytest.raises(ConfigError, match=message):
        read(path)
    assert not any(cache.glob("*")), "nothing is kept of what failed"


def test_who_says_when_things_are_seen_needs_no_states(write_hdf5, edit):
    path = write_hdf5(lengths=(4,))
    with edit(path) as file:
        del file[f"{DEMO}/states"]
    assert len(read(path, seen="after")) == 3
    assert len(read(path, seen="before")) == 4


@pytest.mark.parametrize("size", [0, 100, 30_000])
def test_a_damaged_file_is_told(write_hdf5, size: int):
    path = write_hdf5()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=r"_demo.hdf5: not a whole HDF5 file .*download it again"):
        read(path)


def test_pictures_smaller_than_those_of_the_policy_are_refused(write_hdf5):
    with pytest.raises(
        ConfigError, match="pictures of 64 pixels, but the policy looks at 96; give"
    ):
        read(write_hdf5(), pixels=96)


def test_a_task_of_another_suite_is_told_with_the_nearest(write_hdf5):
    path = write_hdf5(task="pick_up_the_black_bowl_on_the_stoves_and_place_it_on_the_plate")
    message = "unknown task of suite 'libero_spatial' .*stoves.* Did you mean 'pick.*on_the_stove_"
    with pytest.raises(ConfigError, match=message):
        read(path)
    with pytest.raises(ConfigError, match="unknown task .* in dataset.tasks"):
        read(write_hdf5(), tasks=(SECOND,))


def test_a_missing_package_is_told_with_the_command(write_hdf5, monkeypatch):
    path = write_hdf5()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        ConfigError, match=r"the package h5py: pip install --editable '.\[datasets\]'"
    ):
        read(path)
