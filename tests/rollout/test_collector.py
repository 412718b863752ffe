import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector, CollectorConfig
from vla_crl.sim.suite import load_suite
from vla_crl.sim.vector_sim import VectorSim

CONFIG = CollectorConfig(num_envs=3, num_chunks=13, num_threads=1)
"""Thirteen chunks of four steps: every episode (48 steps) ends once, at its time limit."""


@pytest.fixture
def collect(untrained_policy: VLAPolicy):
    for parameter in untrained_policy.value_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # it starts at zero, which would tell nothing

    def make(seed: int = 0, config: CollectorConfig = CONFIG) -> Collector:
        sim = VectorSim(load_suite("tabletop_object"), config.num_envs, num_threads=1)
        return Collector(untrained_policy, sim, "red_cube_in_basket", config=config, seed=seed)

    return make


def test_next_value_is_the_value_of_the_next_observation(collect):
    collector = collect()
    collector.collect()
    storage = collector.storage
    assert torch.equal(storage.next_values[:11], storage.values[1:12])


def test_next_value_at_the_time_limit_belongs_to_the_episode_that_ended(collect):
    collector = collect()
    collector.collect()
    storage = collector.storage
    assert storage.truncated[11].all()
    # Chunk 12 begins a new episode elsewhere, so its value is another number.
    assert not torch.isclose(storage.next_values[11], storage.values[12], atol=1e-7).any()


def test_last_next_value_is_the_first_value_of_the_following_iteration(collect):
    collector = collect()
    collector.collect()
    last = collector.storage.next_values[-1].clone()
    collector.collect()
    torch.testing.assert_close(last, collector.storage.values[0])


def test_episodes_run_on_across_iterations(collect):
    collector = collect(config=CollectorConfig(num_envs=3, num_chunks=7, num_threads=1))
    assert collector.collect().episodes == 0
    assert collector.collect().episodes == 3


def test_every_training_state_is_used_once_before_any_is_used_again(collect):
    collector = collect()
    sim = collector._sim
    num_states, seen = len(sim.suite.train_ids), []
    for _ in range(num_states // 3):
        seen += sim.state_ids.tolist()
        collector._restart(np.arange(3))
    assert len(seen) == len(set(seen)) == 3 * (num_states // 3)
    assert set(seen) <= set(sim.suite.train_ids)


def test_the_same_seed_collects_the_same_numbers(collect):
    first, second = collect(seed=4), collect(seed=4)
    assert first.collect().num_steps == second.collect().num_steps
    assert torch.equal(first.storage.log_probs, second.storage.log_probs)
    other = collect(seed=5)
    other.collect()
    assert not torch.equal(first.storage.log_probs, other.storage.log_probs)


def test_counts_are_checked():
    with pytest.raises(ConfigError, match=r"collector\.num_chunks is 0, expected at least 1"):
        CollectorConfig(num_chunks=0)
