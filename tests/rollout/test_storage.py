from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_crl.errors import SpecError
from vla_crl.rollout.storage import RecomputedContexts, RolloutStorage
from vla_crl.rows import Rows


@dataclass(frozen=True)
class TinyContext(Rows):
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TinyTrace(Rows):
    x: Tensor
    step: Tensor


@dataclass(frozen=True)
class TinyChunk(Rows):
    trace: TinyTrace
    log_prob: Tensor
    value: Tensor


def sampled(num_rows: int, mark: float = 0.0) -> tuple[TinyContext, TinyChunk]:
    """Rows whose every number tells where it comes from: mark + row."""
    number = mark + torch.arange(num_rows, dtype=torch.float32)
    context = TinyContext(number[:, None].repeat(1, 3), number[:, None] > 0)
    trace = TinyTrace(number[:, None, None].repeat(1, 2, 2), number.long())
    return context, TinyChunk(trace, -number, 10 * number)


def empty_storage(num_steps: int = 3, num_slots: int = 2) -> RolloutStorage:
    context, chunk = sampled(1)
    return RolloutStorage(num_steps, num_slots, context=context, chunk=chunk)


def add(storage: RolloutStorage, step: int, **changes: object) -> None:
    """Add a step marked 100 * step."""
    context, chunk = sampled(storage.num_slots, 100.0 * step)
    nothing = np.zeros(storage.num_slots, dtype=bool)
    arguments = {
        "context": context,
        "chunk": chunk,
        "reward": np.full(storage.num_slots, float(step)),
        "terminated": nothing,
        "truncated": nothing,
    }
    storage.add(step, **(arguments | changes))  # type: ignore[arg-type]


def full_storage(num_steps: int = 3, num_slots: int = 2) -> RolloutStorage:
    storage = empty_storage(num_steps, num_slots)
    for step in range(num_steps):
        add(storage, step)
    storage.finish(np.zeros((num_steps, num_slots)))
    return storage


