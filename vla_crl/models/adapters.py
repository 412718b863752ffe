"""Which parameters are trained, adapters or base weights, and what is then stored of a policy."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from vla_crl.errors import ConfigError, SpecError
from vla_crl.files.state_dicts import require_like
from vla_crl.models.adapted_linear import AdaptedLinear
from vla_crl.models.gradient_paths import reached
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.sites import Group, light_names, site_of
from vla_crl.models.weights import changed_weights

ADAPTER = "default"
"""Name of the adapter that a recipe trains."""
SHOWN_NAMES = 3


def add_lora(policy: VLAPolicy, config: LoRAConfig) -> None:
    """Add the adapter that a recipe trains, and train nothing else but the value head.

    The policy's output is left unchanged.

    Raises:
        ConfigError: The policy has it already, its settings fit no layer, or there is no room.
    """
    policy.adapters.add(ADAPTER, config)
    train_adapters(policy, [ADAPTER])


def train_adapters(policy: VLAPolicy, names: Collection[str]) -> None:
    """Train some adapters, the router if there is one, and the value head; freeze all else.

    Raises:
        ConfigError: An unknown adapter.
    """
    light = light_names(policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in light)
    policy.adapters.train_only(names)


def train_only(policy: VLAPolicy, *groups: Group) -> None:
    """Make all base parameters of these groups trainable and freeze the others."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(site_of(name) in groups)


def train_reached(policy: VLAPolicy, *groups: Group) -> None:
    """Train the base parameters of these groups on which actions or value depend, freeze the rest.

    Of a backbone the last text layer's queries and MLP, for one, may reach neither.

    Raises:
        ConfigError: None of a group is left.
    """
    train_only(policy, *groups)
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    found = reached(policy, [p for _, p in named], with_value=True)
    for (_, parameter), is_reached in zip(named, found, strict=True):
        parameter.requires_grad_(is_reached)
    for group in set(groups) - trainable_parameters(policy).keys():
        raise ConfigError(_unreached(policy, group, f"all parameters of '{group}'"))


def trainable_parameters(policy: VLAPolicy) -> dict[Group, list[Parameter]]:
    """Return the trainable parameters by group, without empty groups."""
    groups: dict[Group, list[Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(site_of(name), []).append(parameter)
    return groups


def trains_backbone(policy: VLAPolicy) -> bool:
    """Tell whether training changes contexts, by weights, adapters or router of the backbone."""
    groups, bank = trainable_parameters(policy), policy.adapters
    if "backbone" in groups:
        return True
    layers = (layer for name in bank.route.names for layer in bank.layouts[name].ranks)
    return "router" in groups and any(site_of(layer) == "backbone" for layer in layers)


def check_loss_paths(policy: VLAPolicy) -> None:
    """Fail before training if the gradient of actions and value misses a trainable parameter.

    A chunk is sampled for an example observation, and the gradients of its log-probability and of
    the value are computed, whatever the action head.

    Args:
        policy: With `requires_grad` and insulation as it will be trained.

    Raises:
        ConfigError: A trainable parameter has no loss path, nothing is trainable, or something that
            is not float32.
    """
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing is trainable; add_lora or train_only first")
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"'{name}' is trainable but {parameter.dtype}, in which small steps are lost; "
                "load the policy in float32, or train adapters"
            )
    found = reached(policy, [parameter for _, parameter in named], with_value=True)
    missed = [name for (name, _), is_reached in zip(named, found, strict=True) if not is_reached]
    if missed:
        more = f" and {len(missed) - SHOWN_NAMES} more" if len(missed) > SHOWN_NAMES else ""
        told = ", ".join(f"'{name}'" for name in missed[:SHOWN_NAMES]) + more
        raise ConfigError(_unreached(policy, site_of(missed[0]), told))


def _unreached(policy: VLAPolicy, group: Group, told: str) -> str:
    """Say that no gradient reaches parameters of a group, and what to do."""
    said = f"trainable, but no gradient of actions or value reaches them: {told}"
    if group == "auxiliary":
        return (
            f"the token and grounding heads are {said}; only token losses, which are not trained "
            "here, do: freeze them with train_only"
        )
    insulation = policy.config.insulation
    if group == "backbone" and insulation == "full":
        return (
            f"backbone parameters are {said}, as it stops at the context (insulation = 'full'); "
            "use LoRA site 'action_expert', or insulation 'none' or a number in (0, 1)"
        )
    return f"parameters are {said} (insulation = {insulation!r}); freeze them"


@contextmanager
def adapters_merged(policy: VLAPolicy) -> Iterator[None]:
    """Act faster inside the block: weights of narrow layers are added up once, not in every call.

    Nothing but rounding changes. Inside, adapters must not change and no gradient is taken.
    """
    layers = [module for module in policy.modules() if isinstance(module, AdaptedLinear)]
    try:
        for layer in layers:
            layer.keep()
        yield
    finally:
        for layer in layers:
            layer.kept = None


def acting_alike(policy: VLAPolicy, tasks: Iterable[str]) -> list[list[str]]:
    """Group tasks by what acts in them.

    Raises:
        ConfigError: The policy's route says nothing of one.
    """
    groups: dict[frozenset[tuple[str, float]], list[str]] = {}
    for task in tasks:
        acting = frozenset(policy.adapters.route_of(task).items())
        groups.setdefault(acting, []).append(task)
    return list(groups.values())


def adapter_state_dict(policy: VLAPolicy) -> dict[str, Tensor]:
    """Return the adapters, their router and the value head: all but the base."""
    light = light_names(policy)
    return {name: tensor for name, tensor in policy.state_dict().items() if name in light}


def load_adapter_state_dict(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Write what `adapter_state_dict` returned into a policy with the same adapters.

    Raises:
        SpecError: They are others, of another type, or not finite.
    """
    own = adapter_state_dict(policy)
    require_like(tensors, own, "adapters")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def is_base_trained(policy: VLAPolicy) -> bool:
    """Tell whether base weights are trained or have changed since they were loaded."""
    return bool(_trained_base(policy))


def trained_state_dict(policy: VLAPolicy) -> dict[str, Tensor]:
    """Return all that training may have changed of the policy that was loaded.

    That is `adapter_state_dict`, the base weights that are trained, and those that have changed.
    """
    return adapter_state_dict(policy) | _trained_base(policy)


def load_trained_state_dict(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Write what `trained_state_dict` returned into the same policy with the same adapters.

    Raises:
        SpecError: They are others, of another type, or not finite; nothing is written then.
    """
    every = policy.state_dict()
    own = trained_state_dict(policy) | {name: every[name] for name in tensors if name in every}
    try:
        require_like(tensors, own, "trained weights")
    except SpecError as error:
        raise SpecError(f"{error}; expected those of the same run") from error
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _trained_base(policy: VLAPolicy) -> dict[str, Tensor]:
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    names = (trained | changed_weights(policy)) - light_names(policy)
    return {name: tensor for name, tensor in policy.state_dict().items() if name in names}
