from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_crl.errors import SpecError
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.rows import Rows


@dataclass(frozen=True)
class TinyContext(Rows):
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TinyTrace(Rows):
    x: Tensor
    step: Tensor


def sampled(num_rows: int, mark: float = 0.0, **changes: Any) -> Step:
    """Rows whose every number tells where it comes from: mark + row."""
    number = mark + torch.arange(num_rows, dtype=torch.float32)
    never, whole = torch.zeros(num_rows, dtype=torch.bool), number.long()
    step = Step(
        seen=None,
        context=TinyContext(number[:, None].repeat(1, 3), number[:, None] > 0),
        trace=TinyTrace(number[:, None, None].repeat(1, 2, 2), whole),
        actions=number[:, None, None].repeat(1, 2, 1),
        log_probs=-number[:, None],
        values=10 * number,
        reward=torch.full((num_rows,), mark / 100),
        terminated=never,
        truncated=never,
        success=never,
        episode_return=number,
        task=whole,
        state_id=whole,
        episode=whole,
        group=whole,
    )
    return replace(step, **changes)


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)


def empty_storage(num_steps: int = 3, num_slots: int = 2, **settings: Any) -> RolloutStorage:
    return RolloutStorage(num_steps, num_slots, sampled(1), **settings)


def add(storage: RolloutStorage, step: int, **changes: Any) -> None:
    """Add a step marked 100 * step."""
    storage.add(step, sampled(storage.num_slots, 100.0 * step, **changes))


def full_storage(num_steps: int = 3, num_slots: int = 2) -> RolloutStorage:
    storage = empty_storage(num_steps, num_slots)
    for step in range(num_steps):
        add(storage, step)
    storage.finish(np.zeros((num_steps, num_slots)))
    return storage


