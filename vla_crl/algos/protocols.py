"""What an update is given: parameters, a policy, data in batches, and the hooks of a method."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vla_crl.density import Density, Evaluation
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
        advantages: [B] as the learner uses them, so normalised if it normalises them.
        returns: [B] what values are to predict.
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

    @property
    def is_of_trained_backbone(self) -> bool:
        """Whether the context changes with what is trained, so that it carries the graph.

        Another policy than the trained one has another context then, to be computed of `seen`.
        """
        return any(column.requires_grad for column in self.context.flatten().values())


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """B chunks of demonstrations: `actions` are what to do in what is seen.

    The trace is one that the policy has just sampled there, so that everything that looks at
    densities sees one.

    Attributes:
        mask: [B, H] bool, False past the end of the episode.
    """

    mask: Tensor


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn at one step size.

    Attributes:
        name: Of the group.
        parameters: By their names in the policy.
        learning_rate: Adam's step size.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float


Reference = Callable[[Batch], Density]
"""What another policy says about a batch: without graph, of the kind and shape of the policy's."""


class ActorCritic(Protocol):
    """What learners and methods need of a policy (an `nn.Module`)."""

    @property
    def value_head(self) -> nn.Module:
        """The module that predicts returns; its parameters have a gradient limit of their own."""
        ...

    @property
    def learnt_exploration(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters of the density alone, such as a learnt deviation.

        A supervised loss has no path to them, and leaves them as they are.
        """
        ...

    def encode(self, seen: Any, /) -> Any:
        """Return the context of tokenized observations."""
        ...

    def evaluate_actions(self, context: Any, trace: Any, /) -> Evaluation:
        """Return density and value of stored chunks."""
        ...

    def imitation(
        self, context: Any, actions: Tensor, mask: Tensor, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the supervised loss [B] of chunks [B, H, A] in [-1, 1], where mask [B, H] is."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters; those that require gradients are trained."""
        ...


class Rollout(Protocol):
    """What learners and methods need of a finished rollout of at most T chunks in N slots."""

    @property
    def steps(self) -> Any:
        """Rows of all T N chunks: seen, trace, actions, task, episode and more; see `Step`."""
        ...

    @property
    def valid(self) -> Tensor:
        """[T, N] bool: where there is a chunk; elsewhere the slot rested, and numbers are void."""
        ...

    @property
    def rewards(self) -> Tensor:
        """Of the chunks, [T, N]."""
        ...

    @property
    def values(self) -> Tensor:
        """Predicted while collecting, [T, N]."""
        ...

    @property
    def advantages(self) -> Tensor:
        """Of the last estimate, [T, N]; learners write into it."""
        ...

    @property
    def returns(self) -> Tensor:
        """Likewise."""
        ...

    @property
    def episodes(self) -> Tensor:
        """[T, N] int64, see `Batch.episode`."""
        ...

    @property
    def groups(self) -> Tensor:
        """[T, N] int64, see `Batch.group`."""
        ...

    @property
    def episode_returns(self) -> Tensor:
        """[T, N], see `Batch.episode_return`."""
        ...

    @property
    def successes(self) -> Tensor:
        """[T, N], see `Batch.success`."""
        ...

    def compute_advantages(self, *, gamma: float, gae_lambda: float) -> None:
        """Fill `advantages` and `returns` by generalised advantage estimation."""
        ...

    def minibatches(
        self,
        size: int,
        generator: torch.Generator,
        *,
        chosen: Tensor | None = None,
        whole_episodes: bool = False,
    ) -> Iterator[Batch]:
        """Yield copies of the chunks there are, each once, in random order.

        Args:
            size: Chunks per minibatch.
            generator: Draws the order.
            chosen: [T, N] bool, the others are left out.
            whole_episodes: Keep those of an episode together, so a minibatch may be larger.
        """
        ...


class Labels(Protocol):
    """What supervised learners need of demonstrations."""

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[LabelledBatch]:
        """Yield the demonstrated chunks, each once, in random order."""
        ...


class UpdateHooks(Protocol):
    """Where a continual-learning method takes part in an update; see `ContinualMethod`."""

    def before_update(self, policy: Any, rollout: Any) -> None:
        """Look at all data of an update, advantages included, before its first step."""
        ...

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the factor [B] on each chunk's policy loss."""
        ...

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Return named scalars to add to the loss."""
        ...

    def transform_grads(self, policy: Any) -> None:
        """Change `.grad` of the policy's parameters in place, before clipping."""
        ...

    def after_step(self, policy: Any) -> None:
        """Look at the policy after an optimizer step."""
        ...
