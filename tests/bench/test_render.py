import pytest

from vla_crl.bench.render import bench_render


@pytest.mark.render
def test_rendering_is_measured_against_mujocos_renderer():
    (record,) = bench_render(num_frames=40, num_peer_frames=2, sizes=(32,), num_repeats=1)
    assert record.name == "render.tabletop_object.32x32"
    assert record.unit == "frames/s"
    assert record.peer == "mujoco.Renderer"
    assert record.peer_value is not None
    assert record.ratio == pytest.approx(record.value / record.peer_value)
    assert record.value > record.peer_value > 0.0
