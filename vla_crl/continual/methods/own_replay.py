"""Replay of one's own successes: chunks that once led to success stay likely while others train.

Experience replay as self-imitation: of every task the policy keeps chunks of its own episodes that
ended in success, and in later stages adds how unlikely they have become,

    L = L_policy - coefficient * mean_j log pi_theta(trace_j | o_j),

over a draw of what is kept of earlier tasks (ER in Hu et al. 2026, arXiv 2603.11653, there of
demonstrations; behavioural cloning on kept data as in ClonEx-SAC, Wolczyk et al. 2022,
arXiv 2209.13900; the likelihood of one's own good actions: Oh et al. 2018, arXiv 1806.05635).
Nothing can be kept of a task that was not trained yet, as it is the policy's own experience, and
nothing is demonstrated. What was sampled is kept and not only what was done: the supervised loss of
a flow would also teach it the exploration noise in the actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.protocols import ActorCritic, Batch, Rollout
from vla_crl.config import Count, Fraction, Settings, Size
from vla_crl.continual.memory import ReplayMemory
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.successes import SuccessfulChunks
from vla_crl.density import Evaluation
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.rows import Rows


@dataclass(frozen=True, kw_only=True)
class OwnReplayConfig(Settings):
    """Settings of `OwnReplay`."""

    coefficient: Annotated[float, Interval(ge=0, le=1e9)] = 0.1
    """Weight of the likelihood in the loss. With this its gradient is about a fifth of the policy
    loss's, for the flow head of `tiny` (replay_grad_ratio in metrics.jsonl)."""
    quota: Count = 2000
    """Chunks that are kept of each task."""
    fraction: Fraction = 0.25
    """Chunks replayed in a step, as a part of a minibatch."""
    num_drawn: Size = 256
    """Chunks that are drawn for an update, in equal parts of the earlier tasks; its steps take
    theirs of these."""


@dataclass(frozen=True)
class OwnChunk(Rows):
    """What is kept of B chunks.

    Attributes:
        seen: What was observed.
        trace: What was sampled.
    """

    seen: Rows
    trace: Rows


class OwnReplay(ContinualMethod):
    """Keep successful chunks of one's own of earlier tasks likely."""

    config_class = OwnReplayConfig
    config: OwnReplayConfig
    paper = "arXiv 2209.13900, arXiv 2603.11653"
    stores = "observations and samples of its own successful chunks, `quota` a task"
    needs_observations = True
    needs_rollouts = True
    needs_shared_parameters = True

    def __init__(self, config: OwnReplayConfig) -> None:
        """Begin with an empty memory."""
        super().__init__(config)
        self._memory = ReplayMemory(config.quota)
        self._successes = SuccessfulChunks()
        self._stage: Stage | None = None
        self._drawn: tuple[OwnChunk, Any] | None = None

    def before_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Open the memory."""
        self._memory.open(stage.folder)
        self._stage, self._drawn = stage, None
        self._successes.begin()

    def before_update(self, policy: Any, rollout: Rollout) -> None:
        """Keep what succeeded, and draw what is replayed in this update."""
        stage = self._required_stage
        rows = OwnChunk(rollout.steps.seen, rollout.steps.trace)
        for task, records in self._successes.of(rollout, rows):
            self._memory.add(task, records, stage.rng)
        now = {stage.suite.task_index(name) for name in stage.tasks}
        earlier = [task for task in self._memory.tasks if task not in now]
        if not earlier:
            return
        num_drawn = max(self.config.num_drawn, len(earlier))
        drawn = self._memory.draw(num_drawn, earlier, stage.rng, rows).to(rollout.valid.device)
        with torch.no_grad():
            self._drawn = drawn, policy.encode(drawn.seen)

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        """Return minus the mean log-density of some of the drawn chunks, times the coefficient."""
        num_chunks = round(self.config.fraction * len(batch))
        if self._drawn is None or not num_chunks:
            return {}
        chunks, context = self._drawn
        rows = torch.randint(len(chunks), (num_chunks,), generator=self._required_stage.generator)
        rows = rows.to(batch.advantages.device)
        is_trained = batch.is_of_trained_backbone
        seen_anew = policy.encode(chunks.seen[rows]) if is_trained else context[rows]
        density = policy.evaluate_actions(seen_anew, chunks.trace[rows]).density
        return {"replay": -self.config.coefficient * density.log_prob().sum(dim=1).mean()}

    def after_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Bring together what is kept of the stage's tasks."""
        self._memory.close_stage([stage.suite.task_index(name) for name in stage.tasks])
        self._drawn = None

    def metrics(self) -> dict[str, float]:
        """Return how many chunks are kept."""
        return {"num_kept": float(len(self._memory))}

    def state_dict(self) -> dict[str, Tensor]:
        """Return where chunks lie, and those of episodes that are not over yet."""
        parts = {"memory": self._memory.state_dict(), "open": self._successes.state_dict()}
        return join_states(parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self._memory.load_state_dict(part_of(state, "memory"))
        self._successes.load_state_dict(part_of(state, "open"))

    @property
    def _required_stage(self) -> Stage:
        assert self._stage is not None  # before_task comes first
        return self._stage