def test_what_was_added_stands_at_its_step_and_slot():
    storage = full_storage()
    assert storage.values.tolist() == [[0, 10], [1000, 1010], [2000, 2010]]
    assert storage.log_probs.tolist() == [[0, -1], [-100, -101], [-200, -201]]
    assert storage.rewards.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_minibatches_hold_every_chunk_once_with_all_that_belongs_to_it():
    storage = full_storage()
    storage.compute_advantages(gamma=0.9, gae_lambda=0.9)
    batches = list(storage.minibatches(4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 2]
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(6))
    for batch in batches:
        mark = 100 * (batch.rows // 2) + batch.rows % 2
        context, trace = batch.context, batch.trace
        assert isinstance(context, TinyContext)
        assert isinstance(trace, TinyTrace)
        assert torch.equal(context.keys[:, 2], mark.float())
        assert torch.equal(trace.step, mark)
        assert torch.equal(batch.values, 10.0 * mark)
        assert torch.equal(batch.log_probs, -mark.float())
        assert torch.equal(batch.advantages, storage.advantages.flatten()[batch.rows])
        assert torch.equal(batch.returns, storage.returns.flatten()[batch.rows])


def test_order_depends_on_the_generator_alone():
    storage = full_storage()

    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [r for b in storage.minibatches(2, generator) for r in b.rows.tolist()]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_advantages_use_flags_and_next_values():
    storage = empty_storage(num_steps=1, num_slots=3)
    add(
        storage,
        0,
        reward=np.array([1.0, 1.0, 1.0]),
        terminated=np.array([True, False, False]),
        truncated=np.array([False, True, False]),
    )
    storage.finish([[4.0, 4.0, 8.0]])
    storage.compute_advantages(gamma=0.5, gae_lambda=1.0)
    # values are 0, 10, 20: 1 - 0, 1 + 0.5 * 4 - 10, 1 + 0.5 * 8 - 20
    assert storage.advantages.tolist() == [[1.0, -7.0, -15.0]]
    assert storage.returns.tolist() == [[1.0, 3.0, 5.0]]


def test_the_next_rollout_is_written_over_the_last_in_the_same_memory():
    storage = full_storage()
    address = storage.values.data_ptr()
    context, chunk = sampled(2, 7.0)
    add(storage, 0, context=context, chunk=chunk)
    assert storage.values[0].tolist() == [70, 80]
    assert storage.values.data_ptr() == address
    with pytest.raises(SpecError, match="2 of 6 chunks were added"):
        storage.finish(np.zeros((3, 2)))


def test_minibatches_are_copies():
    storage = full_storage()
    batch = next(storage.minibatches(6, torch.Generator()))
    kept = batch.values.clone()
    add(storage, 0, chunk=sampled(2, 7.0)[1])
    assert torch.equal(batch.values, kept)


def test_gradients_end_at_the_storage():
    storage = empty_storage(num_steps=1)
    context, chunk = sampled(2)
    context = TinyContext(context.keys.requires_grad_(), context.mask)
    add(storage, 0, context=context, chunk=chunk)
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
    context, chunk = sampled(storage.num_slots, 100.0 * step)
    row, nothing = slice(slot, slot + 1), np.zeros(1, dtype=bool)
    chunk = TinyChunk(chunk.trace[row], chunk.log_prob[row], chunk.value[row])
    storage.add(
        step,
        context[row],
        chunk,
        reward=np.full(1, float(step)),
        terminated=nothing,
        truncated=nothing,
        slots=row,
    )


def test_use_before_finish_is_rejected():
    storage = full_storage()
    add(storage, 0)
    with pytest.raises(SpecError, match="compute_advantages: the rollout is not complete; call"):
        storage.compute_advantages(gamma=1, gae_lambda=1)
    with pytest.raises(SpecError, match="minibatches: the rollout is not complete; call finish"):
        next(storage.minibatches(2, torch.Generator()))


def test_one_context_for_many_slots_is_rejected():
    with pytest.raises(SpecError, match=r"context.keys has shape \(1, 3\), expected \(2, 3\)"):
        add(empty_storage(), 0, context=sampled(1)[0])


def test_trace_of_another_width_is_rejected():
    context, chunk = sampled(2)
    wide = TinyTrace(chunk.trace.x.repeat(1, 1, 2), chunk.trace.step)
    with pytest.raises(SpecError, match=r"trace.x has shape \(2, 2, 4\), expected \(2, 2, 2\)"):
        add(empty_storage(), 0, context=context, chunk=TinyChunk(wide, chunk.log_prob, chunk.value))


@pytest.mark.parametrize("name", ["reward", "terminated", "truncated"])
def test_column_of_wrong_length_is_rejected(name: str):
    with pytest.raises(SpecError, match=rf"{name} has shape \(3,\), expected \(2,\)"):
        add(empty_storage(), 0, **{name: np.zeros(3, dtype=bool)})


def test_a_rejected_step_changes_nothing():
    storage = full_storage()
    before = storage.values.clone()
    with pytest.raises(SpecError):
        add(storage, 0, chunk=sampled(2, 50.0)[1], truncated=np.zeros(3, dtype=bool))
    assert torch.equal(storage.values, before)


def test_reward_that_is_not_a_number_is_rejected():
    with pytest.raises(SpecError, match=r"reward\[1\] is nan, expected a finite number"):
        add(empty_storage(), 0, reward=np.array([0.0, np.nan]))


def test_next_values_are_checked():
    storage = full_storage()
    with pytest.raises(SpecError, match=r"next_values has shape \(2,\), expected \(3, 2\)"):
        storage.finish(np.zeros(2))
    with pytest.raises(SpecError, match=r"next_values\[2, 0\] is inf"):
        storage.finish([[0, 0], [0, 0], [np.inf, 0]])


def test_recomputed_contexts_come_from_the_observation_of_their_row():
    storage = full_storage()

    def encode(kept: TinyContext) -> TinyContext:
        return TinyContext(kept.keys + 0.5, kept.mask)

    recomputed = RecomputedContexts(storage, encode)
    stored = storage.minibatches(4, torch.Generator().manual_seed(0))
    fresh = recomputed.minibatches(4, torch.Generator().manual_seed(0))
    for a, b in zip(stored, fresh, strict=True):
        assert isinstance(a.context, TinyContext)
        assert isinstance(b.context, TinyContext)
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.context.keys + 0.5, b.context.keys)
