"""Supervised heads that train the backbone: discrete actions, answers and grounding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.models.context import TokenizedObservation
from vla_crl.rows import Rows

GROUNDING_TERMS = frozenset({"answer_tokens", "presence", "offset", "pointer", "named_offset"})
"""Losses whose labels say where things are."""
LOSS_TERMS = frozenset({"imitation", "action_tokens"}) | GROUNDING_TERMS
"""Names of all supervised losses."""
NUM_ROLES = 2
"""Things that a sentence names: what is to be moved (or asked for), and where it goes."""
QUERY_TERMS = frozenset({"action_tokens"})
"""Losses that need the query tokens."""


@dataclass(frozen=True)
class SupervisedBatch(Rows):
    """Labelled observations; masks say which labels a row has.

    Attributes:
        observation: B of them.
        action_chunk: [B, H, A] raw actions in [-1, 1].
        action_mask: [B, H] bool, False past the end of the episode.
        has_action: [B] bool, False for questions.
        named_uv: [B, R, C, 2] of the things that the sentence names, right and down, in [0, 1).
        named_visible: [B, R, C] bool, False also where the sentence names nothing in that role.
        object_uv: [B, C, O, 2] of every thing that the policy knows by name, in [0, 1).
        object_visible: [B, C, O] bool.
        has_grounding: [B] bool, False where nobody knows what is where: there "not visible" does
            not mean that nothing is there.
    """

    observation: TokenizedObservation
    action_chunk: Tensor
    action_mask: Tensor
    has_action: Tensor
    named_uv: Tensor
    named_visible: Tensor
    object_uv: Tensor
    object_visible: Tensor
    has_grounding: Tensor

    @property
    def named_known(self) -> Tensor:
        """[B, R, C] bool: there is a label where the named thing is."""
        return self.named_visible & self.has_grounding[:, None, None]

    @property
    def object_known(self) -> Tensor:
        """[B, C, O] bool: there is a label where the object is."""
        return self.object_visible & self.has_grounding[:, None, None]


class TokenHeads(nn.Module):
    """Discrete actions and answers in a small vocabulary of their own.

    Actions are read from query tokens. Answers, the image positions of the named things, are read
    from the state token before the last block: there the action expert finds them beside the pose
    of the robot.

    Deviation from knowledge insulation (arXiv 2505.23705): all bins of a token are predicted in
    parallel instead of FAST tokens one after the other.
    """

    def __init__(
        self,
        width: int,
        *,
        num_action_tokens: int,
        numbers_per_token: int,
        num_action_bins: int,
        num_position_bins: int,
        num_cameras: int,
    ) -> None:
        """Build queries and linear heads; each query predicts `numbers_per_token` numbers."""
        super().__init__()
        self.num_action_bins = num_action_bins
        self.num_position_bins = num_position_bins
        self.num_cameras = num_cameras
        self.queries = nn.Parameter(0.02 * torch.randn(num_action_tokens, width))
        self.action_bins = nn.Linear(width, numbers_per_token * num_action_bins)
        self.position_bins = nn.Linear(width, NUM_ROLES * num_cameras * 2 * num_position_bins)

    def action_logits(self, query_hidden: Tensor, action_dim: int) -> Tensor:
        """Return [B, H, A, bins] from the last hidden states [B, Q, width] of the queries."""
        logits = self.action_bins(query_hidden)
        return logits.reshape(len(logits), -1, action_dim, self.num_action_bins)

    def answer_logits(self, state_hidden: Tensor) -> Tensor:
        """Return [B, R, C, 2, bins] from [B, width]: across and down in each camera."""
        shape = (NUM_ROLES, self.num_cameras, 2, self.num_position_bins)
        return self.position_bins(state_hidden).unflatten(-1, shape)

    def action_loss(self, query_hidden: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean cross-entropy of the binned actions."""
        bins = to_bins((batch.action_chunk + 1.0) / 2.0, self.num_action_bins)
        logits = self.action_logits(query_hidden, batch.action_chunk.shape[-1])
        valid = (batch.action_mask & batch.has_action[:, None])[..., None].expand_as(bins)
        return cross_entropy(logits, bins, valid)

    def answer_loss(self, state_hidden: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean cross-entropy of the position bins of all visible named things."""
        bins = to_bins(batch.named_uv, self.num_position_bins)
        valid = batch.named_known[..., None].expand_as(bins)
        return cross_entropy(self.answer_logits(state_hidden), bins, valid)


class GroundingHeads(nn.Module):
    """Which image token holds what: dense for every object, pointed at for the named ones."""

    def __init__(self, width: int, tokens_per_side: int, num_objects: int) -> None:
        """Build the linear heads."""
        super().__init__()
        self.tokens_per_side = tokens_per_side
        self.num_objects = num_objects
        rows = max(num_objects, 1)  # torch warns of layers without any output
        self.presence = nn.Linear(width, rows)
        self.offset = nn.Linear(width, 2 * rows)
        self.pointer = nn.Linear(width, NUM_ROLES)
        self.named_offset = nn.Linear(width, NUM_ROLES * 2)

    def presence_logits(self, image_tokens: Tensor) -> Tensor:
        """Return [B, C, T, O] from projected image tokens [B, C, T, width]."""
        return self.presence(image_tokens)[..., : self.num_objects]

    def offsets(self, image_tokens: Tensor) -> Tensor:
        """Return [B, C, T, O, 2] in token widths from the token's centre, each about +-0.5."""
        return self.offset(image_tokens).unflatten(-1, (-1, 2))[..., : self.num_objects, :]

    def pointer_logits(self, first_hidden: Tensor) -> Tensor:
        """Return [B, R, C, T] from image tokens [B, C, T, width] after text block 0."""
        return self.pointer(first_hidden).movedim(-1, 1)

    def presence_loss(self, image_tokens: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean binary cross-entropy over all tokens and objects of labelled rows."""
        logits = self.presence_logits(image_tokens)
        label = functional.one_hot(self._token_of(batch.object_uv), logits.shape[2])
        label = (label * batch.object_visible[..., None]).transpose(-1, -2)
        if not logits.numel():  # no object has a name: the mean of nothing is no number
            return logits.sum()
        known = batch.has_grounding
        mean = functional.binary_cross_entropy_with_logits(
            logits, label.to(logits.dtype), weight=known[:, None, None, None].to(logits.dtype)
        )
        return mean * (len(known) / known.sum().clamp(min=1))

    def offset_loss(self, image_tokens: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean squared error, in token widths, at the tokens that hold an object."""
        token = self._token_of(batch.object_uv)
        index = token[:, :, None, :, None].expand(-1, -1, 1, -1, 2)
        prediction = self.offsets(image_tokens).gather(2, index).squeeze(2)
        error = (prediction - self._offset_in_token(batch.object_uv)).square().mean(dim=-1)
        return masked_mean(error, batch.object_known)

    def pointer_loss(self, first_hidden: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean cross-entropy over the cameras that see the named things."""
        logits = self.pointer_logits(first_hidden)
        return cross_entropy(logits, self._token_of(batch.named_uv), batch.named_known)

    def named_offset_loss(self, first_hidden: Tensor, batch: SupervisedBatch) -> Tensor:
        """Return the mean squared error, in token widths, at the tokens of the named things."""
        offsets = self.named_offset(first_hidden).unflatten(-1, (NUM_ROLES, 2)).movedim(-2, 1)
        token = self._token_of(batch.named_uv)
        index = token[..., None, None].expand(-1, -1, -1, 1, 2)
        error = offsets.gather(3, index).squeeze(3) - self._offset_in_token(batch.named_uv)
        return masked_mean(error.square().mean(dim=-1), batch.named_known)

    def _token_of(self, uv: Tensor) -> Tensor:
        cell = to_bins(uv, self.tokens_per_side)
        return cell[..., 1] * self.tokens_per_side + cell[..., 0]

    def _offset_in_token(self, uv: Tensor) -> Tensor:
        scaled = uv * self.tokens_per_side
        return scaled - scaled.floor() - 0.5


def to_bins(values: Tensor, num_bins: int) -> Tensor:
    """Return the number, 0 to `num_bins` - 1, of the equal bin of [0, 1] each value falls in."""
    return (values * num_bins).long().clamp(0, num_bins - 1)


def cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over valid entries; classes are the last dimension of `logits`."""
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none"
    ).view_as(labels)
    return masked_mean(losses, valid)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the valid values, 0 if there is none."""
    return (values * valid).sum() / valid.sum().clamp(min=1)
