import threading
from collections.abc import Iterator

import pytest
import torch

from vla_crl.rollout.lanes import lane_generator, run_lanes, simulate_lanes
from vla_crl.sim.native.suite import load_suite


@pytest.mark.parametrize(("num_envs", "sizes"), [(1, [1]), (2, [1, 1]), (7, [4, 3])])
def test_environments_are_spread_evenly_and_no_lane_is_empty(num_envs, sizes):
    sims = simulate_lanes(load_suite("tabletop_object"), num_envs)
    assert [sim.num_slots for sim in sims] == sizes


def test_lanes_run_at_the_same_time_each_with_its_share_of_threads():
    meeting, seen = threading.Barrier(2, timeout=10), []

    def work(lane: int) -> Iterator[None]:
        meeting.wait()  # would time out if one lane ran after the other
        seen.append((lane, torch.get_num_threads(), torch.is_grad_enabled()))
        yield

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run_lanes(work, [0, 1])
        assert sorted(seen) == [(0, 2, False), (1, 2, False)]
        assert torch.get_num_threads() == 4
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_failure_of_one_lane_ends_the_others():
    steps = []

    def work(lane: int) -> Iterator[None]:
        while lane == 0:
            steps.append(lane)
            yield
        raise ZeroDivisionError("in the second lane")

    with pytest.raises(ZeroDivisionError, match="in the second lane"):
        run_lanes(work, [0, 1])  # the first would never end


def test_lanes_draw_different_numbers_and_each_the_same_again():
    def draw(seed: int, lane: int) -> list[float]:
        return torch.rand(3, generator=lane_generator(seed, lane)).tolist()

    assert draw(0, 0) == draw(0, 0)
    assert len({tuple(draw(seed, lane)) for seed in (0, 1) for lane in (0, 1)}) == 4
