"""Supervised losses leave alone what a head explores with, and move everything else."""

import numpy as np
import pytest
import torch

from vla_crl.algos.cloning import Cloning, CloningConfig
from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.sft import SFT, SFTConfig
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora, trains_backbone
from vla_crl.models.heads.head import HEADS
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector
from vla_crl.rollout.demonstrations import record_expert
from vla_crl.rollout.episodes import shuffled_lanes
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.testing import fake_suite

SUITE = fake_suite(train=["red"], heldout=[], horizon=5)
NO_METHOD = ContinualMethod(NoSettings())
EXPLORING = {"gaussian": "head.log_factor", "noise": "head.noise_network."}


@pytest.fixture
def make_policy(make_small_policy, make_small_head):
    def make(kind: str) -> VLAPolicy:
        settings = {"insulation": "none"} if kind in ("parallel", "tokens") else {}
        policy = make_small_policy(SUITE, head=make_small_head(kind), **settings)
        add_lora(policy, LoRAConfig(rank=2))
        return policy

    return make


@pytest.fixture
def learn(make_lanes):
    """Return a function that lets a policy learn twice by a supervised loss."""

    def run(policy: VLAPolicy, name: str) -> SFT | Cloning:
        sims, generator = make_lanes(SUITE, 4, image_size=32), torch.Generator().manual_seed(0)
        if name == "sft":
            learner = SFT(policy, SFTConfig(minibatch_size=16))
            expert = record_expert(sims, np.zeros(4, int), np.arange(4), seed=[0])
            data = LabelledSteps(policy, expert)
        else:
            config = CloningConfig(loss="imitation", failure_weight=1.0, num_epochs=1)
            learner, sources = Cloning(policy, config), shuffled_lanes(SUITE, [0], 2, seed=0)
            contexts = "every_epoch" if trains_backbone(policy) else "stored"
            collector = Collector(
                policy, sims, sources, num_chunks=3, seed=3, whole_episodes=True, contexts=contexts
            )
            collector.collect()
            data = collector.rollout
        for _ in range(2):
            assert learner.update(data, NO_METHOD, generator)["optimizer_steps"] > 0
        return learner

    return run


@pytest.mark.parametrize("name", ["sft", "imitation"])
@pytest.mark.parametrize("kind", HEADS)
def test_what_a_head_explores_with_stays_and_all_else_learns(make_policy, learn, kind, name):
    policy = make_policy(kind)
    trained = policy_parameters(policy)
    before = {n: p.detach().clone() for n, p in trained.items()}
    learner = learn(policy, name)
    explores = {n for n in trained if n.startswith(EXPLORING.get(kind, "none"))}
    assert bool(explores) == (kind in EXPLORING)
    for key, parameter in trained.items():
        gradient = None if parameter.grad is None else parameter.grad.abs().sum()
        assert (gradient is None) == (key in explores), key
        # A Gaussian head gives its expert zeros for actions: an adapter there has gradients of 0.
        assert torch.equal(parameter, before[key]) == (not gradient), key
    stored = learner.state_dict()
    assert {n.partition("/")[2] for n in stored if "/" in n} == trained.keys() - explores
    again = type(learner)(policy, learner.config)
    again.load_state_dict(stored)
    assert again.iteration == 2


def test_another_parameter_without_a_path_to_the_loss_is_told(make_policy, learn):
    policy = make_policy("gaussian")
    policy.head.register_parameter("spare", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match="SFT: parameter 'head.spare' is trainable but has no pa"):
        learn(policy, "sft")
