"""Where a rollout is kept between collection and update."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vla_crl.algos.advantages import generalized_advantages
from vla_crl.algos.protocols import PPOBatch
from vla_crl.errors import SpecError
from vla_crl.rows import Rows


class SampledChunk(Protocol):
    """What is kept of N action chunks; `ActionChunk` is one."""

    @property
    def trace(self) -> Rows:
        """How they were sampled."""
        ...

    @property
    def log_prob(self) -> Tensor:
        """Log-density of the trace, [N]."""
        ...

    @property
    def value(self) -> Tensor:
        """Predicted return, [N]."""
        ...


class RolloutStorage:
    """T chunks in each of N slots, in memory allocated once and written again every iteration.

    Fill it with `add` for steps 0 ... T - 1, then `finish`; `add(0, ...)` begins the next one.

    Args:
        num_steps: T, chunks per slot.
        num_slots: N, robots acting side by side.
        context: What is kept of the policy's sight, a context or (for `RecomputedContexts`) a
            tokenized observation; only shapes, types and device of its rows matter.
        chunk: A chunk of the policy, likewise.

    Attributes:
        rewards: [T, N] float32.
        terminated: [T, N] bool, the episode reached a final state.
        truncated: [T, N] bool, the episode ran out of time.
        next_values: [T, N] float32, see `finish`.
        log_probs: [T, N] float32, of the policy that collected.
        values: [T, N] float32, predicted while collecting.
        advantages: [T, N] float32, see `compute_advantages`.
        returns: [T, N] float32, likewise.
    """

    def __init__(
        self, num_steps: int, num_slots: int, *, context: Rows, chunk: SampledChunk
    ) -> None:
        self.num_steps, self.num_slots = num_steps, num_slots
        num_rows = num_steps * num_slots
        zeros = chunk.log_prob.new_zeros(num_rows, dtype=torch.float32)
        self._rows = PPOBatch(
            rows=torch.arange(num_rows, device=zeros.device),
            context=context.allocate(num_rows),
            trace=chunk.trace.allocate(num_rows),
            log_probs=zeros.clone(),
            values=zeros.clone(),
            advantages=zeros.clone(),
            returns=zeros.clone(),
        )
        # Views: what is written into [t, n] stands in row t N + n of the minibatches.
        shape = (num_steps, num_slots)
        self.log_probs = self._rows.log_probs.view(shape)
        self.values = self._rows.values.view(shape)
        self.advantages = self._rows.advantages.view(shape)
        self.returns = self._rows.returns.view(shape)
        self.rewards = zeros.view(shape)
        self.next_values = torch.zeros_like(self.rewards)
        self.terminated = torch.zeros_like(self.rewards, dtype=torch.bool)
        self.truncated = torch.zeros_like(self.terminated)
        self._num_added = torch.zeros(num_slots, dtype=torch.int64)
        self._finished = False

    def add(
        self,
        step: int,
        context: Rows,
        chunk: SampledChunk,
        *,
        reward: ArrayLike | Tensor,
        terminated: ArrayLike | Tensor,
        truncated: ArrayLike | Tensor,
        slots: slice | None = None,
    ) -> None:
        """Store what some neighbouring slots saw, chose and got in chunk `step`.

        Several threads may call it, each with slots of its own.

        Args:
            step: 0 begins a new rollout of these slots, the others follow in order.
            context: [B] what the chunk was chosen from.
            chunk: [B].
            reward: [B] sum over the steps of the chunk.
            terminated: [B] bool.
            truncated: [B] bool.
            slots: Which; all N by default.

        Raises:
            SpecError: A step out of order or beyond T, a shape that does not fit, or a number
                that is not finite.
        """
        if step >= self.num_steps:
            raise SpecError(
                f"RolloutStorage: step {step} does not fit, it holds {self.num_steps} steps; "
                "call finish and begin again with step 0"
            )
        slots = slots or slice(0, self.num_slots)
        here = slice(step * self.num_slots + slots.start, step * self.num_slots + slots.stop)
        expected = self._num_added[slots]
        if step and (expected != step).any():
            slot = int((expected != step).nonzero()[0])
            raise SpecError(
                f"RolloutStorage: got step {step} from slot {slots.start + slot}, expected step "
                f"{expected[slot]}, or 0 to begin again"
            )
        columns = (
            ("log_prob", self.log_probs, chunk.log_prob),
            ("value", self.values, chunk.value),
            ("reward", self.rewards, reward),
            ("terminated", self.terminated, terminated),
            ("truncated", self.truncated, truncated),
        )
        self._check_rows("context", context, self._rows.context[here])
        self._check_rows("trace", chunk.trace, self._rows.trace[here])
        checked = [(b, self._column(name, b[step, slots], x)) for name, b, x in columns]
        context.copy_into(self._rows.context, here)
        chunk.trace.copy_into(self._rows.trace, here)
        for buffer, column in checked:
            buffer[step, slots] = column
        self._num_added[slots] = step + 1
        self._finished = False

    def finish(self, next_values: ArrayLike | Tensor) -> None:
        """Complete the rollout.

        Args:
            next_values: [T, N] value of the observation that followed each chunk: the one of the
                next chunk, at a time limit the episode's own last one, before the slot was
                refilled. Ignored where terminated, but has to be a number.

        Raises:
            SpecError: Steps are missing, or `next_values` has the wrong shape or is not finite.
        """
        if (self._num_added != self.num_steps).any():
            raise SpecError(
                f"RolloutStorage.finish: {self._num_added.sum()} of "
                f"{self.num_steps * self.num_slots} chunks were added"
            )
        self.next_values[:] = self._column("next_values", self.next_values, next_values)
        self._finished = True

    def compute_advantages(self, *, gamma: float, gae_lambda: float) -> None:
        """Fill `advantages` and `returns` by `generalized_advantages`."""
        self._require_finished("compute_advantages")
        advantages, returns = generalized_advantages(
            self.rewards,
            self.values,
            self.next_values,
            terminated=self.terminated,
            truncated=self.truncated,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        self.advantages[:] = advantages
        self.returns[:] = returns

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[PPOBatch]:
        """Yield copies of all chunks in random order, `size` at a time; the last may be smaller.

        Args:
            size: Chunks per minibatch.
            generator: On the CPU; draws the order.
        """
        self._require_finished("minibatches")
        order = torch.randperm(len(self._rows), generator=generator).to(self.rewards.device)
        for rows in order.split(size):
            yield self._rows[rows]

    def _require_finished(self, caller: str) -> None:
        if not self._finished:
            raise SpecError(f"RolloutStorage.{caller}: the rollout is not complete; call finish")

    @staticmethod
    def _check_rows(name: str, rows: Rows, expected: Rows) -> None:
        # Copying would broadcast a single row over all slots without a word.
        for (path, tensor), (_, buffer) in zip(_columns(rows), _columns(expected), strict=True):
            if tensor.shape != buffer.shape:
                raise SpecError(
                    f"RolloutStorage: {name}{path} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(buffer.shape)}"
                )

    @staticmethod
    def _column(name: str, buffer: Tensor, column: ArrayLike | Tensor) -> Tensor:
        """Return numbers as a tensor like `buffer`, checked."""
        tensor = torch.as_tensor(column, dtype=buffer.dtype, device=buffer.device).detach()
        if tensor.shape != buffer.shape:
            raise SpecError(
                f"RolloutStorage: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(buffer.shape)}"
            )
        bad = (~tensor.isfinite()).nonzero()
        if len(bad):
            index = tuple(bad[0].tolist())
            raise SpecError(
                f"RolloutStorage: {name}{list(index)} is {tensor[index].item()}, "
                "expected a finite number"
            )
        return tensor


class RecomputedContexts:
    """A rollout whose contexts are computed anew for every minibatch, with gradients.

    What an update needs that trains the backbone from reward. Where the backbone is insulated or
    frozen it gives the same numbers as stored contexts, at many times the cost.

    Args:
        storage: A rollout that holds tokenized observations in the place of contexts.
        encode: The policy's.
    """

    def __init__(self, storage: RolloutStorage, encode: Callable[[Any], Rows]) -> None:
        self.storage = storage
        self.encode = encode
        self.values, self.advantages, self.returns = (
            storage.values,
            storage.advantages,
            storage.returns,
        )
        self.compute_advantages = storage.compute_advantages

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[PPOBatch]:
        """Yield the minibatches of the storage with fresh contexts."""
        for batch in self.storage.minibatches(size, generator):
            yield replace(batch, context=self.encode(batch.context))


def _columns(rows: Rows, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a record with its path, e.g. ".keys"."""
    for field in fields(rows):  # pyright: ignore[reportArgumentType]
        column = getattr(rows, field.name)
        if isinstance(column, Rows):
            yield from _columns(column, f"{path}.{field.name}")
        else:
            yield f"{path}.{field.name}", column
