"""PPO on a device that does not forgive tensors left on the CPU, with all that a method adds."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.learners import find_learner
from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import ActorCritic, Batch
from vla_crl.compute import ComputeConfig
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.continual.reference import make_reference
from vla_crl.density import Evaluation
from vla_crl.models.adapters import add_lora, trains_backbone
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector
from vla_crl.rollout.demonstrations import record_expert
from vla_crl.rollout.episodes import Groups, shuffled_lanes
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.testing import fake_suite
from vla_crl.testing.strict_device import strict_device

SUITE = fake_suite(train=["red"], heldout=[], horizon=9)
SETTINGS = PPOConfig(
    value_warmup_iterations=1, target_kl=None, minibatch_size=12, num_epochs=1, learning_rate=1e-3
)


@pytest.fixture
def policies(make_small_policy, make_small_head, request):
    """The same policy with adapters on the device and on the CPU."""
    settings = {"insulation": "none"} if request.param in ("parallel", "tokens") else {}
    on_cpu = make_small_policy(SUITE, head=make_small_head(request.param), **settings)
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
        self.memory = batch.detach()
        self.start = {n: p.detach().clone() for n, p in policy_parameters(policy).items()}
        self.num_steps = 0

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        return 1.0 + 0.5 * batch.success.nan_to_num(0.5)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        memory = self.memory[:4]
        everywhere = torch.ones_like(memory.actions[..., 0], dtype=torch.bool)
        imitated = policy.imitation(memory.context, memory.actions, everywhere, None)
        again = policy.evaluate_actions(memory.context, memory.trace).density
        gaps = [p - self.start[n] for n, p in policy_parameters(policy).items()]
        return {
            "replay": -0.1 * (memory.success.isnan() * again.log_prob().sum(dim=1)).mean(),
            "imitation": 0.0 * imitated.mean(),
            "anchor": 0.1 * torch.stack([gap.square().sum() for gap in gaps]).sum(),
            "entropy": 0.1 * evaluation.density.entropy().mean(),
        }

    def transform_grads(self, policy: ActorCritic) -> None:
        for parameter in policy_parameters(policy).values():
            if parameter.grad is not None:
                parameter.grad *= 0.5

    def after_step(self, policy: ActorCritic) -> None:
        self.num_steps += 1


@pytest.mark.parametrize(
    ("policies", "contexts"),
    [
        ("flow", "stored"),
        ("flow", "every_epoch"),
        ("noise", "stored"),
        ("gaussian", "stored"),
        ("parallel", "every_epoch"),
        ("tokens", "every_epoch"),
    ],
    indirect=["policies"],
)
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
    assert results[0][2]["anchor"] > 0.0
    ours, theirs = (policy.state_dict() for policy in policies)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), tensor, rtol=1e-2, atol=1e-4)


CASES = {
    "ppo": {"value_warmup_iterations": 0, "target_kl": None},
    "grpo": {"group_size": 3},
    "gspo": {"group_size": 3, "kl_coef": 0.1, "reference": "base"},
    "reinforce": {},
    "cloning": {"failure_weight": 0.5},
    "distillation": {"group_size": 3, "teacher": "base"},
    "sft": {},
}


@pytest.mark.parametrize(
    ("policies", "name"),
    [
        *(("flow", name) for name in CASES),
        *(("tokens", name) for name in ("gspo", "distillation", "sft")),
    ],
    indirect=["policies"],
)
def test_every_learner_learns_on_the_device(policies, make_lanes, name):
    learner_class, generator = find_learner(name), torch.Generator().manual_seed(0)
    policy, _ = policies
    config = learner_class.config_class(kind=name, num_epochs=1, minibatch_size=16, **CASES[name])
    size, sims = learner_class.group_size(config), make_lanes(SUITE, 6, image_size=32)
    contexts = "every_epoch" if trains_backbone(policy) else "stored"
    reference = make_reference("base", policy, ComputeConfig(), contexts, tasks={})
    learner = learner_class(policy, config, reference=reference)
    if learner.data == "demonstrations":
        data = LabelledSteps(policy, record_expert(sims, np.zeros(6, int), np.arange(6), seed=[0]))
    else:
        sources = [Groups(source, size) for source in shuffled_lanes(SUITE, [0], 2, seed=0)]
        whole = learner.whole_episodes
        collector = Collector(
            policy, sims, sources, num_chunks=5, seed=3, whole_episodes=whole, contexts=contexts
        )
        collector.collect()
        data = collector.rollout
        assert learner.unused_slots(data, 0).device.type == "cpu"
        if size > 1:
            collector.play_again(torch.arange(3))
            data.rewards[0, ::2] += 1.0  # so that groups tell something
            data._outcomes[0] += data.rewards[:1].expand(5, 6).flatten()
    metrics = learner.update(data, ContinualMethod(NoSettings()), generator)
    assert metrics["optimizer_steps"] > 0
    assert np.isfinite(metrics["policy_loss"])
