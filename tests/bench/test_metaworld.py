"""Meta-World beside its own package: the same work, names and goals."""

import importlib.util

import numpy as np
import pytest

from vla_crl.bench.metaworld_peers import METAWORLD_PEERS, bench_metaworld_peers, package_env
from vla_crl.bench.workload import random_workload
from vla_crl.errors import ConfigError
from vla_crl.sim.backends import find_suite, simulate

HINT = "pip install --editable '.[metaworld]'"


def test_the_packages_environment_does_what_ours_does():
    pytest.importorskip("metaworld", reason=HINT)
    from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim
    from vla_crl.sim.metaworld.suite import MetaWorldSuite

    suite = find_suite("metaworld_mt10")
    assert isinstance(suite, MetaWorldSuite)
    load = random_workload(suite, [1], 1, 8, chunk_steps=1)
    sim = simulate(suite, 1, num_threads=1)
    assert isinstance(sim, MetaWorldSim)
    env = package_env(suite.tasks[1].name, int(load.state_ids[0]))
    for _ in range(2):  # a turn begins the episode again
        sim.reset([0], tasks=load.tasks, state_ids=load.state_ids)
        observed, _ = env.reset()
        np.testing.assert_allclose(sim.observed()[0], observed, atol=1e-9)
        for action in load.actions[0]:
            observed, *_ = env.step(action[suite.own_numbers])
            sim.step_chunk(action[None, None])
            np.testing.assert_allclose(sim.observed()[0], observed, atol=1e-9)
    sim.close()
    env.close()


def test_threads_are_measured_with_a_goal():
    pytest.importorskip("metaworld", reason=HINT)
    (record,) = bench_metaworld_peers(peers=["threads"], num_slots=10, num_chunks=1, num_repeats=1)
    assert record.name == "metaworld.metaworld_mt10.state.vs_threads"
    assert (record.unit, record.goal, record.goal_kind) == ("steps/s", 5.0, "at least")
    assert record.peer is not None
    assert record.peer.startswith("metaworld's environments in ")
    assert record.peer_value is not None
    assert record.value > record.peer_value > 0.0
    assert record.ratio == pytest.approx(record.value / record.peer_value)


@pytest.mark.slow
def test_processes_are_measured_without_a_goal():
    pytest.importorskip("metaworld", reason=HINT)
    (record,) = bench_metaworld_peers(
        peers=["AsyncVectorEnv"], num_slots=4, num_chunks=1, num_repeats=1
    )
    assert record.name == "metaworld.metaworld_mt10.state.vs_AsyncVectorEnv"
    assert record.goal is None
    assert record.peer is not None
    assert "processes" in record.peer
    assert record.peer_value is not None
    assert record.value > record.peer_value > 0.0


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "metaworld" else find(name)
    )
    with pytest.raises(
        ConfigError,
        match=r"bench metaworld --peers: peer 'threads' .* pip install --editable '.\[metaworld\]'",
    ):
        bench_metaworld_peers()


def test_a_misspelt_peer_names_the_nearest():
    assert METAWORLD_PEERS == ("threads", "AsyncVectorEnv")
    with pytest.raises(ConfigError, match="unknown peer 'thread'. Did you mean 'threads'"):
        bench_metaworld_peers(peers=["thread"])


def test_a_suite_must_be_of_meta_world():
    with pytest.raises(
        ConfigError, match="bench metaworld: suite 'tabletop_object' is of the backend 'native', ex"
    ):
        bench_metaworld_peers("tabletop_object")
