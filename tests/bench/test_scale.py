import numpy as np
import psutil
import pytest

from vla_crl.bench import scale
from vla_crl.bench.record import BenchRecord


@pytest.fixture(scope="module")
def records() -> dict[str, BenchRecord]:
    measured = scale.bench_scale(
        sizes=(2, 8), num_mixed_slots=10, num_chunks=1, num_repeats=1, num_turn_envs=8
    )
    return {record.name.removeprefix("scale.tabletop_object."): record for record in measured}


def test_costs_and_memory_are_measured_for_every_size(records: dict[str, BenchRecord]):
    assert list(records) == [
        *("state.2", "state.8", "observed_64x64.2", "observed_64x64.8", "memory.2", "memory.8"),
        "mixed_tasks.10",
    ]


@pytest.mark.parametrize("seen", ["state", "observed_64x64"])
def test_the_smallest_size_is_the_peer_of_the_others(records: dict[str, BenchRecord], seen: str):
    base, other = records[f"{seen}.2"], records[f"{seen}.8"]
    assert (base.unit, base.peer, base.ratio, base.met) == ("us/step", None, None, None)
    assert (other.unit, other.peer, other.peer_value) == ("us/step", "2 environments", base.value)
    assert other.ratio == pytest.approx(other.value / base.value)


def test_a_batch_of_mixed_tasks_is_measured_beside_one_task(records: dict[str, BenchRecord]):
    mixed = records["mixed_tasks.10"]
    assert (mixed.unit, mixed.peer, mixed.goal) == ("steps/s", "one task at a time", 0.9)
    assert mixed.ratio is not None
    assert mixed.ratio > 0.0


def test_memory_is_that_of_a_process_with_mujoco_in_it(records: dict[str, BenchRecord]):
    assert records["memory.2"].unit == "MiB"
    assert 50.0 < records["memory.2"].value < 2000.0


def test_memory_has_a_limit_at_the_size_that_is_promised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale, "MEMORY_LIMITS_MIB", {("tabletop_object", 1): 8192.0})
    measured = scale.bench_scale(
        sizes=(1,), num_mixed_slots=1, num_chunks=1, num_repeats=1, num_turn_envs=1
    )
    (record,) = [record for record in measured if "memory" in record.name]
    assert (record.peer, record.peer_value) == ("limit", 8192.0)
    assert (record.goal, record.goal_kind, record.met) == (1.0, "at most", True)


def test_peak_memory_counts_what_was_touched_and_never_falls():
    resident_mib, before_mib = psutil.Process().memory_info().rss / 2**20, scale.peak_memory_mib()
    assert before_mib >= 0.99 * resident_mib
    num_mib = int(before_mib - resident_mib) + 128  # past the old peak
    np.ones(num_mib * 2**20, np.uint8)
    # The kernel may take back some of what was resident in the meantime.
    assert scale.peak_memory_mib() >= before_mib + 64
