"""Where a rollout is kept between collection and update."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vla_crl.algos.advantages import generalized_advantages
from vla_crl.algos.protocols import Batch
from vla_crl.errors import SpecError
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Step(Rows):
    """What B slots saw, chose and got in one chunk of actions; see `Batch` for what is not here.

    Attributes:
        seen: Tokenized observations, where contexts are to be computed of them or somebody else
            asked for them, else None.
        context: What the policy's `encode` left behind; None where `seen` is kept.
        trace: See `Batch`.
        actions: Likewise.
        log_probs: Likewise.
        values: Likewise.
        reward: Likewise.
        terminated: [B] bool, the episode reached a final state.
        truncated: [B] bool, the episode ran out of time.
        success: [B] bool, the episode ended in success.
        episode_return: [B] sum of the rewards of the episode, up to the end of this chunk.
        task: See `Batch`.
        state_id: Likewise.
        episode: Likewise.
        group: Likewise.
    """

    seen: Rows | None
    context: Rows | None
    trace: Rows
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor
    episode_return: Tensor
    task: Tensor
    state_id: Tensor
    episode: Tensor
    group: Tensor


class RolloutStorage:
    """T chunks in each of N slots, in memory allocated once and written again every iteration.

    Fill it with `add` for steps 0 ... T - 1, then `finish`; `add` with step 0 begins the next one.
    A slot whose episode has ended may rest: it gets no further steps.

    Args:
        num_steps: T, chunks per slot.
        num_slots: N, robots acting side by side.
        example: A step; only shapes, types and device of its rows matter.
        encode: Where `seen` is kept, computes the context of every minibatch, with gradients if
            anything it depends on is trained.

    Attributes:
        steps: All rows, step t of slot n in row t N + n.
        valid: [T, N] bool, where there is a chunk.
        log_probs: [T, N, P] float32, of the policy that collected.
        values: [T, N] float32, predicted while collecting.
        rewards: [T, N] float32.
        terminated: [T, N] bool.
        truncated: [T, N] bool.
        next_values: [T, N] float32, see `finish`.
        advantages: [T, N] float32, see `compute_advantages`.
        returns: [T, N] float32, likewise.
    """

    def __init__(
        self,
        num_steps: int,
        num_slots: int,
        example: Step,
        *,
        encode: Callable[[Any], Rows] | None = None,
    ) -> None:
        self.num_steps, self.num_slots = num_steps, num_slots
        self._encode = encode
        self.steps = example.allocate(num_steps * num_slots)
        # Views: what is written into [t, n] stands in row t N + n of the minibatches.
        shape, steps = (num_steps, num_slots), self.steps
        self.values = steps.values.view(shape)
        self.log_probs = steps.log_probs.view(*shape, -1)
        self.rewards = steps.reward.view(shape)
        self.terminated, self.truncated = steps.terminated.view(shape), steps.truncated.view(shape)
        self.next_values = torch.zeros_like(self.values)
        self.advantages = torch.zeros_like(self.values)
        self.returns = torch.zeros_like(self.values)
        self.valid = torch.zeros_like(self.terminated)
        self._outcomes = torch.zeros(2, num_steps * num_slots, device=self.values.device)
        self._index = torch.arange(num_steps * num_slots, device=self.values.device)
        self._num_added = np.zeros(num_slots, np.int64)
        self._finished = False

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    def add(self, step: int, rows: Step, slots: np.ndarray | None = None) -> None:
        """Store what some slots saw, chose and got in chunk `step`.

        Several threads may call it, each with slots of its own.

        Args:
            step: 0 begins a new rollout of these slots, the others follow in order.
            rows: One row a slot.
            slots: [B] which; all N in order by default.

        Raises:
            SpecError: A step out of order or beyond T, or a shape that does not fit.
        """
        if step >= self.num_steps:
            raise SpecError(
                f"RolloutStorage: step {step} does not fit, it holds {self.num_steps} steps; "
                "call finish and begin again with step 0"
            )
        slots = np.arange(self.num_slots) if slots is None else slots
        expected = self._num_added[slots]
        if step and (expected != step).any():
            wrong = np.flatnonzero(expected != step)[0]
            raise SpecError(
                f"RolloutStorage: got step {step} from slot {slots[wrong]}, expected step "
                f"{expected[wrong]}, or 0 to begin again"
            )
        self._check_shapes(rows, len(slots))
        if step == 0:
            self.valid[:, slots] = False
        first = step * self.num_slots + int(slots[0])
        if np.array_equal(slots, np.arange(slots[0], slots[0] + len(slots))):
            here = slice(first, first + len(slots))
        else:
            here = torch.from_numpy(step * self.num_slots + slots).to(self.device)
        rows.copy_into(self.steps, here)
        self.valid.view(-1)[here] = True
        self._num_added[slots] = step + 1
        self._finished = False

    def finish(self, next_values: ArrayLike | Tensor) -> None:
        """Complete the rollout.

        Args:
            next_values: [T, N] value of the observation that followed each chunk: the one of the
                next chunk, at a time limit the episode's own last one, before the slot was
                refilled. Ignored where terminated, but has to be a number.

        Raises:
            SpecError: Steps are missing, `next_values` has the wrong shape, or a number is not
                finite.
        """
        given = torch.as_tensor(next_values, dtype=torch.float32, device=self.device).detach()
        if given.shape != self.next_values.shape:
            raise SpecError(
                f"RolloutStorage: next_values has shape {tuple(given.shape)}, expected "
                f"{tuple(self.next_values.shape)}"
            )
        self._require_all_steps()
        self.next_values[:] = given
        columns = {
            "log_probs": self.log_probs.sum(dim=-1),
            "values": self.values,
            "reward": self.rewards,
            "next_values": self.next_values,
        }
        finite = torch.stack([column.isfinite() | ~self.valid for column in columns.values()])
        if not finite.all():
            name, (step, slot) = _first_bad(columns, finite)
            raise SpecError(
                f"RolloutStorage: {name}[{step}, {slot}] is {columns[name][step, slot].item()}, "
                "expected a finite number"
            )
        self._spread_outcomes()
        self._finished = True

    def compute_advantages(self, *, gamma: float, gae_lambda: float) -> None:
        """Fill `advantages` and `returns` by `generalized_advantages`; void where not valid."""
        self._require_finished("compute_advantages")
        void = ~self.valid  # behind the end of an episode: any number would do that is one
        advantages, returns = generalized_advantages(
            self.rewards.masked_fill(void, 0.0),
            self.values.masked_fill(void, 0.0),
            self.next_values.masked_fill(void, 0.0),
            terminated=self.terminated,
            truncated=self.truncated,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        self.advantages[:] = advantages
        self.returns[:] = returns

    @property
    def episodes(self) -> Tensor:
        """[T, N] int64, see `Batch.episode`."""
        return self.steps.episode.view(self.values.shape)

    @property
    def groups(self) -> Tensor:
        """[T, N] int64, see `Batch.group`."""
        return self.steps.group.view(self.values.shape)

    @property
    def episode_returns(self) -> Tensor:
        """[T, N] float32, see `Batch.episode_return`."""
        return self._outcomes[0].view(self.values.shape)

    @property
    def successes(self) -> Tensor:
        """[T, N] float32, see `Batch.success`."""
        return self._outcomes[1].view(self.values.shape)

    def minibatches(
        self,
        size: int,
        generator: torch.Generator,
        *,
        chosen: Tensor | None = None,
        whole_episodes: bool = False,
    ) -> Iterator[Batch]:
        """Yield copies of all chunks in random order, `size` at a time; the last may be smaller.

        Args:
            size: Chunks per minibatch.
            generator: On the CPU; draws the order.
            chosen: [T, N] bool, the others are left out.
            whole_episodes: Shuffle episodes, not chunks: one that is begun in a minibatch is in it
                as far as this rollout has it, so that there may be more chunks than `size`.
        """
        self._require_finished("minibatches")
        index = self._index
        if chosen is not None:
            index = index[(chosen & self.valid).view(-1)]
        elif self._num_added.min() < self.num_steps:
            index = index[self.valid.view(-1)]
        if whole_episodes:
            episodes = self.steps.episode[index].unique(return_inverse=True)[1]
            for rows in _split_by_episode(episodes, size, generator):
                yield self._batch(index[rows])
            return
        order = torch.randperm(len(index), generator=generator).to(self.device)
        for rows in order.split(size) if len(index) else ():
            yield self._batch(index[rows])

    def _batch(self, index: Tensor) -> Batch:
        steps, (episode_return, success) = self.steps.compact()[index], self._outcomes[:, index]
        context = steps.context if self._encode is None else self._encode(steps.seen)
        assert context is not None  # kept, or computed
        return Batch(
            index=index,
            seen=steps.seen,
            context=context,
            trace=steps.trace,
            actions=steps.actions,
            log_probs=steps.log_probs,
            values=steps.values,
            advantages=self.advantages.view(-1)[index],
            returns=self.returns.view(-1)[index],
            reward=steps.reward,
            task=steps.task,
            state_id=steps.state_id,
            episode=steps.episode,
            group=steps.group,
            episode_return=episode_return,
            success=success,
        )

    def _spread_outcomes(self) -> None:
        """Tell every chunk how its episode ended, if it did."""
        shape = self.values.shape
        ended = (self.terminated | self.truncated) & self.valid
        told = torch.stack([self.steps.episode_return, self.steps.success.float()]).view(2, *shape)
        outcomes, later = self._outcomes.view(2, *shape), told.new_full(told[:, 0].shape, np.nan)
        for step in reversed(range(self.num_steps)):
            later = torch.where(ended[step], told[:, step], later)
            outcomes[:, step] = later

    def _require_all_steps(self) -> None:
        """Check that slots without a chunk at the end rest after the end of an episode."""
        short = np.flatnonzero(self._num_added < self.num_steps)
        if not len(short):
            return
        last = torch.from_numpy(np.maximum(self._num_added[short] - 1, 0)).to(self.device)
        ended = (self.terminated | self.truncated)[last, torch.from_numpy(short).to(self.device)]
        if (self._num_added[short] == 0).any() or not ended.all():
            raise SpecError(
                f"RolloutStorage.finish: {self._num_added.sum()} of "
                f"{self.num_steps * self.num_slots} chunks were added, and not all of the slots "
                "without a chunk rest after the end of an episode"
            )

    def _require_finished(self, caller: str) -> None:
        if not self._finished:
            raise SpecError(f"RolloutStorage.{caller}: the rollout is not complete; call finish")

    def _check_shapes(self, rows: Step, num_rows: int) -> None:
        # Copying would broadcast a single row over all slots without a word.
        given, kept = rows.flatten(), self.steps.flatten()
        if given.keys() != kept.keys():
            different = sorted(given.keys() ^ kept.keys())[0]
            raise SpecError(f"RolloutStorage: '{different}' is kept in some steps only")
        for name, tensor in given.items():
            expected = (num_rows, *kept[name].shape[1:])
            if tuple(tensor.shape) != expected:
                raise SpecError(
                    f"RolloutStorage: {name} has shape {tuple(tensor.shape)}, expected {expected}"
                )


def _split_by_episode(episodes: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of minibatches of about `size`, of episodes numbered from 0 on [B]."""
    if not len(episodes):
        return
    order = torch.randperm(int(episodes.max()) + 1, generator=generator).to(episodes.device)
    rows = torch.argsort(order.argsort()[episodes], stable=True)  # by the place of their episode
    counts = episodes.bincount()[order]
    batches = torch.div(counts.cumsum(0) - counts, size, rounding_mode="floor")
    sizes = counts.new_zeros(int(batches[-1]) + 1).index_add(0, batches, counts)
    yield from rows.split([num for num in sizes.tolist() if num])


def _first_bad(columns: dict[str, Tensor], finite: Tensor) -> tuple[str, tuple[int, int]]:
    """Return the name of the first column that has a number that is not finite, and its place."""
    column, step, slot = (~finite).nonzero()[0].tolist()
    return [*columns][column], (step, slot)
