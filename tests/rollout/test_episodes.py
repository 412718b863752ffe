import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.rollout.episodes import Groups, ShuffledStates, shuffled_lanes
from vla_crl.sim.native.suite import load_suite


def test_one_task_meets_the_states_in_permutations_of_one_generator():
    ids = range(100, 105)
    drawn = ShuffledStates([3], ids, (7, 1)).next(12)
    rng = np.random.default_rng((7, 1))
    expected = np.concatenate([rng.permutation(ids) for _ in range(3)])[:12]
    assert drawn.state_id.tolist() == expected.tolist()
    assert drawn.task.tolist() == [3] * 12
    assert drawn.group.tolist() == list(range(12))


def test_tasks_take_turns_and_meet_every_state_once_before_any_again():
    drawn = ShuffledStates([2, 5], range(4), 0).next(16)
    assert drawn.task.tolist() == [2, 5] * 8
    for task in (2, 5):
        ids = drawn.state_id[drawn.task == task]
        assert sorted(ids[:4].tolist()) == sorted(ids[4:].tolist()) == [0, 1, 2, 3]
    pairs = drawn.state_id.view(-1, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])


@pytest.mark.parametrize("size", [1, 3])
def test_a_source_goes_on_from_the_number_that_were_drawn(size):
    def make():
        return Groups(ShuffledStates([0, 1], range(5), 4), size)

    whole, parts, resumed = make().next(40), make(), make()
    drawn = [parts.next(num) for num in (7, 0, 1, 9)]
    resumed.num_drawn = parts.num_drawn
    drawn.append(resumed.next(23))
    for name, column in whole.flatten().items():
        assert torch.equal(torch.cat([part.flatten()[name] for part in drawn]), column)


def test_a_group_shares_task_and_initial_state():
    drawn = Groups(ShuffledStates([0, 1], range(9), 0), 4).next(10)
    assert drawn.group.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    single = ShuffledStates([0, 1], range(9), 0).next(3)
    assert drawn.state_id.tolist() == single.state_id[drawn.group].tolist()
    assert drawn.task.tolist() == [0] * 4 + [1] * 4 + [0] * 2


def test_lanes_share_the_training_states():
    suite = load_suite("tabletop_object")
    lanes = shuffled_lanes(suite, [0], 2, seed=3)
    ids = [lane.next(len(suite.train_ids) // 2).state_id.tolist() for lane in lanes]
    assert {*ids[0], *ids[1]} == set(suite.train_ids)
    assert len(ids[0]) + len(ids[1]) == len(suite.train_ids)


def test_a_source_without_anything_to_draw_is_refused():
    with pytest.raises(ConfigError, match="ShuffledStates: got 1 tasks and 0 initial states, exp"):
        ShuffledStates([0], range(0), 0)
    with pytest.raises(ConfigError, match="Groups: size is 0, expected at least 1"):
        Groups(ShuffledStates([0], range(1), 0), 0)
