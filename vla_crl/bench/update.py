"""How fast PPO learns from stored contexts, beside running the backbone again in every epoch."""

import time
from statistics import median

import numpy as np
import torch

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import Rollout
from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.continual.known_methods import make_method
from vla_crl.contracts import ARM, Observation
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.rollout.storage import RolloutStorage, Step

INSTRUCTION = "pick up the red cube"


def bench_update(
    *, num_steps: int = 12, num_slots: int = 8, num_epochs: int = 4, num_repeats: int = 3
) -> list[BenchRecord]:
    """Measure PPO updates of one policy on one rollout, with contexts stored and recomputed.

    The policy has the default sizes and random weights; adapters on its action expert are trained.
    The peer runs the frozen backbone without gradients, which is the cheapest way to recompute.

    Args:
        num_steps: Chunks per slot.
        num_slots: Slots.
        num_epochs: Passes over the rollout in one update.
        num_repeats: Timed updates of each kind, taken in turn; the median counts.

    Returns:
        One record in samples (chunks times epochs) per second.
    """
    policy = VLAPolicy(PolicyConfig(embodiment=ARM, vocabulary=tuple(INSTRUCTION.split())))
    add_lora(policy, LoRAConfig())
    observations = _random_observations(policy, num_steps * num_slots)
    stored = _collect(policy, observations, (num_steps, num_slots), keep_observations=False)
    recomputed = _collect(policy, observations, (num_steps, num_slots), keep_observations=True)
    ppo = PPO(policy, PPOConfig(num_epochs=num_epochs, target_kl=None, value_warmup_iterations=0))

    def seconds(rollout: Rollout) -> float:
        start = time.perf_counter()
        ppo.update(rollout, make_method("sequential", {}), torch.Generator())
        return time.perf_counter() - start

    seconds(stored)  # the first update also pays for memory and thread pools
    pairs = [(seconds(stored), seconds(recomputed)) for _ in range(num_repeats)]
    num_samples = num_steps * num_slots * num_epochs
    rate, peer_rate = (num_samples / median(times) for times in zip(*pairs, strict=True))
    return [
        against_peer(
            "update.stored_context",
            rate,
            "samples/s",
            "backbone recomputed in every epoch",
            peer_rate,
            goal=3.0,
        )
    ]


def _random_observations(policy: VLAPolicy, num_observations: int) -> Observation:
    random, size = np.random.default_rng(0), policy.config.image_size
    shape = (num_observations, len(ARM.cameras), size, size, 3)
    return Observation(
        random.integers(0, 256, shape, dtype=np.uint8),
        random.normal(size=(num_observations, len(ARM.state))).astype(np.float32),
        (INSTRUCTION,) * num_observations,
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
