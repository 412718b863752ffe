import functools
import importlib.util

import pytest

from vla_crl.bench import peers
from vla_crl.bench.render_peers import bench_render_peers
from vla_crl.cli.doctor import draws_frames
from vla_crl.errors import ConfigError

bench_small = functools.partial(bench_render_peers, num_frames=40, num_peer_frames=4, num_repeats=1)


@pytest.mark.render
def test_gl_backends_are_measured_side_by_side():
    backends = [backend for backend in ("egl", "osmesa") if draws_frames(backend)]
    records = bench_small(peers=backends, sizes=(32, 64))
    assert [record.name for record in records] == [
        f"render.tabletop_object.{size}x{size}.vs_{backend}"
        for size in (32, 64)
        for backend in backends
    ]
    for record in records:
        assert record.peer in {"mujoco.Renderer, EGL", "mujoco.Renderer, OSMesa"}
        assert (record.unit, record.goal_kind) == ("frames/s", "at least")
        assert record.goal == (40.0 if "64x64" in record.name else None)
        assert record.peer_value is not None
        assert record.ratio == pytest.approx(record.value / record.peer_value)
        assert record.value > record.peer_value > 0.0


@pytest.mark.slow
def test_warp_is_measured_on_the_cpu():
    pytest.importorskip("mujoco_warp", reason="pip install --editable '.[warp]'")
    (record,) = bench_small(peers=["warp"], sizes=(16,))
    assert record.name == "render.tabletop_object.16x16.vs_warp"
    assert (record.peer, record.goal) == ("MuJoCo Warp, CPU", None)
    assert record.peer_value is not None
    assert record.peer_value > 0.0


def test_what_a_peer_lacks_is_an_error_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(peers, "draws_frames", lambda backend: backend == "egl")
    with pytest.raises(ConfigError, match="peer 'osmesa' needs .* MUJOCO_GL=osmesa: apt-get inst"):
        bench_render_peers()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "warp" in name else find(name)
    )
    with pytest.raises(
        ConfigError,
        match=r"bench render --peers: peer 'warp' needs .* pip install --editable '.\[warp\]'",
    ):
        bench_render_peers(peers=["warp"])


def test_a_misspelt_peer_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown peer 'mesa'. Did you mean 'osmesa'"):
        bench_render_peers(peers=["mesa"])
