"""LoRA adapters on the action expert and the backbone, and which parameters are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import require_like
from vla_crl.hardware import require_memory
from vla_crl.models.context import Insulation
from vla_crl.models.lora import LoRAConfig, Site
from vla_crl.models.policy import VLAPolicy

Group = Literal["backbone", "heads", "action_expert", "value"]

_GROUP_OF_MODULE: dict[str, Group] = {
    "backbone": "backbone",
    "state_in": "backbone",
    "token_heads": "heads",
    "grounding": "heads",
    "head": "action_expert",
    "value_head": "value",
}
_ADAPTER_NAME = "default"
TRAINED_BYTES = 16
"""For each trained number itself, its gradient and two averages of Adam's, float32."""


def add_lora(policy: VLAPolicy, config: LoRAConfig) -> None:
    """Insert adapters that leave the policy's output unchanged, and freeze the base.

    Afterwards the adapters and the value head are trainable, nothing else. Only the
    initialisation B = 0 is offered: others (PiSSA, OLoRA) change the base weights, which breaks
    `adapter_disabled` and every comparison with the base policy. Adapters are float32 whatever the
    layers are: Adam's small steps would be lost in bfloat16.

    Raises:
        ConfigError: The policy has adapters already, or there is no room for these.
    """
    import peft

    from vla_crl.models.merged_lora import MergedLinear

    if policy.lora is not None:
        raise ConfigError(
            f"add_lora: the policy already has adapters ({policy.lora}); load the base anew"
        )
    names = _linear_layers(policy, config.site)
    layers = [cast(nn.Linear, policy.get_submodule(name)) for name in names]
    edges = sum(layer.in_features + layer.out_features for layer in layers)
    taken, advice = TRAINED_BYTES * config.rank * edges, "choose a smaller lora.rank"
    require_memory(taken, f"adapters of rank {config.rank}", advice, policy.device.type)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=names,
        init_lora_weights=True,
    )
    settings._register_custom_module({nn.Linear: MergedLinear})
    peft.inject_adapter_in_model(settings, policy, _ADAPTER_NAME)
    policy.lora = config
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(_is_saved(name))
        if _is_saved(name):
            parameter.data = parameter.data.float()


