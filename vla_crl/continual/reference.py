"""Another policy that a learner looks at: a teacher, or one that is not to be left."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.protocols import Batch, Reference
from vla_crl.compute import ComputeConfig
from vla_crl.continual.beginning import example_evaluation
from vla_crl.contracts import check_fits
from vla_crl.density import Density
from vla_crl.errors import ConfigError
from vla_crl.files.reading import shown
from vla_crl.models.adapters import acting_alike
from vla_crl.models.checkpoint import load_policy
from vla_crl.models.earlier_weights import exchanged
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.contexts import Contexts


def make_reference(
    which: str,
    policy: VLAPolicy,
    compute: ComputeConfig,
    contexts: Contexts,
    *,
    tasks: Mapping[int, str],
    setting: str = "learner.reference",
) -> Reference:
    """Return what says how likely another policy finds what `policy` has done.

    Args:
        which: "base" is the policy as it was before it had adapters, "previous_task" the policy as
            it is now, anything else a preset or a checkpoint's folder.
        policy: What learns.
        compute: Where a checkpoint is loaded to.
        contexts: How updates get those of `policy`.
        tasks: Names of those that are trained, by their numbers in the suite. In each a checkpoint
            acts as its adapters' route says.
        setting: That names it.

    Raises:
        ConfigError: The checkpoint is of another robot or head, knows not what to do in a task, or
            looks with another backbone at contexts that are stored; or there is no base.
        CheckpointError: It is missing or damaged.
    """
    if which == "base":
        require_base(policy, setting, "name the base policy's preset or folder")
        return reference_by(policy, policy.adapters.as_base)
    if which == "previous_task":
        return as_it_is(policy)
    teacher = load_policy(which, device=compute.device, dtype=compute.dtype)
    teacher.requires_grad_(False)
    where = f"reference '{which}' of the learner"
    check_fits(teacher.embodiment, policy.embodiment, where)
    _check_head(teacher, policy, where)
    _check_senses(teacher, policy, where)
    teacher.explore(policy.exploration)
    try:
        alike = acting_alike(teacher, tasks.values())
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    sees_alike = all(_see_alike(teacher, policy, group[0]) for group in alike)
    if contexts == "stored" and not sees_alike:
        raise ConfigError(
            f"{where}: has another backbone than the policy, so it needs observations, but "
            "contexts are stored; set collector.contexts = 'every_epoch'"
        )
    first = {name: group[0] for group in alike for name in group}
    acts_as = {number: first[name] for number, name in tasks.items()}
    return reference_by(teacher, torch.no_grad, sees_alike=sees_alike, acts_as=acts_as)


def require_base(policy: Any, setting: str, advice: str) -> None:
    """Check that a policy can act as the one without its adapters.

    Args:
        policy: As it will be trained.
        setting: That is "base".
        advice: What to do otherwise.

    Raises:
        ConfigError: It has none, so what it was before is gone when it is trained.
    """
    if not policy.adapters.names:
        raise ConfigError(
            f"{setting} is 'base', the policy without its adapters, but it has none; {advice}"
        )


def as_it_is(policy: Any) -> Reference:
    """Return what the policy as it is now says, whatever it learns from now on.

    All weights that are trained now are copied, be they of adapters, of the base or of what the
    head explores with.

    Args:
        policy: With `requires_grad` as it will be trained.
    """
    kept = {name: p.detach().clone() for name, p in policy_parameters(policy).items()}
    return reference_by(policy, lambda: exchanged(policy, kept))


def reference_by(
    policy: Any,
    acting: Callable[[], AbstractContextManager[object]],
    *,
    sees_alike: bool = True,
    acts_as: Mapping[int, str] | None = None,
) -> Reference:
    """Return what says how likely a policy finds chunks while it acts in another way.

    Args:
        policy: Any.
        acting: Returns a block in which it acts so.
        sees_alike: Whether it has the backbone that the contexts of batches are of.
        acts_as: By the number of a task in the suite, the name of one in which the policy's route
            says the same. None: it acts as it does, whatever the task.
    """

    def density(batch: Batch) -> Density:
        looks_anew = batch.is_of_trained_backbone or not sees_alike

        def look(rows: Batch) -> Density:
            context = policy.encode(rows.seen) if looks_anew else rows.context
            return policy.evaluate_actions(context, rows.trace).density

        with torch.no_grad(), acting():
            return look(batch) if acts_as is None else _by_task(policy, batch, acts_as, look)

    return density


def _by_task(
    policy: Any, batch: Batch, acts_as: Mapping[int, str], look: Callable[[Batch], Density]
) -> Density:
    """Let a policy look at the rows of each task as its route says, and put them together."""
    if len(names := list(dict.fromkeys(acts_as.values()))) == 1:
        with policy.adapters.routed(names[0]):
            return look(batch)
    acting = [acts_as[number] for number in batch.task.tolist()]
    rows, parts = list[Tensor](), list[Density]()
    for name in dict.fromkeys(acting):
        own = [row for row, other in enumerate(acting) if other == name]
        rows.append(torch.tensor(own, device=batch.task.device))
        with policy.adapters.routed(name):
            parts.append(look(batch[rows[-1]]))
    return type(parts[0]).cat(parts)[torch.cat(rows).argsort()]


def _check_head(teacher: VLAPolicy, policy: VLAPolicy, where: str) -> None:
    theirs, ours = _head(teacher), _head(policy)
    if theirs != ours:
        raise ConfigError(
            f"{where}: its head is {theirs}, that of the policy {ours}; one cannot judge what the "
            "other has sampled. Choose a policy with the same head"
        )


def _head(policy: VLAPolicy) -> str:
    """Name a head, with all that another one needs to judge its samples."""
    told = example_evaluation(policy).density.parameters
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in told.items()}
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
def _see_alike(teacher: VLAPolicy, policy: VLAPolicy, task: str) -> bool:
    seen = policy.example_observation()
    with teacher.adapters.routed(task):
        theirs = teacher.encode(seen).flatten()
    return all(
        torch.equal(tensor, theirs[n]) for n, tensor in policy.encode(seen).flatten().items()
    )
