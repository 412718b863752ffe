import math

import torch

from vla_crl.rollout.outcomes import Outcomes, RecentSuccess


def ended(*episodes: tuple[int, bool]) -> Outcomes:
    """Episodes by the chunk with which they began, and success."""
    begun = torch.tensor([begun for begun, _ in episodes], dtype=torch.int64)
    success = torch.tensor([success for _, success in episodes], dtype=torch.bool)
    return Outcomes(begun, begun, begun, begun, begun, begun, success)


def test_success_is_that_of_the_latest_episodes_that_had_the_time_to_fail():
    recent = RecentSuccess(num_slots=3, max_chunks=12)
    # Two slots succeeded at once and began anew at 1 and 3: at 11 nobody had the time to fail.
    assert math.isnan(recent.update(ended((0, True), (0, True), (1, True)), 11))
    # Those begun at 2 or earlier must be over: 0, 0, 0, 1.
    assert recent.update(ended((0, False)), 14) == 3 / 4
    assert recent.update(ended((3, True)), 21) == 4 / 5  # as three slots began at 0
    # The last three that began at 16 or earlier, and all that are as late as the first of them.
    assert recent.update(ended((9, False), (9, False), (10, True)), 28) == 1 / 3
    assert recent.outcomes.begun.tolist() == [9, 9, 10]


def test_without_an_episode_there_is_no_success():
    assert math.isnan(RecentSuccess(num_slots=1, max_chunks=1).update(Outcomes.none(), 100))
