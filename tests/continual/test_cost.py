"""What a run takes, told before it begins."""

import pytest

from vla_crl import hardware
from vla_crl.continual import cost
from vla_crl.continual.cost import estimate_cost
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.rollout.contexts import ContextPlan
from vla_crl.sim.backends import find_suite

CONTEXTS = ContextPlan(contexts="stored", num_rows=8, row_bytes=2**20, why="as the recipe says")


@pytest.fixture
def estimated(write_fake_suite, make_small_policy):
    suite = find_suite(write_fake_suite(horizon=16))  # trains red and green, blue is held out
    policy = make_small_policy(suite)
    add_lora(policy, LoRAConfig(rank=2))
    config = TrainConfig(
        suite="fake",
        policy="p",
        episodes_per_task=10,
        rounds=2,
        collector=CollectorConfig(num_envs=4, num_chunks=2),
        evaluation=EvaluationConfig(num_episodes=3, num_sampled_episodes=2, num_envs=6),
    )
    return estimate_cost(config, suite, config.stream(suite), policy, CONTEXTS), policy


def test_a_run_takes_contexts_pictures_and_what_trains_the_adapters(estimated):
    taken, policy = estimated
    trained = [p.numel() for p in policy.parameters() if p.requires_grad]
    assert taken.num_trained == sum(trained) > 0
    assert taken.picture_bytes == (4 + 6) * 32 * 32 * 3  # of one camera
    assert taken.num_bytes == 8 * 2**20 + taken.picture_bytes + 12 * sum(trained)


def test_a_run_takes_as_many_control_steps_as_all_its_episodes_may(estimated):
    taken, _ = estimated
    assert taken.training_steps == 2 * 2 * 10 * 16  # two rounds of two tasks
    assert taken.evaluation_steps == (4 + 1) * 3 * (3 + 2) * 16  # three tasks after every stage


def test_a_run_that_the_memory_cannot_hold_is_refused(estimated, monkeypatch):
    taken, _ = estimated
    monkeypatch.setattr(hardware, "available_memory", lambda device="cpu": 2**22)
    message = "8 MiB: would take 0.0 GiB, but device 'cpu' has 0.0 GiB left; choose fewer collector"
    with pytest.raises(ConfigError, match=message):
        taken.require_memory("cpu")


def test_the_cost_is_told_in_words(estimated, monkeypatch):
    taken, policy = estimated
    monkeypatch.setattr(cost, "available_memory", lambda device: 2**31)
    first, second = taken.describe("cpu").split("\n")
    assert first == str(CONTEXTS)
    num = sum(p.numel() for p in policy.parameters())
    assert second.startswith(f"policy of {num:,} parameters, {taken.num_trained:,} of them trained")
    assert "takes about 0.01 GiB more of 2.0, and at most 640 control steps of training" in second
