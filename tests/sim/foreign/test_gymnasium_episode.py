"""Gymnasium environments are suites without a line of Python; Meta-World's own package is one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.foreign.foreign_episode import ForeignTask
from vla_crl.sim.foreign.gymnasium_episode import GymnasiumEpisode
from vla_crl.testing import check_suite

TASK = ForeignTask("up", "go up", {})


class Lift(gymnasium.Env[Any, Any]):
    """A lift for two numbers, 0 to 10 and -4 to 4; the second tells how fast it goes up."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as the base class declares it

    def __init__(self, render_mode: str, floors: float = 3.0) -> None:
        self.render_mode, self._floors = render_mode, floors
        low, high = np.array([0.0, -4.0], np.float32), np.array([10.0, 4.0], np.float32)
        self.action_space = gymnasium.spaces.Box(low, high)
        self.observation_space = gymnasium.spaces.Dict()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.height, self.got = self.np_random.uniform(), np.zeros(2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.got, self.height = action, self.height + action[1]
        fell = self.height < -10.0
        return self._observation(), 0.0, fell, False, {"arrived": self.height > self._floors}

    def render(self) -> Any:
        """Return a wide picture: the middle square is red above, blue below."""
        frame = np.zeros((8, 12, 3), np.uint8)
        frame[:4, 2:10], frame[4:, 2:10] = (255, 0, 0), (0, 0, 255)
        return frame

    def _observation(self) -> Any:
        return {"height": np.array([self.height]), "got": self.got, "unused": np.ones(5)}


@pytest.fixture(autouse=True)
def lift() -> Iterator[None]:
    gymnasium.register("vla_crl_tests/Lift-v0", cast(Any, Lift))
    yield
    del gymnasium.registry["vla_crl_tests/Lift-v0"]


def episode(**config: Any) -> GymnasiumEpisode:
    settings = {"id": "vla_crl_tests/Lift-v0", "success": "arrived", **config}
    return GymnasiumEpisode(("front",), 4, **{"observation": ["height", "got"], **settings})


def test_actions_are_stretched_over_the_box_and_success_is_read_from_info():
    lift = episode()
    lift.begin(TASK, 0, seed=5)
    start = lift.state()[0]
    assert not lift.step(np.array([0.0, 0.5]))
    assert lift.state().tolist() == pytest.approx([start + 2.0, 5.0, 2.0])
    assert lift.step(np.array([-1.0, 0.5]))
    lift.begin(TASK, 0, seed=5)
    assert lift.state()[0] == start
    lift.begin(TASK, 1, seed=6)
    assert lift.state()[0] != start


def test_arguments_of_a_task_are_keywords_of_the_environment():
    lift = episode(make={"floors": 9.0})
    lift.begin(TASK, 0, seed=5)
    assert not lift.step(np.array([0.0, 1.0]))
    lift.begin(ForeignTask("low", "go up", {"floors": 2.0}), 0, seed=5)
    assert lift.step(np.array([0.0, 1.0]))


def test_an_environment_that_ended_without_success_stays_as_it_is():
    lift = episode()
    lift.begin(TASK, 0, seed=5)
    for _ in range(3):
        assert not lift.step(np.array([0.0, -1.0]))
    fallen = lift.state()
    assert fallen[0] < -10.0
    assert not lift.step(np.array([0.0, 1.0]))
    assert np.array_equal(lift.state(), fallen)


def test_pictures_are_the_middle_square_upright():
    lift = episode()
    lift.begin(TASK, 0, seed=5)
    (image,) = lift.images(("front",), 4)
    assert np.array_equal(image[:2], np.broadcast_to([255, 0, 0], (2, 4, 3)))
    assert np.array_equal(image[2:], np.broadcast_to([0, 0, 255], (2, 4, 3)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"success": "arived"}, "Lift-v0: unknown key of info 'arived'. Did you mean 'arrived'"),
        ({"observation": ["hight"]}, "Lift-v0: unknown observation 'hight'. Did you mean 'height'"),
        ({"observation": []}, r"observes several things; name .* of height, got, unused"),
        ({"sucess": "arrived"}, "GymnasiumEpisode: unknown key 'sucess'.* Did you mean 'success'"),
        ({"id": "CartPole-v1"}, r"CartPole-v1: actions are Discrete\(2\), expected a bounded box"),
    ],
)
def test_what_the_environment_lacks_is_named(config: dict[str, Any], message: str):
    def play() -> None:
        lift = episode(**config)
        lift.begin(TASK, 0, seed=5)
        lift.step(np.zeros(2))

    with pytest.raises(ConfigError, match=message):
        play()


def test_one_view_is_one_camera():
    with pytest.raises(ConfigError, match=r"cameras are \['a', 'b'\], but Gym.* render one view"):
        GymnasiumEpisode(("a", "b"), 4, id="x")


METAWORLD = """
description = "Meta-World's own environments, as its package makes them."
backend = "foreign"
episode = "vla_crl.sim.foreign.gymnasium_episode:GymnasiumEpisode"
control_hz = 80
horizon = 100
num_train_states = 10
num_test_states = 10
embodiment.action = ["delta_x", "delta_y", "delta_z", "gripper"]
embodiment.state = [STATE]
embodiment.cameras = ["corner"]

[arguments]
id = "metaworld:Meta-World/MT1"
make = { width = 64, height = 64, camera_name = "corner2" }
remakes = true

[[tasks]]
name = "button"
instruction = "press the button"
arguments = { env_name = "button-press-topdown-v3" }
"""


@pytest.mark.slow
@pytest.mark.render
@pytest.mark.filterwarnings("ignore:Constant.* may be too high")
def test_meta_worlds_own_package_is_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its scripted policy solves a task, seeing what it is given by the package."""
    pytest.importorskip("metaworld")
    from metaworld.policies import ENV_POLICY_MAP

    folder = tmp_path / "envs/metaworld_own"
    folder.mkdir(parents=True)
    names = ", ".join(f'"s{number}"' for number in range(39))
    (folder / "suite.toml").write_text(METAWORLD.replace("STATE", names))
    monkeypatch.setenv("VLA_CRL_PATH", str(tmp_path))
    suite = find_suite("metaworld_own")
    check_suite(suite, num_states=1)
    policy = ENV_POLICY_MAP["button-press-topdown-v3"]()
    sim, success = simulate(suite, 1), False
    sim.reset([0], tasks=[0], state_ids=[10])
    for _ in range(suite.horizon):
        if success:
            break
        felt = sim.observe(images=False).state[0].astype(np.float64)
        wanted = np.clip(policy.get_action(felt), -1.0, 1.0)
        success = bool(sim.step_chunk(wanted[None, None]).success[0])
    sim.close()
    assert success
