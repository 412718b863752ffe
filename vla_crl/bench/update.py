"""How fast PPO learns from stored contexts, beside running the backbone again in every epoch."""

import time
from statistics import median

import numpy as np
import torch

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import Rollout
from vla_crl.bench.record import BenchRecord, against_peer, alone
from vla_crl.continual.known_methods import make_method
from vla_crl.contracts import ARM, Observation
from vla_crl.models.adapters import add_lora, trains_backbone
from vla_crl.models.checkpoint import build_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.rollout.storage import RolloutStorage, Step

WORDS = ("pick", "up", "the", "red", "cube")
"""Of an instruction, where the policy knows no others."""


def bench_update(
    *,
    policy: str | None = None,
    num_steps: int = 12,
    num_slots: int = 8,
    num_epochs: int = 4,
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure PPO updates of one policy on one rollout, with contexts stored and recomputed.

    The policy has random weights; adapters on the layers that compute actions are trained. The peer
    runs the frozen backbone without gradients, which is the cheapest way to recompute. Where these
    layers are the backbone's, contexts are always recomputed, and there is no peer.

    Args:
        policy: Name or file of a preset; a flow head and the default sizes if None.
        num_steps: Chunks per slot.
        num_slots: Slots.
        num_epochs: Passes over the rollout in one update.
        num_repeats: Timed updates of each kind, taken in turn; the median counts.

    Returns:
        One record in samples (chunks times epochs) per second.

    Raises:
        ConfigError: There is no such preset, or it cannot be built.
    """
    default = PolicyConfig(embodiment=ARM, vocabulary=WORDS)
    built = build_policy(policy, embodiment=ARM) if policy else VLAPolicy(default)
    add_lora(built, LoRAConfig())
    observations = _random_observations(built, num_steps * num_slots)
    rollouts = [
        _collect(built, observations, (num_steps, num_slots), keep_observations=kept)
        for kept in ((True,) if trains_backbone(built) else (False, True))
    ]
    ppo = PPO(built, PPOConfig(num_epochs=num_epochs, target_kl=None, value_warmup_iterations=0))

    def seconds(rollout: Rollout) -> float:
        start = time.perf_counter()
        ppo.update(rollout, make_method("sequential", {}), torch.Generator())
        return time.perf_counter() - start

    seconds(rollouts[0])  # the first update also pays for memory and thread pools
    turns = [[seconds(rollout) for rollout in rollouts] for _ in range(num_repeats)]
    num_samples = num_steps * num_slots * num_epochs
    rate, *peer_rates = (num_samples / median(times) for times in zip(*turns, strict=True))
    if not peer_rates:
        return [alone("update.recomputed_context", rate, "samples/s")]
    return [
        against_peer(
            "update.stored_context",
            rate,
            "samples/s",
            "backbone recomputed in every epoch",
            peer_rates[0],
            goal=None if policy else 3.0,
        )
    ]


def _random_observations(policy: VLAPolicy, num_observations: int) -> Observation:
    random, example = np.random.default_rng(0), policy.example_observation()
    words = (policy.config.vocabulary or WORDS)[: len(WORDS)]
    return Observation(
        random.integers(0, 256, (num_observations, *example.images.shape[1:]), dtype=np.uint8),
        random.normal(size=(num_observations, *example.state.shape[1:])).astype(np.float32),
        (" ".join(words),) * num_observations,
    )


def _collect(
    policy: VLAPolicy,
    observations: Observation,
    shape: tuple[int, int],
    *,
    keep_observations: bool,
) -> RolloutStorage:
    """Let the policy act on the observations; rewards are random, the same in every call."""
    (num_steps, num_slots), storage = shape, None
    random, generator = np.random.default_rng(1), torch.Generator().manual_seed(0)
    never, nothing = torch.zeros(num_slots, dtype=torch.bool), torch.arange(num_slots)
    for step in range(num_steps):
        slots = np.arange(step * num_slots, (step + 1) * num_slots)
        with torch.no_grad():
            seen = policy.tokenize(observations.select(slots))
            context = policy.encode(seen)
        chunk = policy.act(context, deterministic=False, generator=generator)
        reward = torch.from_numpy(random.random(num_slots, dtype=np.float32))
        rows = Step(
            seen=seen if keep_observations else None,
            context=None if keep_observations else context,
            trace=chunk.trace,
            actions=chunk.actions,
            log_probs=chunk.log_prob,
            values=chunk.value,
            reward=reward,
            terminated=never,
            truncated=never,
            success=never,
            episode_return=reward,
            task=nothing,
            state_id=nothing,
            episode=nothing,
            group=nothing,
        )
        encode = policy.encode if keep_observations else None
        storage = storage or RolloutStorage(num_steps, num_slots, rows, encode=encode)
        storage.add(step, rows)
    assert storage is not None
    storage.finish(np.zeros(shape))
    return storage
