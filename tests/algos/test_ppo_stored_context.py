"""PPO on the real policy: its contexts are stored while collecting and not computed again."""

from typing import Any

import numpy as np
import pytest
import torch

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.contracts import ARM, Observation
from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora
from vla_crl.models.context import Insulation
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.lora import LoRAConfig, Site
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.vlm import BackboneConfig
from vla_crl.rollout.storage import RolloutStorage, Step

NO_METHOD = ContinualMethod(NoSettings())
SETTINGS = PPOConfig(value_warmup_iterations=0, target_kl=None, minibatch_size=8, num_epochs=3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def vla_policy(site: Site = "action_expert", insulation: Insulation = "full") -> VLAPolicy:
    """A real policy, very small, of which adapters and the value head are trained."""
    torch.manual_seed(0)
    backbone = BackboneConfig(
        vision_width=32,
        num_vision_heads=2,
        vision_mlp_width=64,
        width=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=64,
    )
    policy = VLAPolicy(
        PolicyConfig(
            embodiment=ARM,
            image_size=32,
            vocabulary=("pick", "up", "the", "red", "cube"),
            backbone=backbone,
            head=FlowConfig(expert=ActionExpertConfig(width=32, num_heads=2, mlp_width=64)),
            insulation=insulation,
        )
    )
    add_lora(policy, LoRAConfig(rank=4, alpha=8, site=site))
    return policy


def vla_rollout(policy: VLAPolicy, *, keep_observations: bool = False) -> RolloutStorage:
    num_steps, num_slots = 3, 8
    random = np.random.default_rng(0)
    observations = Observation(
        random.integers(0, 256, (num_steps * num_slots, 2, 32, 32, 3), dtype=np.uint8),
        random.normal(size=(num_steps * num_slots, 8)).astype(np.float32),
        ("pick up the red cube",) * (num_steps * num_slots),
    )
    storage, generator = None, seeded()
    for step in range(num_steps):
        seen = observations.select(np.arange(step * num_slots, (step + 1) * num_slots))
        with torch.no_grad():
            context = policy.encode(seen)
        chunk = policy.act(context, deterministic=False, generator=generator)
        reward = torch.from_numpy(random.random(num_slots).astype(np.float32))
        no, number = torch.zeros(num_slots, dtype=torch.bool), torch.arange(num_slots)
        rows = Step(
            seen=policy.tokenize(seen) if keep_observations else None,
            context=None if keep_observations else context,
            trace=chunk.trace,
            actions=chunk.actions,
            log_probs=chunk.log_prob,
            values=chunk.value,
            reward=reward,
            terminated=torch.from_numpy(random.random(num_slots) < 0.2),
            truncated=no,
            success=no,
            episode_return=reward,
            task=number,
            state_id=number,
            episode=number,
            group=number,
        )
        encode = policy.encode if keep_observations else None
        storage = storage or RolloutStorage(num_steps, num_slots, rows, encode=encode)
        storage.add(step, rows)
    assert storage is not None
    storage.finish(torch.zeros(num_steps, num_slots))
    return storage


def trained_names(policy: VLAPolicy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_stored_contexts_train_a_real_policy_as_recomputed_ones_do():
    stored, recomputed = vla_policy(), vla_policy()
    metrics = PPO(stored, SETTINGS).update(vla_rollout(stored), NO_METHOD, seeded())
    again = vla_rollout(recomputed, keep_observations=True)
    PPO(recomputed, SETTINGS).update(again, NO_METHOD, seeded())
    assert metrics["ratio_error"] < 1e-5  # rounding only
    start, other = vla_policy().state_dict(), recomputed.state_dict()
    for name, weight in stored.state_dict().items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5)
    moved = {name for name, weight in other.items() if not weight.equal(start[name])}
    assert moved == trained_names(stored)


@pytest.mark.parametrize("site", ["backbone", "both"])
def test_adapters_of_the_backbone_learn_from_reward_through_recomputed_contexts(site):
    policy = vla_policy(site, "none")
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    rollout = vla_rollout(policy, keep_observations=True)
    metrics = PPO(policy, SETTINGS).update(rollout, NO_METHOD, seeded())
    assert metrics["ratio_error"] < 1e-5
    moved = {name for name, weight in policy.state_dict().items() if not weight.equal(start[name])}
    assert moved == trained_names(policy)
    assert any(name.startswith("backbone.") for name in moved)


def test_stored_contexts_cannot_train_the_backbone():
    policy = vla_policy("both", "none")
    with pytest.raises(ConfigError, match="'backbone.*has no path to the loss"):
        PPO(policy, SETTINGS).update(vla_rollout(policy), NO_METHOD, seeded())


def test_scaled_insulation_scales_the_gradient_of_the_backbone_alone():
    gradients = []
    for insulation in ("none", 0.25):
        policy: Any = vla_policy("both", insulation)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(generator=seeded())
        rollout = vla_rollout(policy, keep_observations=True)
        rollout.compute_advantages(gamma=0.9, gae_lambda=0.9)
        batch = next(rollout.minibatches(24, seeded()))
        policy.evaluate_actions(batch.context, batch.trace).density.log_prob().sum().backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if ".lora_A." in n})
    for name, gradient in gradients[0].items():
        scale = 0.25 if name.startswith("backbone.") else 1.0
        # Within float32: the sums run in another order.
        torch.testing.assert_close(
            gradients[1][name], scale * gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
        )


def test_forgotten_heads_of_a_real_policy_are_named():
    policy = vla_policy()
    policy.token_heads.requires_grad_(True)
    rollout = vla_rollout(policy)
    with pytest.raises(ConfigError, match="'token_heads.*has no path to the loss; freeze it"):
        PPO(policy, SETTINGS).update(rollout, NO_METHOD, seeded())
