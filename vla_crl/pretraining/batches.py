"""Batches of commands and questions, drawn from demonstrations of one or several origins."""

from collections.abc import Sequence

import numpy as np
import torch

from vla_crl.models.context import TokenizedObservation
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.token_heads import SupervisedBatch
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.sim.simulation import NO_THING


def questions(things: Sequence[str]) -> list[str]:
    """Return what a policy is asked to learn where things are."""
    return [f"where is the {thing}" for thing in things]


class BatchSampler:
    """Draws batches in which demonstrations of each origin have their part."""

    def __init__(
        self,
        policy: VLAPolicy,
        origins: Sequence[Demonstrations],
        *,
        batch_size: int,
        question_fraction: float,
        weights: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """Tokenise all sentences once.

        Args:
            policy: Which is to learn; its words and things.
            origins: One or more.
            batch_size: Samples of a batch.
            question_fraction: Part of the samples that ask where something is, of those of which
                somebody knows.
            weights: How often each origin is drawn from, relative to one another; () means as
                often as it has steps.
            seed: Of all that is drawn.
        """
        self._origins = [_Origin(policy, origin, question_fraction) for origin in origins]
        weight = np.array(weights or [len(origin) for origin in origins], np.float64)
        weight /= weight.max()  # the sum of large ones might be infinite
        self.shares = weight / weight.sum()
        self._batch_size = batch_size
        self._rng = np.random.default_rng(seed)

    def draw(self) -> SupervisedBatch:
        """Return the next batch, on the CPU."""
        if len(self._origins) == 1:
            return self._origins[0].draw(self._batch_size, self._rng)
        counts = self._rng.multinomial(self._batch_size, self.shares)
        drawn = zip(self._origins, counts.tolist(), strict=True)
        return SupervisedBatch.cat([origin.draw(num, self._rng) for origin, num in drawn if num])


class _Origin:
    """Demonstrations, with their sentences as the policy reads them and its things among theirs."""

    def __init__(
        self, policy: VLAPolicy, demonstrations: Demonstrations, question_fraction: float
    ) -> None:
        self._data = demonstrations
        self._question_fraction = question_fraction
        self._horizon = policy.config.action_horizon
        self._num_commands = len(demonstrations.instructions)
        things = demonstrations.things
        # What nobody has told the place of is not there.
        self._columns = [
            things.index(thing) if thing in things else NO_THING for thing in policy.config.things
        ]
        self._token_ids, self._word_mask = policy.tokenizer.encode(
            [*demonstrations.instructions, *questions(things)]
        )

    def draw(self, num: int, rng: np.random.Generator) -> SupervisedBatch:
        """Return some samples, on the CPU."""
        data = self._data
        steps = rng.integers(len(data), size=num)
        has_grounding = data.has_grounding[steps]
        is_question = (rng.random(num) < self._question_fraction) & has_grounding
        is_there = data.object_visible[steps].any(axis=1)  # [B, things]
        draws = np.pad(rng.random(is_there.shape) * is_there, ((0, 0), (0, 1)))
        asked = np.argmax(draws, axis=1)  # padded: there may be no thing to choose from
        question = np.stack([asked, np.full(num, NO_THING)], axis=1)
        named = np.where(is_question[:, None], question, data.named[steps])
        sentence = torch.from_numpy(
            np.where(is_question, self._num_commands + asked, data.task[steps])
        )
        chunk = steps[:, None] + np.arange(self._horizon)
        end = data.episode_end[steps][:, None]
        rows = np.arange(num)[:, None]
        # One more column, the last, for NO_THING: it is never visible.
        uv = np.pad(data.object_uv[steps], ((0, 0), (0, 0), (0, 1), (0, 0)))
        visible = np.pad(data.object_visible[steps], ((0, 0), (0, 0), (0, 1)))
        return SupervisedBatch(
            observation=TokenizedObservation(
                images=torch.from_numpy(data.images[steps]),
                state=torch.from_numpy(data.state[steps]),
                token_ids=self._token_ids[sentence],
                word_mask=self._word_mask[sentence],
            ),
            action_chunk=torch.from_numpy(data.label[np.minimum(chunk, end - 1)]),
            action_mask=torch.from_numpy(chunk < end),
            has_action=torch.from_numpy(~is_question),
            named_uv=torch.from_numpy(uv[rows, :, named]),
            named_visible=torch.from_numpy(visible[rows, :, named]),
            object_uv=torch.from_numpy(uv[:, :, self._columns]),
            object_visible=torch.from_numpy(visible[:, :, self._columns]),
            has_grounding=torch.from_numpy(has_grounding),
        )
