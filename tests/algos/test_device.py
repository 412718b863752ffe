"""PPO on a device that does not forgive tensors left on the CPU, with all that a method adds."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vla_crl.algos.ppo import PPO, PPOConfig, policy_parameters
from vla_crl.algos.protocols import ActorCritic, Batch
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.density import Evaluation
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector
from vla_crl.rollout.episodes import shuffled_lanes
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.testing import fake_suite
from vla_crl.testing.strict_device import strict_device

SUITE = fake_suite(train=["red"], heldout=[], horizon=9)
SETTINGS = PPOConfig(
    value_warmup_iterations=1, target_kl=None, minibatch_size=12, num_epochs=1, learning_rate=1e-3
)


@pytest.fixture
def policies(make_small_policy):
    """The same policy with adapters on the device and on the CPU."""
    on_cpu = make_small_policy(SUITE)
    add_lora(on_cpu, LoRAConfig(rank=2))
    with strict_device() as device:
        yield copy.deepcopy(on_cpu).to(device), on_cpu


@pytest.fixture
def collect(make_lanes):
    def run(policy: VLAPolicy, contexts) -> RolloutStorage:
        sims = make_lanes(SUITE, 6, image_size=32)
        sources = shuffled_lanes(SUITE, [0], 2, seed=0)
        collector = Collector(policy, sims, sources, num_chunks=4, seed=3, contexts=contexts)
        collector.collect()
        return collector.rollout

    return run


class Everything(ContinualMethod):
    """Adds whatever a method can add to an update."""

    def __init__(self, rollout: RolloutStorage, policy: ActorCritic) -> None:
        super().__init__(NoSettings())
        rollout.compute_advantages(gamma=0.99, gae_lambda=0.95)
        batch = next(rollout.minibatches(8, torch.Generator().manual_seed(1)))
        self.memory = replace(batch, context=batch.context.detach())
        self.start = {n: p.detach().clone() for n, p in policy_parameters(policy).items()}
        self.num_steps = 0

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        return 1.0 + 0.5 * batch.success.nan_to_num(0.5)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        gaps = [p - self.start[n] for n, p in policy_parameters(policy).items()]
        old = self.memory[: len(batch) // 2]
        density = policy.evaluate_actions(old.context, old.trace).density
        weights = 0.1 * old.success.isnan()
        return {
            "replay": -(weights * density.log_prob().sum(dim=1)).mean(),
            "penalty": 0.1 * torch.stack([gap.square().sum() for gap in gaps]).sum(),
        }

    def transform_grads(self, policy: ActorCritic) -> None:
        for parameter in policy_parameters(policy).values():
            if parameter.grad is not None:
                parameter.grad *= 0.5

    def after_step(self, policy: ActorCritic) -> None:
        self.num_steps += 1


@pytest.mark.parametrize("contexts", ["stored", "every_epoch"])
def test_updates_are_those_of_the_cpu(policies, collect, contexts):
    results = []
    for policy in policies:
        rollout = collect(policy, contexts)
        method, ppo = Everything(rollout, policy), PPO(policy, SETTINGS)
        generator = torch.Generator().manual_seed(0)
        metrics = [ppo.update(rollout, method, generator) for _ in range(2)]
        again = PPO(policy, SETTINGS)
        again.load_state_dict({name: tensor.cpu() for name, tensor in ppo.state_dict().items()})
        metrics.append(again.update(rollout, method, generator))
        assert method.num_steps == 4
        results.append(metrics)
    for ours, theirs in zip(*results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-4)
    assert results[0][1]["replay"] != 0.0
    assert results[0][2]["penalty"] > 0.0
    ours, theirs = (policy.state_dict() for policy in policies)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), tensor, rtol=1e-2, atol=1e-4)
