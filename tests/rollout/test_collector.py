import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector, CollectorConfig
from vla_crl.rollout.lanes import run_lanes
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim


@pytest.fixture
def collect(untrained_policy: VLAPolicy, make_lanes):
    for parameter in untrained_policy.value_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # it starts at zero, which would tell nothing

    # Thirteen chunks of four steps: every episode (48 steps) ends once, at its time limit.
    def make(seed: int = 0, num_chunks: int = 13, recompute_contexts: bool = False) -> Collector:
        sims = make_lanes(load_suite("tabletop_object"), 3)
        return Collector(
            untrained_policy,
            sims,
            "red_cube_in_basket",
            num_chunks=num_chunks,
            seed=seed,
            recompute_contexts=recompute_contexts,
        )

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
    collector = collect(num_chunks=7)
    assert collector.collect().episodes == 0
    assert collector.collect().episodes == 3


def test_success_is_that_of_the_latest_episodes_that_had_the_time_to_fail(collect):
    collector = collect(num_chunks=7)  # an episode has at most twelve
    lane, other = collector._lanes
    # As if two slots had succeeded at once and begun anew, at chunks 3 and 4.
    other.outcomes += [(0, True), (3, True)]
    assert np.isnan(collector.collect().success)
    lane.outcomes, other.outcomes = [(0, False), (1, True)], [(0, True), (3, True)]
    lane.collect, other.collect = lambda *_: iter(()), lambda *_: iter(())
    lane.clock = 14  # those begun at 2 or earlier must be over
    assert collector.collect().success == 2 / 3
    lane.clock = 21
    assert collector.collect().success == 3 / 4  # both that began at 0, as there are three slots
    lane.clock = 28
    lane.outcomes += [(9, False), (9, False), (10, True)]
    assert collector.collect().success == 1 / 3  # the last three
    assert [*lane.outcomes, *other.outcomes] == [(9, False), (9, False), (10, True)]


def test_success_is_zero_if_all_episodes_end_at_the_time_limit(collect):
    collector = collect(num_chunks=7)
    assert np.isnan(collector.collect().success)
    assert collector.collect().success == 0.0


def test_every_training_state_is_used_once_before_any_is_used_again(collect):
    lanes, seen = collect()._lanes, []
    train_ids = set(load_suite("tabletop_object").train_ids)
    for lane, num_slots in zip(lanes, (2, 1), strict=True):
        for _ in range(len(train_ids) // 2 // num_slots):
            seen += lane._sim.state_ids.tolist()
            lane._restart(np.arange(num_slots))
    assert len(seen) == len(train_ids)
    assert set(seen) == train_ids


def test_the_parts_of_the_time_are_all_of_it(collect):
    statistics = collect().collect()
    parts = ("render_s", "policy_s", "physics_s", "wait_s")
    assert all(getattr(statistics, part) > 0 for part in parts)
    assert sum(getattr(statistics, part) for part in parts) == pytest.approx(statistics.wall_s)


def test_a_lane_does_not_depend_on_the_others(collect):
    def first_lane(num_lanes: int) -> torch.Tensor:
        collector = collect()
        storage, values = collector.storage, torch.zeros(13, 3)
        run_lanes(lambda lane: lane.collect(storage, values), collector._lanes[:num_lanes])
        return storage.log_probs[:, :2].clone()

    assert torch.equal(first_lane(1), first_lane(2))


def test_observations_are_kept_where_contexts_are_to_be_recomputed(collect, untrained_policy):
    stored, collector = collect(), collect(recompute_contexts=True)
    stored.collect()
    collector.collect()
    assert torch.equal(collector.storage.log_probs, stored.storage.log_probs)
    one, other = (
        next(rollout.minibatches(8, torch.Generator().manual_seed(0)))
        for rollout in (stored.rollout, collector.rollout)
    )
    assert torch.equal(one.rows, other.rows)
    torch.testing.assert_close(other.context.keys, one.context.keys)
    assert other.context.keys.requires_grad
    assert not one.context.keys.requires_grad
    assert collector.storage._rows.context.images.dtype == torch.uint8


def test_the_same_seed_collects_the_same_numbers(collect):
    first, second = collect(seed=4), collect(seed=4)
    assert first.collect().num_steps == second.collect().num_steps
    assert torch.equal(first.storage.log_probs, second.storage.log_probs)
    other = collect(seed=5)
    other.collect()
    assert not torch.equal(first.storage.log_probs, other.storage.log_probs)


def test_simulations_that_cannot_be_lanes_are_refused(untrained_policy):
    suite = load_suite("tabletop_object")
    sim, other = VectorSim(suite, 1), VectorSim(load_suite("tabletop_goal"), 1)

    def collect(sims, num_chunks=1):
        Collector(untrained_policy, sims, "red_cube_in_basket", num_chunks=num_chunks, seed=0)

    for sims in ([], [sim, sim], sim):
        with pytest.raises(ConfigError, match="expected a list of simulations, each once"):
            collect(sims)
    with pytest.raises(ConfigError, match="several suites: tabletop_goal, tabletop_object"):
        collect([sim, other])
    with pytest.raises(ConfigError, match="num_chunks is 0, expected at least 1"):
        collect([sim], num_chunks=0)


def test_counts_are_checked():
    with pytest.raises(ConfigError, match=r"collector\.num_chunks is 0, expected at least 1"):
        CollectorConfig(num_chunks=0)
