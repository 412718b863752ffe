import pytest

from vla_crl.bench.render import bench_render


@pytest.mark.render
def test_rendering_is_measured_against_mujocos_renderer():
    (record,) = bench_render(num_frames=40, num_peer_frames=2, sizes=(64,), num_repeats=1)
    assert record.name == "render.tabletop_object.64x64"
    assert record.unit == "frames/s"
    assert record.peer == "mujoco.Renderer"
    assert record.peer_value is not None
    assert record.ratio == pytest.approx(record.value / record.peer_value)
    assert record.value > record.peer_value > 0.0
    assert record.goal == 40.0


@pytest.mark.render
def test_a_scene_of_meshes_is_measured_too():
    pytest.importorskip("metaworld", reason="pip install --editable '.[metaworld]'")
    small = {"num_frames": 8, "num_peer_frames": 2, "num_repeats": 1}
    (record,) = bench_render("metaworld_mt10", sizes=(64,), **small)
    assert (record.name, record.goal) == ("render.metaworld_mt10.64x64", 15.0)
    assert record.value > 0.0


@pytest.mark.render
def test_only_the_default_size_has_a_goal():
    (record,) = bench_render(num_frames=8, num_peer_frames=2, sizes=(32,), num_repeats=1)
    assert record.ratio is not None
    assert record.goal is None
