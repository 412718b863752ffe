from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_crl.continual.successes import SuccessfulChunks
from vla_crl.errors import CheckpointError
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Number(Rows):
    number: Tensor


def rollout_of(first: int, episodes: list[list[int]], ends: dict[tuple[int, int], bool]):
    """Two slots, episode by step and slot; chunks are numbered from `first`; task = slot."""
    num_steps, number, none = len(episodes), torch.zeros(2), torch.zeros(2, dtype=torch.bool)

    def step(index: int) -> Step:
        over = torch.tensor([(index, slot) in ends for slot in range(2)])
        won = torch.tensor([ends.get((index, slot), False) for slot in range(2)])
        return Step(
            seen=None, context=Number(number), trace=Number(number), actions=number,
            log_probs=number[:, None], values=number, reward=number, terminated=over,
            truncated=none, success=won, episode_return=number, task=torch.arange(2),
            state_id=number.long(), episode=torch.tensor(episodes[index]), group=number.long(),
        )  # fmt: skip

    rollout = RolloutStorage(num_steps, 2, step(0))
    for index in range(num_steps):
        rollout.add(index, step(index))
    rollout.finish(np.zeros((num_steps, 2)))
    return rollout, Number(torch.arange(first, first + 2 * num_steps))


def found(chunks: SuccessfulChunks, *arguments) -> dict[int, list[int]]:
    return {
        task: records.layout.decode(records.data)["number"].tolist()
        for task, records in chunks.of(*arguments)
    }


def test_chunks_wait_until_it_is_known_how_their_episode_ends():
    chunks = SuccessfulChunks()
    # Slot 0: episode 0 fails in step 1, episode 2 begins. Slot 1: episode 1 goes on.
    first = rollout_of(0, [[0, 1], [0, 1], [2, 1]], {(1, 0): False})
    assert found(chunks, *first) == {}
    # Episode 2 ends in success at once; 1 goes on to the end.
    second = rollout_of(10, [[2, 1], [3, 1], [3, 1]], {(0, 0): True})
    assert found(chunks, *second) == {0: [4, 10]}  # chunk 4: step 2 of slot 0 in the first rollout
    third = rollout_of(20, [[3, 1], [3, 4], [3, 4]], {(0, 1): True, (1, 0): False})
    assert found(chunks, *third) == {1: [1, 3, 5, 11, 13, 15, 21]}


def test_what_waits_survives_a_restart():
    chunks, again = SuccessfulChunks(), SuccessfulChunks()
    assert chunks.state_dict() == {}
    found(chunks, *rollout_of(0, [[0, 1], [0, 1]], {}))
    again.load_state_dict({name: t.clone() for name, t in chunks.state_dict().items()})
    last = rollout_of(10, [[0, 1], [2, 3]], {(0, 0): True, (0, 1): False})
    assert found(again, *last) == found(chunks, *last) == {0: [0, 2, 10]}
    again.load_state_dict({})
    assert again.state_dict() == {}
    state = chunks.state_dict()
    del state["records/rows"]
    with pytest.raises(CheckpointError, match="successful chunks: 'rows' is missing"):
        again.load_state_dict(state)


def test_a_new_stage_begins_with_no_open_episode():
    chunks = SuccessfulChunks()
    found(chunks, *rollout_of(0, [[0, 1]], {}))
    chunks.begin()
    assert found(chunks, *rollout_of(10, [[0, 1]], {(0, 0): True})) == {0: [10]}
