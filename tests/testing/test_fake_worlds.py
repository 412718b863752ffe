"""Fake worlds: robots of any channels, pictures that show what labels say, a solvable toy."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import Embodiment
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.backends import expert_of, find_suite, simulate, task_horizons
from vla_crl.sim.grounding import ground
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import Filmed, Grounded, Resumable, Simulation, require
from vla_crl.sim.variation import VariationConfig
from vla_crl.testing import Limited, check_suite, fake_suite
from vla_crl.testing.fake_sim import RGB, FakeExpert, FakeSim

ROBOTS = {
    "four actions, three state numbers, one camera": Embodiment(
        action=("delta_x", "delta_y", "delta_z", "gripper"), state=("x", "y", "z"), cameras=("top",)
    ),
    "the gripper first, three cameras": Embodiment(
        action=("gripper", "left_wheel", "right_wheel"),
        state=("left", "right", "battery", "clock", "heat"),
        cameras=("front", "back", "top"),
    ),
    "nothing binary": Embodiment(
        action=("a", "b"), state=("a", "b"), cameras=("1", "2"), binary=()
    ),
}


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
def test_a_robot_of_any_channels_has_a_suite_that_can_be_trained_on(robot: Embodiment):
    assert check_suite(fake_suite(embodiment=robot, heldout=("blue", "yellow"))) == ()


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
@pytest.mark.parametrize("size", [16, 96])
def test_every_camera_shows_squares_where_labels_say(robot: Embodiment, size: int):
    suite, slots = fake_suite(embodiment=robot), np.arange(8)
    with closing(simulate(suite, 8, image_size=size)) as sim:
        sim.reset(slots, tasks=slots % 3, state_ids=slots)
        images = sim.observe().validate(robot).images
        labels = ground(require(sim, Grounded, "labelled"), slots)
        assert labels.visible.all()
        for thing, colour in enumerate(suite.config.colours):
            is_square = (images == np.array(RGB[colour], np.uint8)).all(axis=-1)
            for slot, camera in np.ndindex(8, len(robot.cameras)):
                places = np.argwhere(is_square[slot, camera]) + 0.5
                middle = places.mean(axis=0)[::-1] / size
                assert middle == pytest.approx(labels.uv[slot, camera, thing], abs=0.75 / size)


def test_cameras_look_from_different_sides():
    suite = fake_suite(embodiment=ROBOTS["the gripper first, three cameras"])
    with closing(simulate(suite, 1, image_size=33)) as sim:
        sim.reset([0], tasks=[0], state_ids=[0])
        first, second, third = sim.observe().images[0].astype(int)
        # Turned to the left, a camera sees things turned to the right, but for rounding.
        assert np.mean(np.rot90(first, -1) != second) < 0.1
        assert np.mean(np.rot90(first, 2) != third) < 0.1
        filmed = require(sim, Filmed, "filmed")
        assert np.array_equal(filmed.frames("back", 33)[0], second)
        with pytest.raises(ConfigError, match="FakeSim: unknown camera 'bak'. Did you mean 'back'"):
            filmed.frames("bak", 33)


def test_the_hand_is_where_the_state_says_and_follows_the_numbers_that_move_it():
    suite = fake_suite(embodiment=ROBOTS["the gripper first, three cameras"])
    with closing(simulate(suite, 1, image_size=64)) as sim:
        sim.reset([0], tasks=[0], state_ids=[3])
        before = sim.observe()
        sim.step_chunk(np.array([[[1.0, 0.5, -0.5]]]))  # gripper, x, y; 1 moves it by 0.2 m
        after = sim.observe()
        assert after.state[0] - before.state[0] == pytest.approx([0.1, -0.1, 0, 0, 0], abs=1e-6)
        assert after.state[0, 2:].tolist() == [0.0, 0.0, 0.0]
        is_hand = (after.images[0, 0] == 255).all(axis=-1)
        row, column = np.argwhere(is_hand).mean(axis=0) + 0.5
        x, y = (column / 64 - 0.5) * 2.2, (0.5 - row / 64) * 2.2  # 1.1 m to each side
        assert after.state[0, :2] == pytest.approx([x, y], abs=0.03)


def test_a_suite_file_says_which_robot_it_is(write_fake_suite: Callable[..., str]):
    robot = {"action": ["a", "b", "grip"], "state": ["a", "b"], "cameras": ["eye"]}
    name = write_fake_suite(embodiment=robot | {"binary": ["grip"]}, horizon=9, heldout=[])
    suite = find_suite(name)
    assert suite.embodiment == Embodiment(
        action=("a", "b", "grip"), state=("a", "b"), cameras=("eye",), binary=("grip",)
    )
    assert (suite.name, suite.horizon) == ("fake", 9)
    assert list(task_horizons(name)) == ["reach_red", "reach_green"]
    assert [task.split for task in suite.tasks] == ["train", "train"]
    with closing(simulate(suite, 1)) as sim:
        assert isinstance(sim, FakeSim)
        assert isinstance(expert_of(sim), FakeExpert)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ["red", "red"]}, r"train is \('red', 'red'\), heldout .* each once"),
        ({"train": []}, "expected colours, each once"),
        ({"train": ["pink"]}, r"train\[0\] = 'pink', expected 'red' or"),
        ({"horizon": 0}, "horizon = 0, expected at least 1"),
        ({"num_test_states": 0}, "num_test_states = 0, expected at least 1"),
        ({"extra": []}, "unknown key 'extra' in FakeConfig. Did you mean 'extras'"),
        (
            {"embodiment": {"action": ["x", "gripper"], "state": ["x", "y"], "cameras": ["top"]}},
            r"action \('x', 'gripper'\) and state .* expected two numbers of each",
        ),
        (
            {"embodiment": {"action": ["x", "y"], "state": ["x"], "cameras": ["top"]}},
            r"state \('x',\), expected two numbers of each",
        ),
    ],
)
def test_a_wrong_suite_file_is_refused(
    write_fake_suite: Callable[..., str], settings: dict[str, Any], message: str
):
    name = write_fake_suite(**settings)
    with pytest.raises(ConfigError, match=message):
        find_suite(name)


def test_a_backend_that_is_no_fake_one_is_refused():
    with pytest.raises(ConfigError, match="fake worlds: unknown backend 'fake_worlds:BACKEND'"):
        fake_suite(backend="fake_worlds:BACKEND")


def test_faulty_actions_do_not_reach_a_world():
    episode = FakeSim(fake_suite(), 1).begin(0, 0, 0)
    with pytest.raises(SpecError, match=r"got actions \(1, 3\) up to 2, expected \[K, 3\] in \[-1"):
        episode.step_chunk(np.full((1, 3), 2.0), 5)
    with pytest.raises(SpecError, match=r"got actions \(1, 4\) up to 0, expected \[K, 3\]"):
        episode.step_chunk(np.zeros((1, 4)), 5)


def test_a_suite_may_lack_any_extra():
    protocols = {"Grounded": Grounded, "Filmed": Filmed, "Resumable": Resumable}
    for names in ([], ["Filmed"], ["Grounded", "Resumable"]):
        with closing(simulate(fake_suite(extras=names), 2)) as sim:
            assert isinstance(sim, Simulation)
            for name, protocol in protocols.items():
                assert isinstance(sim, protocol) == (name in names)


def test_any_simulation_can_be_made_to_lack_what_it_has():
    sim = Limited(VectorSim(load_suite("tabletop_object"), 1, image_size=16), [Filmed])
    sim.reset([0], tasks=[0], state_ids=[0])
    assert sim.tasks.tolist() == sim.state_ids.tolist() == [0]
    assert sim.observe().images.shape == (1, 2, 16, 16, 3)
    assert require(sim, Filmed, "filmed").frames("agentview", 8).shape == (1, 8, 8, 3)
    with pytest.raises(ConfigError, match="cannot be labelled: .* lacks camera_poses, thing_pos"):
        require(sim, Grounded, "labelled")
    sim.close()


def test_variations_are_refused():
    with pytest.raises(ConfigError, match="suite 'fake': the backend .* has no variations; remove"):
        simulate(fake_suite(), 1, variation=VariationConfig(light_gain=(0.5, 1.0)))


def test_the_expert_is_of_fake_worlds_only():
    sim = VectorSim(load_suite("tabletop_object"), 1, image_size=16)
    with pytest.raises(SpecError, match="FakeExpert: got a suite 'tabletop_object', expected a Fa"):
        FakeExpert(sim)
    sim.close()
