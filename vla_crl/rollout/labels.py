"""Demonstrations as batches that learners and methods take like those of a rollout."""

from collections.abc import Iterator

import numpy as np
import torch

from vla_crl.algos.protocols import LabelledBatch
from vla_crl.contracts import Observation
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.demonstrations import Demonstrations


class LabelledSteps:
    """What was demonstrated, step by step, as a policy sees it."""

    def __init__(self, policy: VLAPolicy, demonstrations: Demonstrations) -> None:
        """Copy nothing.

        Args:
            policy: Which is to learn; encodes what is seen.
            demonstrations: Of one suite; `task` counts its tasks.
        """
        self._policy, self._data = policy, demonstrations
        self._episode = np.unique(demonstrations.episode_end, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self._data)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[LabelledBatch]:
        """Yield all steps in random order, `size` at a time, with the chunk that begins there.

        Args:
            size: Steps per minibatch; the last may be smaller.
            generator: On the CPU; draws the order and the traces.
        """
        for index in torch.randperm(len(self), generator=generator).split(size):
            yield self._batch(index, generator)

    def _batch(self, index: torch.Tensor, generator: torch.Generator) -> LabelledBatch:
        data, policy, steps = self._data, self._policy, index.numpy()
        instructions = tuple(data.instructions[task] for task in data.task[steps])
        seen = policy.tokenize(Observation(data.images[steps], data.state[steps], instructions))
        context = policy.encode(seen)
        chunk = policy.act(context.detach(), deterministic=False, generator=generator)
        chunk_steps = steps[:, None] + np.arange(policy.config.action_horizon)
        end, episode = data.episode_end[steps][:, None], self._episode[steps]
        none, number = torch.zeros_like(chunk.value), torch.from_numpy(episode)
        success = torch.from_numpy(data.episode_success[episode]).to(none)
        return LabelledBatch(
            index=index.to(policy.device),
            seen=seen,
            context=context,
            trace=chunk.trace,
            actions=torch.from_numpy(data.label[np.minimum(chunk_steps, end - 1)]).to(none),
            log_probs=chunk.log_prob,
            values=chunk.value,
            advantages=none,
            returns=none,
            reward=none,
            task=torch.from_numpy(data.task[steps].astype(np.int64)).to(policy.device),
            state_id=torch.full_like(number, -1).to(policy.device),
            episode=number.to(policy.device),
            group=number.to(policy.device),
            episode_return=success,
            success=success,
            mask=torch.from_numpy(chunk_steps < end).to(policy.device),
        )
