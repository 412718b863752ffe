"""PPO on the real policy: its contexts are stored while collecting and not computed again."""

import numpy as np
import pytest
import torch

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.contracts import Observation
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import LoRAConfig, add_lora
from vla_crl.models.expert import ExpertConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.vlm import BackboneConfig
from vla_crl.rollout.storage import RecomputedContexts, RolloutStorage

NO_METHOD = ContinualMethod(NoSettings())
SETTINGS = PPOConfig(value_warmup_iterations=0, target_kl=None, minibatch_size=8, num_epochs=3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def vla_policy() -> VLAPolicy:
    """A real policy, very small, of which adapters on the expert and the value head are trained."""
    torch.manual_seed(0)
    backbone = BackboneConfig(
        image_size=32,
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
            vocabulary=("pick", "up", "the", "red", "cube"),
            backbone=backbone,
            expert=ExpertConfig(width=32, num_heads=2, mlp_width=64),
        )
    )
    add_lora(policy, LoRAConfig(rank=4, alpha=8))
    return policy


def vla_rollout(policy: VLAPolicy) -> tuple[RolloutStorage, Observation]:
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
        storage = storage or RolloutStorage(num_steps, num_slots, context=context, chunk=chunk)
        storage.add(
            step,
            context,
            chunk,
            reward=random.random(num_slots),
            terminated=random.random(num_slots) < 0.2,
            truncated=np.zeros(num_slots, dtype=bool),
        )
    assert storage is not None
    storage.finish(torch.zeros(num_steps, num_slots))
    return storage, observations


def test_stored_contexts_train_a_real_policy_as_recomputed_ones_do():
    stored, recomputed = vla_policy(), vla_policy()
    rollout, observations = vla_rollout(stored)
    metrics = PPO(stored, SETTINGS).update(rollout, NO_METHOD, seeded())
    again = RecomputedContexts(rollout, observations, recomputed.encode)
    PPO(recomputed, SETTINGS).update(again, NO_METHOD, seeded())
    assert metrics["ratio_error"] < 1e-5  # rounding only
    start, other = vla_policy().state_dict(), recomputed.state_dict()
    for name, weight in stored.state_dict().items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5)
    moved = {name for name, weight in other.items() if not weight.equal(start[name])}
    trained = {name for name, parameter in stored.named_parameters() if parameter.requires_grad}
    assert moved == trained


def test_forgotten_heads_of_a_real_policy_are_named():
    policy = vla_policy()
    policy.token_heads.requires_grad_(True)
    rollout, _ = vla_rollout(policy)
    with pytest.raises(ConfigError, match="'token_heads.*has no path to the loss; freeze it"):
        PPO(policy, SETTINGS).update(rollout, NO_METHOD, seeded())
