import pytest

from vla_crl.bench.sim import bench_sim


def test_simulation_is_measured_against_mujoco_alone_on_the_same_motion():
    stepped, observed = bench_sim(num_slots=4, num_chunks=2, num_repeats=1)
    assert stepped.name == "sim.tabletop_object.state"
    assert observed.name == "sim.tabletop_object.observed_64x64"
    assert stepped.goal == 0.8
    assert observed.goal is None
    for record in (stepped, observed):
        assert record.unit == "steps/s"
        assert record.peer == "mujoco.rollout"
        assert record.peer_value is not None
        assert record.ratio == pytest.approx(record.value / record.peer_value)
        assert record.value > 0.0
