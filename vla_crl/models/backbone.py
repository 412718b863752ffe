"""Vision-language backbone: transformers' SmolVLM parts and a recorder for keys and values."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vla_crl.errors import ConfigError
from vla_crl.models.context import Context
from vla_crl.models.tokenizer import PADDING_ID

RECORDING_ATTENTION = "vla_crl_recording_sdpa"


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Sizes of the vision tower, the pixel-shuffle connector and the text model."""

    num_cameras: int = 2
    """Images per observation."""
    image_size: int = 64
    """Height and width of an image in pixels."""
    patch_size: int = 8
    """Height and width of a patch in pixels."""
    vision_width: int = 96
    """Width of the vision tower."""
    num_vision_layers: int = 1
    """Transformer layers of the vision tower; 0 leaves patches, positions and a norm."""
    num_vision_heads: int = 3
    """Attention heads of the vision tower."""
    vision_mlp_width: int = 192
    """Hidden width of the vision tower's MLP."""
    pixel_shuffle: int = 2
    """Edge of the square of patches that becomes one token."""
    width: int = 128
    """Width of the text model."""
    num_layers: int = 3
    """Layers of the text model; the expert has as many."""
    num_heads: int = 4
    """Query heads of the text model."""
    num_kv_heads: int = 4
    """Key and value heads; fewer make the stored context smaller."""
    mlp_width: int = 320
    """Hidden width of the text model's gated MLP."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights; 0.02 learns more slowly at this width."""

    def __post_init__(self) -> None:
        """Check what the parts demand of each other."""
        patches = self.image_size // self.patch_size
        for name, whole, part in (
            ("image_size by patch_size", self.image_size, self.patch_size),
            ("patches per side by pixel_shuffle", patches, self.pixel_shuffle),
            ("vision_width by num_vision_heads", self.vision_width, self.num_vision_heads),
            ("width by 2 * num_heads", self.width, 2 * self.num_heads),
            ("num_heads by num_kv_heads", self.num_heads, self.num_kv_heads),
        ):
            if part < 1 or whole < 1 or whole % part:
                raise ConfigError(f"backbone: {name} must divide evenly, got {whole} by {part}")
        if self.num_layers < 1 or self.num_vision_layers < 0 or self.num_cameras < 1:
            raise ConfigError(
                "backbone: needs num_layers >= 1, num_vision_layers >= 0 and num_cameras >= 1, got "
                f"{self.num_layers}, {self.num_vision_layers} and {self.num_cameras}"
            )

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one edge of an image."""
        return self.image_size // self.patch_size // self.pixel_shuffle

    @property
    def tokens_per_image(self) -> int:
        """Image tokens of one camera, row by row from the top left."""
        return self.tokens_per_side**2

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True)
class BackboneOutput:
    """Result of one pass.

    Attributes:
        context: Keys, values and features of the prefix.
        first_hidden: [B, L, width] prefix after text block 0.
        state_hidden: [B, width] state token before the last text block, whose keys and values it
            therefore reaches.
        query_hidden: [B, Q, width] last hidden state of the query tokens.
    """

    context: Context
    first_hidden: Tensor
    state_hidden: Tensor
    query_hidden: Tensor


IMAGE_POSITION_SCALE = 0.5
"""Standard deviation of the initial position embeddings; image tokens have about 1."""


@dataclass
class _Recorder:
    """Collects post-RoPE keys and values [B, kv_heads, L, head_dim] of the prefix, by layer."""

    prefix_length: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Backbone(nn.Module):
    """SmolVLM vision tower, connector and text model, called part by part.

    The processor and image splitting of SmolVLM are skipped: the caller builds the sequence of
    embeddings and this class runs it with its own attention mask.
    """

    def __init__(self, config: BackboneConfig, vocab_size: int) -> None:
        """Build the model with random weights."""
        super().__init__()
        self.config = config
        self.model = _build_smolvlm(config, vocab_size)
        # Where in which camera a token comes from. Rotary positions only shape attention; the
        # expert reads values, and those must say where the named object is.
        position = torch.randn(config.num_cameras, config.tokens_per_image, config.width)
        self.image_position = nn.Parameter(IMAGE_POSITION_SCALE * position)

    @property
    def feature_dim(self) -> int:
        """Width F of `Context.features`."""
        return 2 * self.config.width

    def embed_images(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W, 3] uint8 to image tokens [B, C, T, width]."""
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2)
        # SmolVLM's own normalisation: mean and standard deviation 0.5.
        pixels = pixels.to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)
        patches = self.model.vision_model(pixel_values=pixels).last_hidden_state
        tokens = self.model.connector(patches).unflatten(0, images.shape[:2])
        return tokens + self.image_position

    def embed_words(self, token_ids: Tensor) -> Tensor:
        """Map word numbers [B, W] to embeddings [B, W, width]."""
        return self.model.text_model.embed_tokens(token_ids)

    def forward(
        self, prefix: Tensor, valid: Tensor, queries: Tensor | None = None
    ) -> BackboneOutput:
        """Run prefix and query tokens through the text model.

        Prefix tokens see all valid prefix tokens; a query token sees them and itself. Nothing
        sees a query, so queries change neither the context nor the expert.

        Args:
            prefix: [B, L, width] embeddings; the last one is the state token and always valid.
            valid: [B, L] bool.
            queries: [Q, width] learned embeddings, or none.
        """
        batch, length, _ = prefix.shape
        num_queries = 0 if queries is None else len(queries)
        next_position = valid.sum(dim=1)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
        embeddings = prefix
        if queries is not None:
            embeddings = torch.cat([prefix, queries.expand(batch, -1, -1)], dim=1)
            steps = torch.arange(num_queries, device=prefix.device)
            positions = torch.cat([positions, next_position[:, None] + steps], dim=1)
        recorder = _Recorder(length)
        output = self.model.text_model(
            inputs_embeds=embeddings,
            attention_mask=_attention_mask(valid, num_queries),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            recorder=recorder,
        )
        hidden = output.last_hidden_state
        weights = valid.to(hidden.dtype)
        mean = torch.einsum("blw,bl->bw", hidden[:, :length], weights) / next_position[:, None]
        context = Context(
            keys=torch.stack(recorder.keys, dim=1),
            values=torch.stack(recorder.values, dim=1),
            padding_mask=valid,
            next_position=next_position,
            features=torch.cat([mean, hidden[:, length - 1]], dim=-1),
        )
        return BackboneOutput(
            context,
            first_hidden=output.hidden_states[1][:, :length],
            state_hidden=output.hidden_states[-2][:, length - 1],
            query_hidden=hidden[:, length:],
        )


