import pytest

from vla_crl.bench.update import bench_update


def test_update_from_stored_contexts_is_measured_against_recomputing_them():
    (record,) = bench_update(num_steps=2, num_slots=8, num_epochs=2, num_repeats=1)
    assert record.name == "update.stored_context"
    assert record.unit == "samples/s"
    assert record.peer == "backbone recomputed in every epoch"
    assert record.peer_value is not None
    assert record.ratio == pytest.approx(record.value / record.peer_value)
    assert record.value > record.peer_value > 0.0
