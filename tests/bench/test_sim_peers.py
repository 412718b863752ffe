import importlib.util

import pytest

from vla_crl.bench import peers
from vla_crl.bench.sim_peers import SIM_PEERS, bench_sim_peers
from vla_crl.errors import ConfigError


def test_one_thread_is_a_peer_that_needs_no_graphics():
    records = bench_sim_peers(peers=["one_thread"], num_slots=4, num_chunks=1, num_repeats=1)
    names = [record.name for record in records]
    assert names == [f"sim.tabletop_object.{seen}.vs_one_thread" for seen in ("pixels", "state")]
    for record in records:
        assert (record.peer, record.unit, record.goal) == ("VectorSim, 1 thread", "steps/s", None)


@pytest.mark.slow
@pytest.mark.render
def test_vector_environments_are_measured_per_step_and_per_chunk():
    pytest.importorskip("stable_baselines3", reason="pip install --editable '.[sb3]'")
    chosen = ["AsyncVectorEnv", "SubprocVecEnv"]
    records = bench_sim_peers(
        peers=chosen, num_slots=4, num_chunks=2, num_repeats=1, envs_per_core=[1]
    )
    assert [record.name for record in records] == [
        f"sim.tabletop_object.{seen}.vs_{peer}{suffix}"
        for seen in ("pixels", "state")
        for peer in chosen
        for suffix in ("", "_chunked")
    ]
    for record in records:
        is_chunked, goal = "chunked" in record.name, 10.0 if "pixels" in record.name else 3.0
        assert record.goal == (None if is_chunked else goal)
        assert record.unit == "steps/s"
        assert record.peer is not None
        assert record.peer.startswith(record.name.split("vs_")[1].removesuffix("_chunked"))
        assert ("observed once per chunk" in record.peer) is is_chunked
        assert record.peer_value is not None
        assert record.ratio == pytest.approx(record.value / record.peer_value)


def test_without_stable_baselines_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "baselines" in name else find(name)
    )
    monkeypatch.setattr(peers, "draws_frames", lambda backend: True)
    for chosen in ([], ["SubprocVecEnv"]):
        with pytest.raises(
            ConfigError,
            match=r"sim --peers: peer 'SubprocVecEnv' needs .* pip install --editable '.\[sb3\]'",
        ):
            bench_sim_peers(peers=chosen)


def test_without_graphics_the_peers_that_draw_are_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "draws_frames", lambda backend: False)
    with pytest.raises(ConfigError, match="peer 'AsyncVectorEnv' needs MuJoCo's renderer"):
        bench_sim_peers(peers=["AsyncVectorEnv"])


def test_a_misspelt_peer_names_the_nearest():
    assert SIM_PEERS == ("AsyncVectorEnv", "SubprocVecEnv", "one_thread")
    with pytest.raises(ConfigError, match="unknown peer 'SubprocEnv'. Did you mean 'SubprocVecEnv"):
        bench_sim_peers(peers=["SubprocEnv"])
