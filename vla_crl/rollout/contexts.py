"""Whether the contexts of a rollout are stored or computed again, and what that takes of memory."""

from dataclasses import dataclass
from typing import Literal

import torch

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import trains_backbone
from vla_crl.models.policy import VLAPolicy
from vla_crl.rows import Rows

Contexts = Literal["stored", "every_epoch"]
"""What an update gets of the backbone: what it left behind while collecting, or a fresh run over
the stored observations for every minibatch, with gradients where it is trained. One run an update,
kept for all epochs, would need the memory of the first and the time of a run more."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ContextPlan:
    """What is kept of T N chunks.

    Attributes:
        contexts: How an update gets them.
        num_rows: T N.
        row_bytes: Of a stored context, or of an observation.
        why: What decided.
    """

    contexts: Contexts
    num_rows: int
    row_bytes: int
    why: str

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return self.num_rows * self.row_bytes

    def __str__(self) -> str:
        """Say it in a line."""
        kept = "contexts" if self.contexts == "stored" else "observations"
        return (
            f"contexts {self.contexts} ({self.why}): {self.num_rows} {kept} of "
            f"{self.row_bytes / MIB:.3f} MiB are {self.num_bytes / MIB:.0f} MiB"
        )

    @property
    def advice(self) -> str:
        """What to do where there is no room for them."""
        other = "" if self.contexts == "every_epoch" else ", collector.contexts 'every_epoch'"
        return f"choose fewer collector.num_envs or collector.num_chunks{other}"


def plan_contexts(
    policy: VLAPolicy, num_rows: int, contexts: Contexts | None, max_stored_gib: float
) -> ContextPlan:
    """Decide how an update gets its contexts, and measure what one takes.

    Args:
        policy: With `requires_grad` as it will be trained.
        num_rows: Chunks of a rollout.
        contexts: What was asked for. None: computed again where the backbone is trained, or where
            stored ones would take more than `max_stored_gib`; else stored.
        max_stored_gib: For contexts that are stored unasked.

    Raises:
        ConfigError: Stored contexts were asked for, but the backbone is trained.
    """
    with torch.no_grad():
        seen = policy.tokenize(policy.example_observation())
        context = policy.encode(seen)
    context_bytes = _row_bytes(context)
    is_trained = trains_backbone(policy)
    if is_trained and contexts == "stored":
        raise ConfigError(
            "collector.contexts is 'stored', but weights of the backbone are trained, which stored "
            "contexts cannot tell; leave it out"
        )
    if is_trained:
        contexts, why = "every_epoch", "the backbone is trained"
    elif contexts is not None:
        why = "as the recipe says"
    elif num_rows * context_bytes <= max_stored_gib * 2**30:
        contexts, why = "stored", "the backbone is frozen"
    else:
        taken = num_rows * context_bytes / 2**30
        contexts, why = "every_epoch", f"stored ones would take {taken:.1f} GiB"
    kept = context_bytes if contexts == "stored" else _row_bytes(seen)
    return ContextPlan(contexts=contexts, num_rows=num_rows, row_bytes=kept, why=why)


def _row_bytes(rows: Rows) -> int:
    return sum(t.element_size() * t.numel() for t in rows.flatten().values()) // len(rows)
