"""How a name leads to a suite, its simulator and its expert, also for a backend of one's own."""

from pathlib import Path

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim import backends
from vla_crl.sim.backends import BACKENDS, expert_of, find_suite, simulate, task_horizons
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import Filmed, Grounded, Simulation, require
from vla_crl.sim.variation import VariationConfig

POINTS = Path(__file__).parent / "points"
"""A folder of one's own: suites, and the module that simulates them."""


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_CRL_PATH", str(POINTS))
    monkeypatch.syspath_prepend(POINTS)


def test_a_suite_without_a_backend_is_one_of_our_own_scenes():
    suite = find_suite("tabletop_object")
    assert suite is load_suite("tabletop_object")
    sim = simulate(suite, 2, image_size=16, tasks=[0])
    assert isinstance(sim, VectorSim)
    assert isinstance(expert_of(sim), ScriptedExpert)
    sim.close()


@pytest.mark.parametrize("name", ["tabletop_object", "tabletop_30", "metaworld_mt10"])
def test_names_and_horizons_of_tasks_are_those_of_the_suite(name: str):
    suite = find_suite(name)
    assert list(task_horizons(name)) == [task.name for task in suite.tasks]
    assert list(task_horizons(name).values()) == [task.horizon for task in suite.tasks]


def test_horizons_of_tasks_compile_no_scene(monkeypatch: pytest.MonkeyPatch):
    read = "vla_crl.sim.backends:no_such_reader"
    monkeypatch.setitem(BACKENDS, "native", backends.Backend(
        read=read, horizons=BACKENDS["native"].horizons
    ))  # fmt: skip
    assert len(task_horizons("tabletop_30")) == 40
    with pytest.raises(ConfigError, match="unknown name in vla_crl.sim.backends 'no_such_reader'"):
        find_suite("tabletop_30")


def test_an_unknown_backend_names_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "read_toml", lambda file: {"backend": "natve"})
    with pytest.raises(ConfigError, match="suite.toml: unknown backend 'natve'. Did you mean 'nat"):
        find_suite("tabletop_object")


def test_a_device_that_a_backend_does_not_simulate_on_is_refused():
    message = "sim_device 'cuda:0': the backend 'metaworld' of suite 'metaworld_mt10' simulates on"
    with pytest.raises(ConfigError, match=f"{message} cpu only"):
        simulate(find_suite("metaworld_mt10"), 1, device="cuda:0")
    with pytest.raises(ConfigError, match="sim_device 'gpu': .* simulates on cpu and cuda only"):
        simulate(find_suite("tabletop_object"), 1, device="gpu")


def test_a_controller_that_a_suite_lacks_is_refused():
    with pytest.raises(ConfigError, match="'metaworld_mt10': unknown controller 'osc'. Known: "):
        find_suite("metaworld_mt10@osc")


@pytest.mark.usefixtures("own_folder")
def test_a_backend_of_ones_own_is_named_in_the_suite_file():
    suite = find_suite("points")
    assert (suite.name, suite.description) == ("points", "Points on a line.")
    assert list(task_horizons("points")) == ["right", "far"]
    sim = simulate(suite, 2, num_threads=3, image_size=8, tasks=[1])
    assert isinstance(sim, Simulation)
    sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 3])
    sim.observe().validate(suite.embodiment)
    result = sim.step_chunk(np.ones((2, 5, 1)))
    assert result.success.tolist() == [True, False]
    assert result.num_steps.tolist() == [4, 5]  # from 0 to 1 in steps of 1/4, the other from -0.3
    sim.close()


@pytest.mark.usefixtures("own_folder")
def test_settings_reach_the_simulator_of_ones_own():
    variation = VariationConfig(light_gain=(0.5, 1.0))
    sim = simulate(
        find_suite("points"), 1, num_threads=3, image_size=8, tasks=[1], variation=variation
    )
    assert vars(sim)["settings"] == (3, 8, [1], variation)


@pytest.mark.usefixtures("own_folder")
def test_what_a_backend_lacks_is_said_before_the_work():
    sim = simulate(find_suite("points"), 1)
    with pytest.raises(ConfigError, match="'points': its backend 'point_worlds:BACKEND' has no sc"):
        expert_of(sim)
    message = "suite 'points' cannot be filmed: its backend 'point_worlds:BACKEND' lacks frames"
    with pytest.raises(ConfigError, match=message):
        require(sim, Filmed, "filmed")
    with pytest.raises(ConfigError, match="labelled: .* lacks camera_poses, thing_positions"):
        require(sim, Grounded, "labelled")


@pytest.mark.usefixtures("own_folder")
def test_something_else_in_the_place_of_a_backend_is_refused():
    with pytest.raises(ConfigError, match="'point_worlds:PointSim' is a type, expected an inst"):
        find_suite("wrong")


@pytest.mark.usefixtures("own_folder")
def test_a_backend_that_is_not_installed_is_named_with_its_file():
    with pytest.raises(ConfigError, match=r"suite.toml: 'no_such_worlds:BACKEND': there is no mod"):
        find_suite("lost")
