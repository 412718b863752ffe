"""What an attention of transformers is made to leave behind, and to read: keys and values."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vla_crl.models.context import Context

RECORDING_ATTENTION = "vla_crl_recording_sdpa"
"""Its name among those of transformers."""


@dataclass
class Past:
    """Keys and values of tokens that stand behind a context, for those that follow them.

    Attributes:
        keys: [B, kv_heads, n, head_dim] of each layer, after the rotary embedding; none at first.
        values: Likewise.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0


@dataclass
class Recorder:
    """Collects what a pass over the text model leaves of the prefix.

    Attributes:
        prefix_length: L.
        last_layer: Index of the text layer whose attention ends the pass, or None.
        keys: Post-RoPE keys [B, kv_heads, L, head_dim] of the layers so far.
        values: Likewise.
        hidden: What went into the last layer.
    """

    prefix_length: int
    last_layer: int | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    hidden: Tensor | None = None


@dataclass
class Reader:
    """Shows a pass over the text model what stands before its tokens, and keeps theirs.

    Attributes:
        context: The prefix.
        past: Tokens behind it, which get more with every layer.
        layer: Index of the next layer.
    """

    context: Context
    past: Past
    layer: int = 0

    def read(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all that the tokens of one layer may see."""
        index, past = self.layer, self.past
        self.layer += 1
        if index == len(past.keys):
            past.keys.append(key)
            past.values.append(value)
        else:
            past.keys[index] = torch.cat([past.keys[index], key], dim=2)
            past.values[index] = torch.cat([past.values[index], value], dim=2)
        keys, values = self.context.keys[:, index], self.context.values[:, index]
        return (
            torch.cat([keys.to(key.dtype), past.keys[index]], dim=2),
            torch.cat([values.to(key.dtype), past.values[index]], dim=2),
        )


class ContextComplete(Exception):  # noqa: N818
    """Ends a pass after the last keys and values: nothing would read what follows."""


def recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    recorder: Recorder | None = None,
    reader: Reader | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Record a prefix's keys and values, or read those of one; then run transformers' sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if reader is not None:
        read = reader.read(key, value)
        return sdpa_attention_forward(module, query, *read, attention_mask, **kwargs)
    assert recorder is not None
    recorder.keys.append(key[:, :, : recorder.prefix_length])
    recorder.values.append(value[:, :, : recorder.prefix_length])
    if len(recorder.keys) - 1 == recorder.last_layer:
        raise ContextComplete
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def record_hidden(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record what goes into the last layer, if somebody wants to know."""
    if recorder := kwargs.get("recorder"):
        recorder.hidden = args[0] if args else kwargs["hidden_states"]
