import pytest

from vla_crl.errors import ConfigError

pytest.importorskip("mujoco_warp", reason="pip install --editable '.[warp]'")

from vla_crl.bench.warp import bench_warp


@pytest.mark.slow
def test_both_backends_play_the_same_actions(monkeypatch: pytest.MonkeyPatch):
    import warp as wp

    monkeypatch.setattr(wp.config, "optimization_level", 0)
    records = bench_warp(
        "tabletop_object", device="cpu", sizes=(2,), num_peer_slots=2, num_chunks=1, num_repeats=1
    )
    assert [record.name for record in records] == [
        "warp.tabletop_object.pixels.2",
        "warp.tabletop_object.state.2",
    ]
    for record in records:
        assert (record.unit, record.goal) == ("steps/s", None)
        assert record.peer is not None
        assert record.peer.startswith("VectorSim, ")
        assert record.value > 0.0
        assert record.peer_value is not None
        assert record.peer_value > record.value  # Warp's CPU device is one thread
        assert record.hardware.count("; ") == 1


def test_a_device_that_is_not_there_is_an_error_before_anything_is_measured():
    with pytest.raises(ConfigError, match="Warp finds no device 'cuda:9'"):
        bench_warp(device="cuda:9")
