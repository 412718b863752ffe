"""Slots are refilled in place: long runs neither grow nor leave worlds behind."""

import gc
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from vla_crl.sim.gymnasium_envs import TaskEnv
from vla_crl.sim.native import vector_sim
from vla_crl.sim.native.drawing import renderer_of
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig

NUM_SLOTS = 40
STATM = Path("/proc/self/statm")


def resident_mib() -> float:
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def begin_episodes(sim: VectorSim, num_rounds: int) -> None:
    """Begin an episode in every slot again and again, step and look at it once."""
    slots, tasks = np.arange(sim.num_slots), len(sim.suite.tasks)
    rng = np.random.default_rng(0)
    for number in range(num_rounds):
        ids = rng.integers(sim.suite.test_ids.stop, size=sim.num_slots)
        sim.reset(slots, tasks=(slots + number) % tasks, state_ids=ids)
        sim.step_chunk(rng.uniform(-1.0, 1.0, (sim.num_slots, 1, 7)))
        sim.observe()


@pytest.fixture
def sim(new_sim: Callable[..., VectorSim]) -> VectorSim:
    """A simulation of five scenes that has run a while."""
    config = VariationConfig(light_gain=(0.5, 1.0), image_noise=(0.0, 0.1), action_latency=(0, 2))
    sim = new_sim(NUM_SLOTS, suite=load_suite("tabletop_30"), image_size=16, variation=config)
    begin_episodes(sim, 5)
    gc.collect()
    return sim


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc to see what a process holds")
def test_two_thousand_episodes_need_no_more_memory_than_two_hundred(sim: VectorSim):
    before = resident_mib()
    begin_episodes(sim, 50)
    gc.collect()
    assert resident_mib() - before < 16.0  # 8 KiB an episode; allocators keep some MiB


def test_an_episode_leaves_no_array_behind(sim: VectorSim):
    tracemalloc.start()
    begin_episodes(sim, 1)  # what is allocated once
    held, _ = tracemalloc.get_traced_memory()
    begin_episodes(sim, 10)
    gc.collect()
    later, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Numba keeps some hundred small objects for reuse; a state or an image is 1 KiB and more.
    assert (later - held) / (10 * NUM_SLOTS) < 512


def test_no_world_is_created_while_episodes_begin_and_end(
    new_sim: Callable[..., VectorSim], monkeypatch: pytest.MonkeyPatch
):
    sim = new_sim(4, image_size=8)
    begin_episodes(sim, 1)

    def refuse(*_: object) -> None:
        raise AssertionError("a world was created")

    for name in ("MjData", "MjModel"):
        monkeypatch.setattr(mujoco, name, refuse)
    begin_episodes(sim, 3)


def test_a_scene_is_prepared_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    suite = load_suite("tabletop_30")
    suite = replace(suite, scenes=tuple(replace(scene) for scene in suite.scenes))  # unknown yet
    made: list[tuple[str, int]] = []

    def spy(module: Any, name: str) -> None:
        make = getattr(module, name)

        def remember(scene: Scene, *arguments: Any) -> Any:
            made.append((name, suite.scenes.index(scene)))
            return make(scene, *arguments)

        monkeypatch.setattr(module, name, remember)

    for name in ("initial_states", "renderer_of"):
        spy(vector_sim, name)
    first, other = 0, int(np.flatnonzero(suite.scene_of_task == 2)[0])
    sim = VectorSim(suite, 2, image_size=8)
    assert made == []
    sim.close()
    sim = VectorSim(suite, 2, image_size=8, tasks=[first])
    assert made == [("initial_states", 0), ("renderer_of", 0)]
    assert not sim._workers._free  # no model has been copied
    sim.reset([0, 1], tasks=[first, other], state_ids=[0, 0])  # asked for all the same
    sim.observe()
    assert sorted(sim._workers._free) == [0, 2]
    sim.close()


def test_simulations_of_a_suite_share_what_is_made_of_its_scenes(suite: Suite):
    renderers = {id(renderer_of(suite.scenes[0], ("agentview",), 8)) for _ in range(2)}
    constants = {id(constants_of(suite, 0)) for _ in range(2)}
    assert len(renderers) == len(constants) == 1
    other = suite.with_controller("joint_position")
    assert initial_states(other.scenes[0]) is initial_states(suite.scenes[0])


def test_a_closed_environment_leaves_nothing_running():
    import threading

    before = threading.active_count()
    for _ in range(3):
        env = TaskEnv("tabletop_object", "red_cube_in_basket", image_size=8)
        env.reset(seed=0)
        env.step(np.zeros(7))
        assert threading.active_count() > before
        env.close()
    assert threading.active_count() == before