def test_what_was_added_stands_at_its_step_and_slot():
    storage = full_storage()
    assert storage.values.tolist() == [[0, 10], [1000, 1010], [2000, 2010]]
    assert storage.log_probs[..., 0].tolist() == [[0, -1], [-100, -101], [-200, -201]]
    assert storage.rewards.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_minibatches_hold_every_chunk_once_with_all_that_belongs_to_it():
    storage = full_storage()
    storage.compute_advantages(gamma=0.9, gae_lambda=0.9)
    batches = list(storage.minibatches(4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 2]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(6))
    for batch in batches:
        mark = 100 * (batch.index // 2) + batch.index % 2
        context, trace = batch.context, batch.trace
        assert isinstance(context, TinyContext)
        assert isinstance(trace, TinyTrace)
        assert torch.equal(context.keys[:, 2], mark.float())
        assert torch.equal(trace.step, mark)
        assert torch.equal(batch.values, 10.0 * mark)
        assert torch.equal(batch.log_probs[:, 0], -mark.float())
        assert torch.equal(batch.advantages, storage.advantages.flatten()[batch.index])
        assert torch.equal(batch.returns, storage.returns.flatten()[batch.index])


def test_order_depends_on_the_generator_alone():
    storage = full_storage()

    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [r for b in storage.minibatches(2, generator) for r in b.index.tolist()]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_advantages_use_flags_and_next_values():
    storage = empty_storage(num_steps=1, num_slots=3)
    add(
        storage,
        0,
        reward=torch.ones(3),
        terminated=flags(True, False, False),
        truncated=flags(False, True, False),
    )
    storage.finish([[4.0, 4.0, 8.0]])
    storage.compute_advantages(gamma=0.5, gae_lambda=1.0)
    # values are 0, 10, 20: 1 - 0, 1 + 0.5 * 4 - 10, 1 + 0.5 * 8 - 20
    assert storage.advantages.tolist() == [[1.0, -7.0, -15.0]]
    assert storage.returns.tolist() == [[1.0, 3.0, 5.0]]


def test_the_next_rollout_is_written_over_the_last_in_the_same_memory():
    storage = full_storage()
    address = storage.values.data_ptr()
    storage.add(0, sampled(2, 7.0))
    assert storage.values[0].tolist() == [70, 80]
    assert storage.values.data_ptr() == address
    with pytest.raises(SpecError, match="2 of 6 chunks were added"):
        storage.finish(np.zeros((3, 2)))


def test_minibatches_are_copies():
    storage = full_storage()
    batch = next(storage.minibatches(6, torch.Generator()))
    kept = batch.values.clone()
    storage.add(0, sampled(2, 7.0))
    assert torch.equal(batch.values, kept)


def test_gradients_end_at_the_storage():
    storage = empty_storage(num_steps=1)
    context = sampled(2).context
    assert isinstance(context, TinyContext)
    add(storage, 0, context=replace(context, keys=context.keys.requires_grad_()))
    storage.finish(np.zeros((1, 2)))
    batch = next(storage.minibatches(2, torch.Generator()))
    assert isinstance(batch.context, TinyContext)
    assert not batch.context.keys.requires_grad


def test_step_beyond_the_end_is_rejected():
    with pytest.raises(SpecError, match="step 3 does not fit, it holds 3 steps; call finish"):
        add(full_storage(), 3)


def test_step_out_of_order_is_rejected():
    with pytest.raises(SpecError, match="got step 1 from slot 0, expected step 0, or 0 to begin"):
        add(empty_storage(), 1)


def test_slots_may_be_ahead_of_others():
    one_by_one, together = empty_storage(), full_storage()
    for slot in (1, 0):
        for step in range(3):
            add_slot(one_by_one, step, slot)
    one_by_one.finish(np.zeros((3, 2)))
    assert torch.equal(one_by_one.values, together.values)
    add_slot(one_by_one, 0, 1)
    with pytest.raises(SpecError, match="got step 2 from slot 1, expected step 1"):
        add_slot(one_by_one, 2, 1)
    with pytest.raises(SpecError, match="finish: 4 of 6 chunks were added"):
        one_by_one.finish(np.zeros((3, 2)))


def add_slot(storage: RolloutStorage, step: int, slot: int) -> None:
    storage.add(step, sampled(storage.num_slots, 100.0 * step)[slot], np.array([slot]))


def test_use_before_finish_is_rejected():
    storage = full_storage()
    add(storage, 0)
    with pytest.raises(SpecError, match="compute_advantages: the rollout is not complete; call"):
        storage.compute_advantages(gamma=1, gae_lambda=1)
    with pytest.raises(SpecError, match="minibatches: the rollout is not complete; call finish"):
        next(storage.minibatches(2, torch.Generator()))


def test_one_context_for_many_slots_is_rejected():
    with pytest.raises(SpecError, match=r"context.keys has shape \(1, 3\), expected \(2, 3\)"):
        add(empty_storage(), 0, context=sampled(1).context)


def test_trace_of_another_width_is_rejected():
    wide = TinyTrace(torch.zeros(2, 2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(SpecError, match=r"trace.x has shape \(2, 2, 4\), expected \(2, 2, 2\)"):
        add(empty_storage(), 0, trace=wide)


@pytest.mark.parametrize("name", ["reward", "terminated", "episode"])
def test_column_of_wrong_length_is_rejected(name: str):
    with pytest.raises(SpecError, match=rf"{name} has shape \(3,\), expected \(2,\)"):
        add(empty_storage(), 0, **{name: torch.zeros(3)})


def test_a_step_that_keeps_other_columns_is_rejected():
    with pytest.raises(SpecError, match=r"'context.keys' is kept in some steps only"):
        add(empty_storage(), 0, context=None)


def test_a_rejected_step_changes_nothing():
    storage = full_storage()
    before = storage.values.clone()
    with pytest.raises(SpecError):
        storage.add(0, sampled(2, 50.0, truncated=flags(False, False, False)))
    assert torch.equal(storage.values, before)


def test_a_number_that_is_not_finite_is_rejected_when_the_rollout_is_complete():
    storage = empty_storage(num_steps=1)
    add(storage, 0, reward=torch.tensor([0.0, np.nan]))
    with pytest.raises(SpecError, match=r"reward\[0, 1\] is nan, expected a finite number"):
        storage.finish(np.zeros((1, 2)))


def test_next_values_are_checked():
    storage = full_storage()
    with pytest.raises(SpecError, match=r"next_values has shape \(2,\), expected \(3, 2\)"):
        storage.finish(np.zeros(2))
    with pytest.raises(SpecError, match=r"next_values\[2, 0\] is inf"):
        storage.finish([[0, 0], [0, 0], [np.inf, 0]])


def test_contexts_computed_of_observations_are_those_of_their_row():
    def encode(seen: TinyContext) -> TinyContext:
        return TinyContext(seen.keys + 0.5, seen.mask)

    stored = full_storage()
    example = sampled(1)
    storage = RolloutStorage(
        3, 2, replace(example, seen=example.context, context=None), encode=encode
    )
    for step in range(3):
        rows = sampled(2, 100.0 * step)
        storage.add(step, replace(rows, seen=rows.context, context=None))
    storage.finish(np.zeros((3, 2)))
    batches = (s.minibatches(4, torch.Generator().manual_seed(0)) for s in (stored, storage))
    for a, b in zip(*batches, strict=True):
        assert isinstance(a.context, TinyContext)
        assert isinstance(b.context, TinyContext)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.context.keys + 0.5, b.context.keys)
        assert a.seen is None
        assert isinstance(b.seen, TinyContext)
        assert torch.equal(b.seen.keys, a.context.keys)


def test_every_chunk_tells_how_its_episode_ended_if_it_did():
    # Slot 0: an episode ends in success at step 1, the next one runs on. Slot 1: one fails at 2.
    storage = empty_storage()
    add(storage, 0, episode=torch.tensor([0, 1]), episode_return=torch.tensor([0.0, 0.5]))
    add(
        storage,
        1,
        episode=torch.tensor([0, 1]),
        episode_return=torch.tensor([2.0, 0.75]),
        terminated=flags(True, False),
        success=flags(True, False),
    )
    add(
        storage,
        2,
        episode=torch.tensor([2, 1]),
        episode_return=torch.tensor([0.0, 1.5]),
        truncated=flags(False, True),
    )
    storage.finish(np.zeros((3, 2)))
    batch = next(storage.minibatches(6, torch.Generator()))
    batch = batch[batch.index.argsort()]
    assert batch.episode.view(3, 2).tolist() == [[0, 1], [0, 1], [2, 1]]
    nan = float("nan")
    for column, expected in (
        (batch.episode_return, [[2.0, 1.5], [2.0, 1.5], [nan, 1.5]]),
        (batch.success, [[1.0, 0.0], [1.0, 0.0], [nan, 0.0]]),
    ):
        torch.testing.assert_close(column.view(3, 2), torch.tensor(expected), equal_nan=True)


def resting_storage() -> RolloutStorage:
    """Slot 1 ends at step 0 and rests; slot 0 runs on to step 2, its time limit."""
    storage = empty_storage()
    add(storage, 0, terminated=flags(False, True), success=flags(False, True))
    for step in (1, 2):
        rows = sampled(2, 100.0 * step, truncated=flags(step == 2, False))[0]
        storage.add(step, rows, np.array([0]))
    storage.finish(np.zeros((3, 2)))
    return storage


def test_slots_that_rest_have_no_chunks():
    storage = resting_storage()
    assert storage.valid.tolist() == [[True, True], [True, False], [True, False]]
    batches = list(storage.minibatches(3, torch.Generator().manual_seed(1)))
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == [0, 1, 2, 4]
    assert {float(x) for batch in batches for x in batch.success} == {0.0, 1.0}


def test_what_was_there_before_a_slot_rests_changes_nothing():
    storage = full_storage()
    storage.rewards[1:, 1] = 1000.0  # of the last rollout
    add(storage, 0, terminated=flags(False, True))
    for step in (1, 2):
        rows = sampled(2, 100.0 * step, truncated=flags(step == 2, False))[0]
        storage.add(step, rows, np.array([0]))
    storage.finish(np.full((3, 2), 4.0))
    storage.compute_advantages(gamma=0.5, gae_lambda=1.0)
    # values 0, 1000, 2000 and 10; rewards 0, 1, 2 and 0: slot 1 gets 0 - 10; slot 0 from behind:
    # 2 + 2 - 2000, then 1 + 2 - 1000 and 0 + 2 - 0 with half of what follows
    assert storage.advantages[storage.valid].tolist() == [-995.5, -10.0, -1995.0, -1996.0]


def test_a_slot_may_rest_only_after_the_end_of_an_episode():
    storage = empty_storage()
    add(storage, 0, terminated=flags(True, False))
    for step in (1, 2):
        storage.add(step, sampled(2, 100.0 * step)[0], np.array([0]))
    with pytest.raises(SpecError, match="4 of 6 chunks were added, and not all of the slots"):
        storage.finish(np.zeros((3, 2)))


def test_minibatches_may_leave_chunks_out():
    storage = full_storage()
    chosen = torch.tensor([[True, False], [False, True], [False, False]])
    (batch,) = storage.minibatches(9, torch.Generator(), chosen=chosen)
    assert sorted(batch.index.tolist()) == [0, 3]
    assert [*storage.minibatches(9, torch.Generator(), chosen=chosen & False)] == []
    (whole,) = storage.minibatches(9, torch.Generator(), chosen=chosen, whole_episodes=True)
    assert sorted(whole.index.tolist()) == [0, 3]
    empty = storage.minibatches(9, torch.Generator(), chosen=chosen & False, whole_episodes=True)
    assert [*empty] == []


def test_whole_episodes_stay_together_and_each_chunk_comes_once():
    # Twelve slots with an episode each, of one to three chunks: 4 (1 + 2 + 3) = 24 chunks.
    storage = empty_storage(3, 12)
    for step in range(3):
        slots = np.flatnonzero(np.arange(12) % 3 >= step)
        ends = torch.from_numpy(slots % 3 == step)
        rows = sampled(len(slots), terminated=ends, episode=torch.from_numpy(slots) + 70)
        storage.add(step, rows, slots)
    storage.finish(np.zeros((3, 12)))
    orders = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        batches = [*storage.minibatches(5, generator, whole_episodes=True)]
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == storage.valid.flatten().nonzero().flatten().tolist()
        episodes = [set(batch.episode.tolist()) for batch in batches]
        assert sum(map(len, episodes)) == len(set.union(*episodes)) == 12
        assert all(3 <= len(batch) <= 5 + 2 for batch in batches[:-1])
        orders.append(index.tolist())
    assert orders[0] != orders[1]
