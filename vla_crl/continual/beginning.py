"""The policy with which a run begins, and what of it is trained."""

import torch

from vla_crl.continual.recipe import TrainConfig
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import (
    ADAPTER,
    add_lora,
    check_loss_paths,
    train_adapters,
    train_reached,
    trains_backbone,
)
from vla_crl.models.checkpoint import load_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.random_weights import with_random_weights
from vla_crl.models.sites import choose_layers


def load_beginning(config: TrainConfig) -> VLAPolicy:
    """Return the policy with which a run of a recipe begins; seeds torch, also for what follows.

    Raises:
        ConfigError: There is no such policy.
        CheckpointError: Its weights are missing, do not fit, or cannot be trained.
    """
    torch.manual_seed(config.seed)
    on = config.compute
    policy = load_policy(
        config.policy,
        base=config.base,
        device=on.device,
        dtype=on.dtype,
        is_trained=config.lora is None,
    )
    return with_random_weights(policy, on.dtype) if config.init == "random" else policy


def prepare_training(policy: VLAPolicy, config: TrainConfig) -> None:
    """Choose what is trained, as the recipe says: an adapter, or groups of weights.

    Args:
        policy: From `load_beginning`, with the insulation of the recipe.
        config: The recipe.

    Raises:
        ConfigError: The policy brings other adapters, a gradient reaches not all that is to be
            trained, or the insulation says something of a backbone that is not trained.
    """
    if config.lora is None:
        train_reached(policy, *config.train)
    elif policy.adapters.names:
        _train_brought(policy, config.policy, config.lora)
    else:
        add_lora(policy, config.lora)
    if config.insulation not in (None, "full") and not trains_backbone(policy):
        raise ConfigError(
            f"insulation is {config.insulation!r}, but nothing of the backbone is trained; choose "
            "lora.site 'backbone' or 'both', or insulation 'full'"
        )
    check_loss_paths(policy)


@torch.no_grad()
def example_evaluation(policy: VLAPolicy) -> Evaluation:
    """Return what a policy says of a chunk that it samples for an example observation."""
    context = policy.encode(policy.example_observation())
    chunk = policy.act(context, deterministic=False, generator=torch.Generator())
    return policy.evaluate_actions(context, chunk.trace)


def _train_brought(policy: VLAPolicy, name: str, lora: LoRAConfig) -> None:
    """Go on with the adapter that a policy brings, if it is like the recipe's."""
    bank = policy.adapters
    wanted = choose_layers(policy, lora)
    record = bank.record()
    if bank.layouts.get(ADAPTER) != wanted:
        instead = (
            "what 'vla-crl export --merge' makes of the policy"
            if record.is_mergeable
            else "the policy that they were added to"
        )
        raise ConfigError(
            f"policy '{name}' brings {record}, the recipe asks for '{ADAPTER}' of {wanted}; "
            f"make them equal, or begin with {instead}"
        )
    if ADAPTER not in bank.scales:
        raise ConfigError(
            f"policy '{name}' brings an adapter '{ADAPTER}' that does not act, so it cannot be "
            "trained; begin with another policy"
        )
    train_adapters(policy, [ADAPTER])
