"""Another policy that a learner looks at: a teacher, or one that is not to be left."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.protocols import Batch, Reference
from vla_crl.compute import ComputeConfig
from vla_crl.contracts import check_fits
from vla_crl.density import Density
from vla_crl.errors import ConfigError
from vla_crl.files.reading import shown
from vla_crl.models.checkpoint import load_policy
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.contexts import Contexts


def make_reference(
    which: str, policy: VLAPolicy, compute: ComputeConfig, contexts: Contexts
) -> Reference:
    """Return what says how likely another policy finds what `policy` has done.

    Args:
        which: "base" is the policy without its adapters, "previous_task" the policy as it is now,
            anything else a preset or a checkpoint's folder.
        policy: What learns.
        compute: Where a checkpoint is loaded to.
        contexts: How updates get those of `policy`.

    Raises:
        ConfigError: The checkpoint is of another robot or head, or looks with another backbone at
            contexts that are stored.
        CheckpointError: It is missing or damaged.
    """
    if which == "base":
        if not policy.adapters.names:
            raise ConfigError(
                "learner.reference is 'base', the policy without its adapters, but it has none; "
                "name the base policy's preset or folder"
            )
        return reference_by(policy, lambda: policy.adapters.acting({}))
    if which == "previous_task":
        kept = {name: p.detach().clone() for name, p in policy_parameters(policy).items()}
        return reference_by(policy, lambda: _weights(policy, kept))
    teacher = load_policy(which, device=compute.device, dtype=compute.dtype)
    teacher.requires_grad_(False)
    where = f"reference '{which}' of the learner"
    check_fits(teacher.embodiment, policy.embodiment, where)
    _check_head(teacher, policy, where)
    _check_senses(teacher, policy, where)
    teacher.explore(policy.exploration)
    sees_alike = _see_alike(teacher, policy)
    if contexts == "stored" and not sees_alike:
        raise ConfigError(
            f"{where}: has another backbone than the policy, so it needs observations, but "
            "contexts are stored; set collector.contexts = 'every_epoch'"
        )
    return reference_by(teacher, torch.no_grad, sees_alike=sees_alike)


def reference_by(
    policy: Any,
    acting: Callable[[], AbstractContextManager[object]],
    *,
    sees_alike: bool = True,
) -> Reference:
    """Return what says how likely a policy finds chunks while it acts in another way.

    Args:
        policy: Any.
        acting: Returns a block in which it acts so.
        sees_alike: Whether it has the backbone that the contexts of batches are of.
    """

    def density(batch: Batch) -> Density:
        looks_anew = batch.is_of_trained_backbone or not sees_alike
        with torch.no_grad(), acting():
            context = policy.encode(batch.seen) if looks_anew else batch.context
            return policy.evaluate_actions(context, batch.trace).density

    return density


@contextmanager
def _weights(policy: VLAPolicy, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a policy act with other weights; the graph of what was computed before stays whole."""
    parameters = {name: p for name, p in policy.named_parameters() if name in weights}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _check_head(teacher: VLAPolicy, policy: VLAPolicy, where: str) -> None:
    theirs, ours = _head(teacher), _head(policy)
    if theirs != ours:
        raise ConfigError(
            f"{where}: its head is {theirs}, that of the policy {ours}; one cannot judge what the "
            "other has sampled. Choose a policy with the same head"
        )


@torch.no_grad()
def _head(policy: VLAPolicy) -> str:
    """Name a head, with all that another one needs to judge its samples."""
    context = policy.encode(policy.example_observation())
    trace = policy.act(context, deterministic=False, generator=torch.Generator()).trace
    density = policy.evaluate_actions(context, trace).density
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in density.parameters.items()}
    num_steps = getattr(policy.config.head, "num_steps", None)
    steps = f" in {num_steps} steps" if num_steps else ""
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    return (
        f"'{policy.config.head.kind}'{steps} ({told} of {policy.config.execution_horizon} actions)"
    )


def _check_senses(teacher: VLAPolicy, policy: VLAPolicy, where: str) -> None:
    for setting in ("image_size", "vocabulary", "max_words"):
        theirs, ours = getattr(teacher.config, setting), getattr(policy.config, setting)
        if theirs != ours:
            raise ConfigError(
                f"{where}: its {setting} is {shown(theirs)}, that of the policy {shown(ours)}; it "
                "would not see what the policy has seen. Choose a policy of the same settings"
            )
    for name in ("action_mean", "action_std"):
        if not torch.equal(getattr(teacher.norm_stats, name), getattr(policy.norm_stats, name)):
            raise ConfigError(
                f"{where}: its norm_stats.{name} is another than the policy's, so that the same "
                "number is another action; choose one that was pretrained on the same data"
            )


@torch.no_grad()
def _see_alike(one: VLAPolicy, other: VLAPolicy) -> bool:
    seen = other.example_observation()
    ours, theirs = one.encode(seen).flatten(), other.encode(seen).flatten()
    return all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
