import threading
from collections.abc import Iterator

import pytest
import torch

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.rollout.lanes import lane_generator, run_lanes
from vla_crl.sim.native.suite import load_suite


@pytest.mark.parametrize(("num_envs", "sizes"), [(1, [1]), (2, [1, 1]), (7, [4, 3])])
def test_environments_are_spread_evenly_and_no_lane_is_empty(make_lanes, num_envs, sizes):
    sims = make_lanes(load_suite("tabletop_object"), num_envs)
    assert [sim.num_slots for sim in sims] == sizes


def test_without_an_environment_there_is_no_lane(make_lanes):
    with pytest.raises(ConfigError, match="simulate_lanes: num_envs is 0, expected a whole number"):
        make_lanes(load_suite("tabletop_object"), 0)


def test_lanes_look_as_large_and_use_as_many_threads_as_they_are_told(make_lanes):
    compute = ComputeConfig(num_sim_threads=6)
    sims = make_lanes(load_suite("tabletop_object"), 2, image_size=32, compute=compute)
    for sim in sims:
        sim.reset([0], tasks=[0], state_ids=[0])
        assert sim.observe().images.shape == (1, 2, 32, 32, 3)
        assert sim._workers._physics._max_workers == 3


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
