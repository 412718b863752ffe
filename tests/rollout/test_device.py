"""Collecting and evaluating on a device that does not forgive tensors left on the CPU."""

import copy
from typing import Any

import pytest
import torch

from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.collector import CollectionStatistics, Collector
from vla_crl.rollout.episodes import Groups, shuffled_lanes
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.rows import Rows
from vla_crl.sim.backends import find_suite
from vla_crl.testing.strict_device import StrictTensor, strict_device


@pytest.fixture
def suite(write_fake_suite):
    return find_suite(write_fake_suite(train=["red"], heldout=["green"], horizon=9))


@pytest.fixture
def policies(suite, make_small_policy):
    """The same policy on the device and on the CPU."""
    on_cpu = make_small_policy(suite)
    with strict_device() as device:
        yield copy.deepcopy(on_cpu).to(device), on_cpu


@pytest.fixture
def collect(suite, make_lanes):
    """Return a function that collects a rollout of a policy."""

    def run(
        policy: VLAPolicy, *, group: int = 1, **settings: Any
    ) -> tuple[RolloutStorage, CollectionStatistics]:
        sims = make_lanes(suite, 6, image_size=32)
        sources = [Groups(source, group) for source in shuffled_lanes(suite, [0, 1], 2, seed=0)]
        collector = Collector(policy, sims, sources, num_chunks=6, seed=3, **settings)
        statistics = collector.collect()
        collector.rollout.compute_advantages(gamma=0.99, gae_lambda=0.95)
        return collector.rollout, statistics

    return run


def require_alike(ours: Rows, theirs: Rows) -> None:
    columns, expected = ours.flatten(), theirs.flatten()
    assert columns.keys() == expected.keys()
    for name, column in columns.items():
        assert isinstance(column, StrictTensor), name
        torch.testing.assert_close(
            column.cpu(), expected[name], rtol=1e-3, atol=1e-4, equal_nan=True
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"contexts": "stored"},
        {"contexts": "every_epoch"},
        {"contexts": "stored", "whole_episodes": True, "group": 3},
    ],
    ids=["stored", "every_epoch", "whole_episodes"],
)
def test_a_rollout_is_that_of_the_cpu(policies, collect, settings):
    (ours, our_statistics), (theirs, their_statistics) = (
        collect(policy, **settings) for policy in policies
    )
    assert ours.device.type == "strict"
    assert torch.equal(ours.valid.cpu(), theirs.valid)
    for column in ("next_values", "advantages", "returns"):
        torch.testing.assert_close(
            getattr(ours, column).cpu(), getattr(theirs, column), rtol=1e-3, atol=1e-4
        )
    generators = [torch.Generator().manual_seed(0) for _ in policies]
    for our_batch, their_batch in zip(
        ours.minibatches(16, generators[0]), theirs.minibatches(16, generators[1]), strict=True
    ):
        require_alike(our_batch, their_batch)
    assert our_statistics.success == their_statistics.success
    outcomes, expected = (s.outcomes.flatten() for s in (our_statistics, their_statistics))
    assert len(expected["success"]) > 0
    assert all(torch.equal(outcomes[name], column) for name, column in expected.items())


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_policy_on_a_device_succeeds_as_on_the_cpu(policies, suite, make_lanes, deterministic):
    results = [
        evaluate(
            PolicyAgent(policy, deterministic),
            make_lanes(suite, 6, image_size=32),
            num_episodes=5,
        )
        for policy in policies
    ]
    assert results[0] == results[1]
    assert 0 < sum(result.successes for result in results[0]) < 10