@contextmanager
def adapter_disabled(policy: VLAPolicy) -> Iterator[None]:
    """Run the base policy inside the block, bit for bit as before `add_lora`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    # `enable_adapters` also switches `requires_grad`, which is not ours to change here.
    trainable = {name: p.requires_grad for name, p in policy.named_parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(trainable[name])


@contextmanager
def adapters_merged(policy: VLAPolicy) -> Iterator[None]:
    """Act faster inside the block: weights of narrow layers are added up once, not in every call.

    Nothing but rounding changes. Inside, adapters must not change and no gradient is taken.
    """
    if policy.lora is None:
        yield  # without peft, which takes seconds to import
        return
    from vla_crl.models.merged_lora import MergedLinear

    layers = [module for module in policy.modules() if isinstance(module, MergedLinear)]
    try:
        for layer in layers:
            layer.keep()
        yield
    finally:
        for layer in layers:
            layer.kept = None


def adapter_state_dict(policy: VLAPolicy) -> dict[str, Tensor]:
    """Return the adapters and the value head: all that changes in PPO with LoRA."""
    return {name: tensor for name, tensor in policy.state_dict().items() if _is_saved(name)}


def adapter_layout(policy: VLAPolicy) -> dict[str, Any]:
    """Return all that adapters are but for their numbers, by name.

    Of tensors it is the shape, of layers which of their adapters act, and how strongly.
    """
    from peft.tuners.lora.layer import LoraLayer

    layout: dict[str, Any] = {
        name: tuple(tensor.shape) for name, tensor in adapter_state_dict(policy).items()
    }
    for name, layer in policy.named_modules():
        if isinstance(layer, LoraLayer):
            acting = not layer.disable_adapters and not layer.merged and layer.active_adapters
            layout[name] = acting or "switched off", dict(layer.scaling)
    return layout


def check_checkpoint_holds(policy: VLAPolicy, layout: Mapping[str, Any], where: str) -> None:
    """Fail if what is trained or acts would not be what is loaded from the checkpoints of a run.

    Args:
        policy: With `requires_grad` set as it will be trained.
        layout: `adapter_layout` as `add_lora` made it.
        where: Who changed the policy, for the error message.

    Raises:
        ConfigError: Something besides adapters and value head is trainable, or adapters are others.
    """
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not _is_saved(name):
            raise ConfigError(
                f"{where}: '{name}' is trainable, but checkpoints of a run hold adapters and value "
                "head only; leave the rest frozen"
            )
    own = adapter_layout(policy)
    changed = [name for name in {**own, **layout} if own.get(name) != layout.get(name)]
    if changed:
        came, expected = (of.get(changed[0], "not there") for of in (own, layout))
        raise ConfigError(
            f"{where}: adapters were changed: '{changed[0]}' is {came}, expected {expected} "
            f"({len(changed)} differ); a checkpoint could not be loaded as it acts here. Use those "
            "that there are, of a higher lora.rank if need be"
        )


def load_adapter_state_dict(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Write what `adapter_state_dict` returned into a policy with the same adapters.

    Raises:
        SpecError: They are others (add_lora with the same rank, alpha and site first), of another
            type, or not finite.
    """
    own = adapter_state_dict(policy)
    require_like(tensors, own, "adapters")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def train_only(policy: VLAPolicy, *groups: Group) -> None:
    """Make all base parameters of these groups trainable and freeze the others."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(_group_of(name) in groups)


def trainable_parameters(policy: VLAPolicy) -> dict[Group, list[Parameter]]:
    """Return the trainable parameters by group, without empty groups."""
    groups: dict[Group, list[Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_group_of(name), []).append(parameter)
    return groups


def check_loss_paths(
    policy: VLAPolicy, insulation: Insulation, *, has_token_losses: bool = False
) -> None:
    """Fail before training if a trainable group would never receive a gradient.

    Args:
        policy: With `requires_grad` set as it will be trained.
        insulation: Insulation during this training.
        has_token_losses: Whether the objective includes losses on tokens or grounding, the only
            ones that reach an insulated backbone.

    Raises:
        ConfigError: A trainable group has no loss path, nothing is trainable, or something that is
            not float32.
    """
    groups = trainable_parameters(policy)
    if not groups:
        raise ConfigError("nothing is trainable; add_lora or train_only first")
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"'{name}' is trainable but {parameter.dtype}, in which small steps are lost; "
                "load the policy in float32, or train adapters"
            )
    if has_token_losses:
        return
    if "heads" in groups:
        raise ConfigError(
            "the token and grounding heads are trainable, but no token loss is trained; "
            "freeze them with train_only or add a token loss"
        )
    if "backbone" in groups and insulation == "full":
        raise ConfigError(
            "backbone parameters are trainable, but no gradient reaches them: the flow's stops at "
            "the context (insulation = 'full') and no token loss is trained; use LoRA site "
            "'action_expert', or insulation 'none' or a number in (0, 1)"
        )


def _linear_layers(policy: VLAPolicy, site: Site) -> list[str]:
    """Return the names of the layers at a site that the action expert's output depends on.

    Of the backbone these are the layers behind the context. The last text layer's queries and MLP,
    for one, reach neither keys nor values, and an adapter there would never get a gradient.
    """
    layers = {name: layer for name, layer in policy.named_modules() if type(layer) is nn.Linear}
    names = [name for name in layers if name.startswith("head.") and site != "backbone"]
    if site != "action_expert":
        backbone = [name for name in layers if name.startswith("backbone.")]
        weights = [layers[name].weight.requires_grad_() for name in backbone]
        # In this thread: those of the engine know only devices that were there when it started.
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
            context = policy.encode(policy.example_observation())
            read = context.keys.sum() + context.values.sum()
            reached = torch.autograd.grad(read, weights, allow_unused=True)
        pairs = zip(backbone, reached, strict=True)
        names += [name for name, gradient in pairs if gradient is not None]
    return names


def _is_saved(name: str) -> bool:
    """Tell whether a parameter belongs to an adapter or the value head."""
    return ".lora_A." in name or ".lora_B." in name or name.startswith("value_head.")


def _group_of(name: str) -> Group:
    return _GROUP_OF_MODULE[name.split(".", 1)[0]]
