"""Flow-matching action expert that reads the backbone's keys and values layer by layer."""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval, MultipleOf
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.config import Settings, Size
from vla_crl.errors import ConfigError
from vla_crl.models.backbone import BackboneSizes
from vla_crl.models.context import Context
from vla_crl.models.rope import Rotation, rope_frequencies, rotate, rotation

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Periods of the flow time embedding, as in pi_0 (arXiv 2410.24164)."""


@dataclass(frozen=True, kw_only=True)
class ActionExpertConfig(Settings):
    """Sizes of the action expert; depth and key/value heads are the backbone's."""

    width: Annotated[int, Interval(ge=4, le=2**16), MultipleOf(2)] = 96
    """Width of the action expert."""
    num_heads: Size = 4
    """Query heads, a multiple of the backbone's key/value heads."""
    mlp_width: Size = 256
    """Hidden width of the gated MLP."""
    num_action_tokens: Size = 2
    """Tokens that carry the chunk, each with an equal part of its actions."""


class Memory(NamedTuple):
    """What the action expert reads of a context.

    Attributes:
        keys: [B, layers, kv_heads, L, head_dim].
        values: Likewise.
        mask: [B, 1, D * tokens, L + D * tokens], 0 where a row may see a column, else -inf; None
            where it may see all.
        turn: Of the own tokens' positions, see `rotation`.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    turn: Rotation


class ActionExpert(nn.Module):
    """Predicts the clean action chunk from a noisy one, its flow time and the context.

    Every layer attends with one softmax to [context ; own tokens]; own tokens of one draw see
    each other in both directions. This equals the joint attention of pi_0 (arXiv 2410.24164),
    because no context token attends to the expert. Its weights and numbers are float32, whatever
    the context's keys and values are.
    """

    rope_frequencies: Tensor

    def __init__(
        self,
        config: ActionExpertConfig,
        backbone: BackboneSizes,
        action_horizon: int,
        action_dim: int,
    ) -> None:
        """Build the expert that fits `backbone`.

        Raises:
            ConfigError: Its heads cannot share the backbone's key and value heads.
        """
        super().__init__()
        if config.num_heads % backbone.num_kv_heads:
            raise ConfigError(
                f"head.expert.num_heads = {config.num_heads} must be a multiple of the "
                f"backbone's {backbone.num_kv_heads} key and value heads"
            )
        self.config = config
        self.chunk_shape = (action_horizon, action_dim)
        width = config.width
        token_dim = action_horizon // config.num_action_tokens * action_dim
        self.action_in = nn.Linear(token_dim, width)
        self.token_embedding = nn.Parameter(0.02 * torch.randn(config.num_action_tokens, width))
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            ActionExpertLayer(config, backbone) for _ in range(backbone.num_layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.action_out = nn.Linear(width, token_dim)
        frequencies = rope_frequencies(backbone.rope_theta, backbone.head_dim)
        self.register_buffer("rope_frequencies", frequencies, persistent=False)

    def remember(self, context: Context, draws: int = 1) -> Memory:
        """Prepare what `forward` reads of the context; in several steps from noise it is the same.

        Args:
            context: B observations.
            draws: D, chunks for each.
        """
        tokens = self.config.num_action_tokens
        mask = _attention_mask(context.padding_mask, draws, tokens)
        turn = self._rotation(context.next_position, draws)
        return Memory(context.keys, context.values, mask, turn)

    def forward(self, memory: Memory, x: Tensor, flow_time: Tensor) -> Tensor:
        """Return the predicted clean chunks [B, D, H, A].

        All D draws of an observation are tokens of one sequence that do not see each other, so
        the context is neither repeated nor read more than once.

        Args:
            memory: Of B observations, for D draws.
            x: [B, D, H, A] noisy chunks.
            flow_time: [B, D], 1 = noise, 0 = clean.
        """
        batch, draws = flow_time.shape
        tokens = self.config.num_action_tokens
        hidden = self.action_in(x.reshape(batch, draws, tokens, -1)) + self.token_embedding
        hidden = hidden + self.time_mlp(_time_embedding(flow_time, self.config.width))[:, :, None]
        hidden = hidden.flatten(1, 2)
        for index, layer in enumerate(self.layers):
            # A layer at a time: all of them in float32 would be twice the memory of bfloat16's.
            keys, values = memory.keys[:, index], memory.values[:, index]
            read = keys.to(hidden.dtype), values.to(hidden.dtype)
            hidden = layer(hidden, read, memory.mask, memory.turn)
        return self.action_out(self.norm(hidden)).reshape(batch, draws, *self.chunk_shape)

    def _rotation(self, next_position: Tensor, draws: int) -> Rotation:
        """Return cosine and sine [B, 1, D * tokens, head_dim] from `next_position` on."""
        steps = torch.arange(self.config.num_action_tokens, device=next_position.device)
        positions = next_position[:, None] + steps.repeat(draws)
        return rotation(positions[:, None], self.rope_frequencies)


class ActionExpertLayer(nn.Module):
    """Pre-norm attention over [context ; own] and a gated MLP."""

    def __init__(self, config: ActionExpertConfig, backbone: BackboneSizes) -> None:
        """Build one layer."""
        super().__init__()
        width, head_dim = config.width, backbone.head_dim
        self.head_dim = head_dim
        self.num_kv_heads = backbone.num_kv_heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.q_proj = nn.Linear(width, config.num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, backbone.num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, backbone.num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * head_dim, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_proj = nn.Linear(width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, width, bias=False)

    def forward(
        self,
        hidden: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor | None,
        turn: Rotation,
    ) -> Tensor:
        """Map hidden states [B, S, width]; memory is keys and values [B, kv_heads, L, head_dim]."""
        hidden = hidden + self._attend(self.attention_norm(hidden), memory, mask, turn)
        normed = self.mlp_norm(hidden)
        gated = functional.silu(self.gate_proj(normed)) * self.up_proj(normed)
        return hidden + self.down_proj(gated)

    def _attend(
        self,
        hidden: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor | None,
        turn: Rotation,
    ) -> Tensor:
        batch, length, _ = hidden.shape
        query = rotate(self._heads(self.q_proj(hidden)), turn)
        keys = memory[0], rotate(self._heads(self.k_proj(hidden)), turn)
        values = memory[1], self._heads(self.v_proj(hidden))
        # Query heads that share a key head become more rows of it: nothing is repeated. And the
        # softmax runs over two products, so that the long memory is not copied behind the own few.
        query = query.reshape(batch, self.num_kv_heads, -1, self.head_dim)
        groups = query.shape[2] // length
        scores = torch.cat([query @ part.transpose(2, 3) for part in keys], dim=-1)
        scores = scores * self.head_dim**-0.5
        if mask is not None:
            scores = scores + mask.repeat(1, 1, groups, 1)
        weights = scores.softmax(dim=-1).split([part.shape[2] for part in keys], dim=-1)
        output = weights[0] @ values[0] + weights[1] @ values[1]
        output = output.reshape(batch, -1, length, self.head_dim).transpose(1, 2)
        return self.o_proj(output.flatten(2))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _attention_mask(padding_mask: Tensor, draws: int, tokens: int) -> Tensor | None:
    """Return `Memory.mask`."""
    if draws == 1 and not torch.compiler.is_exporting() and padding_mask.all():
        return None
    draw = torch.arange(draws, device=padding_mask.device).repeat_interleave(tokens)
    own = draw[:, None] == draw[None, :]
    batch, length = padding_mask.shape
    seen = padding_mask[:, None, :].expand(batch, len(draw), length)
    visible = torch.cat([seen, own.expand(batch, -1, -1)], dim=-1)[:, None]
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -math.inf)


def _time_embedding(flow_time: Tensor, width: int) -> Tensor:
    """Embed flow time [...] as sines and cosines [..., width] of geometric periods."""
    fraction = torch.linspace(0.0, 1.0, width // 2, device=flow_time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = 2.0 * math.pi * flow_time[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