def _attention_mask(valid: Tensor, num_queries: int) -> Tensor:
    """Return [B, 1, L + Q, L + Q] bool, True where a row may see a column."""
    batch, length = valid.shape
    total = length + num_queries
    columns = torch.cat([valid, valid.new_zeros(batch, num_queries)], dim=1)
    mask = columns[:, None, None, :].expand(batch, 1, total, total)
    if num_queries:
        own = torch.zeros(total, dtype=torch.bool, device=valid.device)
        own[length:] = True
        mask = mask | torch.diag(own)
    return mask


def _build_smolvlm(config: BackboneConfig, vocab_size: int) -> Any:
    from transformers import AttentionInterface, LlamaConfig, SmolVLMConfig, SmolVLMModel
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    AttentionInterface.register(RECORDING_ATTENTION, _recording_attention)
    AttentionMaskInterface.register(RECORDING_ATTENTION, sdpa_mask)
    vision = SmolVLMVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=config.vision_mlp_width,
        num_hidden_layers=config.num_vision_layers,
        num_attention_heads=config.num_vision_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        initializer_range=config.initializer_range,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=config.initializer_range,
        pad_token_id=PADDING_ID,
        bos_token_id=None,
        eos_token_id=None,
    )
    whole = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=config.pixel_shuffle)
    whole._attn_implementation = "sdpa"
    model = SmolVLMModel(whole)
    model.text_model.set_attn_implementation(RECORDING_ATTENTION)
    return model


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    recorder: _Recorder,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Record the prefix's keys and values, then run transformers' sdpa attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    recorder.keys.append(key[:, :, : recorder.prefix_length])
    recorder.values.append(value[:, :, : recorder.prefix_length])
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
