"""What an update is given: batches of chunks, a policy, a rollout and the hooks of a method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vla_crl.density import Evaluation
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Batch(Rows):
    """B chunks of a rollout, in the order drawn.

    Attributes:
        index: [B] int64 position in the flattened [T, N] rollout.
        seen: Tokenized observations, where these were kept and contexts are computed of them.
        context: What the policy's `encode` left behind.
        trace: How the chunks were sampled, e.g. the stored flow step.
        actions: [B, H, A] the chunks in [-1, 1], of which the leading ones were executed.
        log_probs: [B, P] of the parts of the trace under the policy that collected it.
        values: [B] predicted while collecting.
        advantages: [B] as estimated, not normalised.
        returns: [B] advantages + values.
        reward: [B] sum over the steps of the chunk.
        task: [B] int64 index of the task in the suite.
        state_id: [B] int64 initial state of the episode.
        episode: [B] int64, one number an episode, given to no other of the stage.
        group: [B] int64; episodes of one group have one task and one initial state.
        episode_return: [B] sum of the episode's rewards, also of those before this rollout; NaN
            where the episode was not over when the rollout ended.
        success: [B] 1 where the episode ended in success, 0 where it did not, NaN as above.
    """

    index: Tensor
    seen: Rows | None
    context: Rows
    trace: Rows
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    reward: Tensor
    task: Tensor
    state_id: Tensor
    episode: Tensor
    group: Tensor
    episode_return: Tensor
    success: Tensor


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn with one step size.

    Attributes:
        name: Unique among the groups of an optimizer.
        parameters: By their names in the policy.
        learning_rate: Adam step size.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float


class ActorCritic(Protocol):
    """What PPO needs of a policy (an `nn.Module`)."""

    @property
    def value_head(self) -> nn.Module:
        """The module whose parameters learn at `value_learning_rate`."""
        ...

    def evaluate_actions(self, context: Any, trace: Any, /) -> Evaluation:
        """Return density and value of stored chunks."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters; those that require gradients are trained."""
        ...


class Rollout(Protocol):
    """What PPO and methods need of a finished rollout of at most T chunks in each of N slots."""

    @property
    def steps(self) -> Any:
        """Rows of all T N chunks: seen, trace, actions, task, episode and more; see `Step`."""
        ...

    @property
    def episodes(self) -> Tensor:
        """[T, N] int64, see `Batch.episode`."""
        ...

    @property
    def successes(self) -> Tensor:
        """[T, N], see `Batch.success`."""
        ...

    @property
    def valid(self) -> Tensor:
        """[T, N] bool: where there is a chunk; elsewhere the slot rested, and numbers are void."""
        ...

    @property
    def values(self) -> Tensor:
        """Predicted while collecting, [T, N]."""
        ...

    @property
    def advantages(self) -> Tensor:
        """Result of `compute_advantages`, [T, N]."""
        ...

    @property
    def returns(self) -> Tensor:
        """Result of `compute_advantages`, [T, N]."""
        ...

    def compute_advantages(self, *, gamma: float, gae_lambda: float) -> None:
        """Fill `advantages` and `returns`."""
        ...

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield copies of all chunks there are, each once, in random order."""
        ...


class UpdateHooks(Protocol):
    """Where a continual-learning method takes part in an update; see `ContinualMethod`."""

    def before_update(self, policy: Any, rollout: Any) -> None:
        """Look at a rollout whose advantages are estimated."""
        ...

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the factor [B] on each chunk's policy loss."""
        ...

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        """Return scalars to add to the loss, by name."""
        ...

    def transform_grads(self, policy: Any) -> None:
        """Change `.grad` of the policy's parameters in place, before clipping."""
        ...

    def after_step(self, policy: Any) -> None:
        """Look at the policy after an optimizer step."""
        ...
