"""Vision-language backbone: a model of transformers and a recorder for its keys and values."""

import math
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.compute import Dtype
from vla_crl.errors import ConfigError
from vla_crl.models.attention import (
    RECORDING_ATTENTION,
    ContextComplete,
    Past,
    Reader,
    Recorder,
    record_hidden,
    recording_attention,
)
from vla_crl.models.context import Context
from vla_crl.models.rope import rope_frequencies, rotate, rotation
from vla_crl.models.vlm import VisionLanguageModel

NUM_PROBES = 20
"""Tokens on which a text model is tried out."""
TORCH_DTYPE: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What torch calls the types of numbers in which a backbone may compute."""


@dataclass(frozen=True)
class BackboneSizes:
    """What the rest of a policy has to know of its backbone; measured, not configured.

    Attributes:
        width: Of a token.
        num_layers: Layers of the text model.
        num_kv_heads: Key and value heads of a layer.
        head_dim: Numbers per head.
        rope_theta: Base of the rotary position embedding.
        tokens_per_side: Image tokens along one edge of an image.
    """

    width: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    tokens_per_side: int


@dataclass(frozen=True)
class BackboneOutput:
    """Result of one pass; everything but the context's keys and values is float32.

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


class Backbone(nn.Module):
    """A vision-language model, called part by part.

    Chat templates, special image tokens and the splitting of images are skipped: the caller builds
    the sequence of embeddings and this class runs it with its own attention mask.

    Here is the border between types of numbers: float32 goes in and comes out, but for keys and
    values, which are of the type in which the model computes.

    Attributes:
        dtype: In which it computes.
        weight_dtype: Of its weights: `dtype` where they are frozen, or float32, to be trained; the
            model then computes under autocast.
        sizes: What was measured.
    """

    def __init__(
        self, vlm: VisionLanguageModel, num_cameras: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """Take over the model.

        Args:
            vlm: With weights in `dtype`, or in float32.
            num_cameras: Images per observation.
            dtype: In which the model computes.

        Raises:
            ConfigError: It is of a kind that cannot be a backbone.
        """
        super().__init__()
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        AttentionInterface.register(RECORDING_ATTENTION, recording_attention)
        AttentionMaskInterface.register(RECORDING_ATTENTION, sdpa_mask)
        self.vlm = vlm
        self.model = vlm.model
        self.dtype, self.weight_dtype = dtype, next(vlm.model.parameters()).dtype
        self.sizes = self._measure()
        # Where in which camera a token comes from. Rotary positions only shape attention; the
        # action expert reads values, and those must say where the named object is.
        position = torch.randn(num_cameras, self.sizes.tokens_per_side**2, self.sizes.width)
        # What a pretrained model knows of its tokens is not to be disturbed.
        scale = 0.0 if vlm.is_pretrained else IMAGE_POSITION_SCALE
        self.image_position = nn.Parameter(scale * position)

    @property
    def text_model(self) -> Any:
        """The decoder that image, word and state tokens run through."""
        return self.model.get_decoder()

    @property
    def feature_dim(self) -> int:
        """Width F of `Context.features`."""
        return 2 * self.sizes.width

    def embed_images(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W, 3] uint8 to image tokens [B, C, T, width]."""
        with self._precision(images.device):
            tokens = self.vlm.embed_images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return tokens.float() + self.image_position

    def embed_words(self, token_ids: Tensor) -> Tensor:
        """Map word numbers [B, W] to embeddings [B, W, width]."""
        return self.model.get_input_embeddings()(token_ids).float()

    def context(
        self, prefix: Tensor, valid: Tensor, *, padded_length: int | None = None
    ) -> Context:
        """Run the prefix through the text model as far as the context needs it.

        Args:
            prefix: See `forward`.
            valid: Likewise.
            padded_length: L of the context, at least that of the prefix and the same by default.
        """
        recorder = Recorder(prefix.shape[1])
        if not torch.compiler.is_exporting():  # there what nothing reads is dropped anyway
            recorder.last_layer = self.sizes.num_layers - 1
        with suppress(ContextComplete):
            self._run(prefix, valid, recorder)
        return self._recorded(recorder, valid, padded_length or prefix.shape[1])

    def forward(
        self, prefix: Tensor, valid: Tensor, queries: Tensor | None = None
    ) -> BackboneOutput:
        """Run prefix and query tokens through the text model.

        Prefix tokens see all valid prefix tokens; a query token sees them and itself. Nothing
        sees a query, so queries change neither the context nor the chunk of actions.

        Args:
            prefix: [B, L, width] embeddings. The first one is the state token, whose position is
                behind all others: at the end of the array it would have padding before it.
            valid: [B, L] bool, True before False; the state token is always valid.
            queries: [Q, width] learned embeddings, or none.
        """
        length = prefix.shape[1]
        recorder = Recorder(length)
        output = self._run(prefix, valid, recorder, queries)
        return BackboneOutput(
            self._recorded(recorder, valid, length),
            first_hidden=output.hidden_states[1][:, :length].float(),
            state_hidden=output.hidden_states[-2][:, 0].float(),
            query_hidden=output.last_hidden_state[:, length:].float(),
        )

    def extend(
        self, context: Context, tokens: Tensor, *, causal: bool, past: Past | None = None
    ) -> Tensor:
        """Continue the text model behind a context: return what it makes of more tokens.

        They see all valid tokens of the context, what is in `past`, and one another: all of them,
        or each only those before it and itself.

        Args:
            context: Of B observations, stored or fresh; only keys, values and positions are read.
            tokens: [B, Q, width] float32 embeddings.
            causal: See above.
            past: Tokens of earlier calls behind the same contexts; these ones are added to it.

        Returns:
            [B, Q, width] float32, the last hidden states.
        """
        past = Past() if past is None else past
        num_past, (batch, num_tokens) = len(past), tokens.shape[:2]
        steps = torch.arange(num_past, num_past + num_tokens, device=tokens.device)
        own = torch.ones(num_tokens, num_past + num_tokens, dtype=torch.bool, device=tokens.device)
        own = own.tril(num_past) if causal else own
        seen = context.padding_mask[:, None].expand(batch, num_tokens, -1)
        mask = torch.cat([seen, own.expand(batch, -1, -1)], dim=-1)[:, None]
        with self._precision(tokens.device):
            output = self.text_model(
                inputs_embeds=tokens.to(self.weight_dtype),
                attention_mask=mask,
                position_ids=context.next_position[:, None] + steps,
                use_cache=False,
                reader=Reader(context, past),
            )
        return output.last_hidden_state.float()

    def _run(
        self, prefix: Tensor, valid: Tensor, recorder: Recorder, queries: Tensor | None = None
    ) -> Any:
        """Call the text model."""
        next_position = valid.sum(dim=1)
        positions = (valid.cumsum(dim=1) - 2).clamp(min=0)
        positions[:, 0] = next_position - 1
        embeddings, num_queries = prefix, 0
        if queries is not None:
            num_queries = len(queries)
            embeddings = torch.cat([prefix, queries.expand(len(prefix), -1, -1)], dim=1)
            steps = torch.arange(num_queries, device=prefix.device)
            positions = torch.cat([positions, next_position[:, None] + steps], dim=1)
        with self._precision(prefix.device):
            return self.text_model(
                inputs_embeds=embeddings.to(self.weight_dtype),
                attention_mask=_attention_mask(valid, num_queries),
                position_ids=positions,
                use_cache=False,
                output_hidden_states=recorder.last_layer is None,
                recorder=recorder,
            )

    def _recorded(self, recorder: Recorder, valid: Tensor, length: int) -> Context:
        """Return what a pass left, padded to `length`."""
        assert recorder.hidden is not None  # every text model has a layer
        num_valid = valid.sum(dim=1)
        hidden = recorder.hidden[:, : recorder.prefix_length].float()
        hidden = functional.rms_norm(hidden, hidden.shape[-1:])
        mean = torch.einsum("blw,bl->bw", hidden, valid.to(hidden.dtype)) / num_valid[:, None]
        return Context(
            keys=_by_layer(recorder.keys, length, self.dtype),
            values=_by_layer(recorder.values, length, self.dtype),
            padding_mask=functional.pad(valid, (0, length - valid.shape[1])),
            next_position=num_valid,
            features=torch.cat([mean, hidden[:, 0]], dim=-1),
        )

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.weight_dtype == self.dtype:
            return nullcontext()
        return torch.autocast(device.type, self.dtype)

    @torch.no_grad()
    def _measure(self) -> BackboneSizes:
        """Run one black image and a few equal tokens, and look at what comes out."""
        model, text_model, size = self.model, self.text_model, self.vlm.image_transform.size
        was_training, device = self.training, next(model.parameters()).device
        self.eval()
        try:
            text_model.set_attn_implementation(RECORDING_ATTENTION)
            text_model.layers[-1].register_forward_pre_hook(record_hidden, with_kwargs=True)
            black = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
            with self._precision(device):
                image_tokens = self.vlm.embed_images(black)
            width = image_tokens.shape[-1]
            prefix = torch.arange(width, device=device).sin().expand(1, NUM_PROBES, width)
            valid = torch.ones(1, NUM_PROBES, dtype=torch.bool, device=device)
            keys = self(prefix, valid).context.keys.float()
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{self.vlm.name}: a {type(model).__name__} cannot be one. Expected a model that "
                "turns images of one size into tokens, and a text model whose attention can be "
                f"exchanged; {type(error).__name__}: {error}"
            ) from error
        self.train(was_training)
        sizes = BackboneSizes(
            width=width,
            num_layers=keys.shape[1],
            num_kv_heads=keys.shape[2],
            head_dim=keys.shape[4],
            rope_theta=float(text_model.config.rope_parameters["rope_theta"]),
            tokens_per_side=math.isqrt(image_tokens.shape[1]),
        )
        if not (keys.isfinite().all() and image_tokens.isfinite().all()):
            raise ConfigError(f"{self.vlm.name}: its weights give numbers that are not finite")
        if sizes.tokens_per_side**2 != image_tokens.shape[1]:
            raise ConfigError(
                f"{self.vlm.name}: a {type(model).__name__} gives {image_tokens.shape[1]} tokens "
                "an image, expected a square grid of them"
            )
        # Equal tokens stay equal in all layers, whoever attends to whom: only positions differ.
        frequencies = rope_frequencies(sizes.rope_theta, sizes.head_dim).to(device)
        positions = torch.arange(NUM_PROBES, device=device).roll(1)  # the state token comes last
        turned = rotate(keys[:, :, :, 1:2], rotation(positions, frequencies))
        rounding = max(1e-3, 16 * torch.finfo(self.dtype).eps)
        tolerance = rounding * keys.abs().amax(dim=(2, 3, 4), keepdim=True)  # of each layer
        is_turned = bool(((keys - turned).abs() <= tolerance).all())
        if sizes.num_layers != len(text_model.layers) or not is_turned:
            raise ConfigError(
                f"{self.vlm.name}: a {type(text_model).__name__} does not turn the keys of each of "
                f"its {len(text_model.layers)} layers as Llama does, which is how the action "
                "expert turns its own"
            )
        return sizes


def _by_layer(layers: list[Tensor], length: int, dtype: torch.dtype) -> Tensor:
    """Join [B, kv_heads, L, head_dim] of each layer to [B, layers, kv_heads, `length`, head_dim].

    In memory, layers are outermost.
    """
    batch, heads, given, head_dim = layers[0].shape
    joined = layers[0].new_zeros((len(layers), batch, heads, length, head_dim), dtype=dtype)
    for index, layer in enumerate(layers):
        joined[index, :, :, :given] = layer
    return joined.transpose(0, 1)


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
