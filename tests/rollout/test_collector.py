import numpy as np
import pytest
import torch

from vla_crl.algos.protocols import Batch
from vla_crl.errors import ConfigError
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import Collector, CollectorConfig
from vla_crl.rollout.contexts import Contexts
from vla_crl.rollout.episodes import Groups, shuffled_lanes
from vla_crl.rollout.lanes import run_lanes
from vla_crl.rows import Rows
from vla_crl.sim.backends import find_suite
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.testing.fake_worlds import fake_suite

TASK = "red_cube_in_basket"


@pytest.fixture
def collect(untrained_policy: VLAPolicy, make_lanes):
    for parameter in untrained_policy.value_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # it starts at zero, which would tell nothing

    # Thirteen chunks of four steps: every episode (48 steps) ends once, at its time limit.
    def make(
        seed: int = 0,
        num_chunks: int = 13,
        contexts: Contexts = "stored",
        *,
        keeps_seen: bool = False,
        whole_episodes: bool = False,
    ) -> Collector:
        suite = load_suite("tabletop_object")
        return Collector(
            untrained_policy,
            make_lanes(suite, 3),
            shuffled_lanes(suite, [suite.task_index(TASK)], 2, seed),
            num_chunks=num_chunks,
            seed=seed,
            contexts=contexts,
            keeps_seen=keeps_seen,
            whole_episodes=whole_episodes,
        )

    return make


def test_next_value_is_the_value_of_the_next_observation(collect):
    collector = collect()
    collector.collect()
    storage = collector.rollout
    assert torch.equal(storage.next_values[:11], storage.values[1:12])


def test_next_value_at_the_time_limit_belongs_to_the_episode_that_ended(collect):
    collector = collect()
    collector.collect()
    storage = collector.rollout
    assert storage.truncated[11].all()
    # Chunk 12 begins a new episode elsewhere, so its value is another number.
    assert not torch.isclose(storage.next_values[11], storage.values[12], atol=1e-7).any()


def test_last_next_value_is_the_first_value_of_the_following_iteration(collect):
    collector = collect()
    collector.collect()
    last = collector.rollout.next_values[-1].clone()
    collector.collect()
    torch.testing.assert_close(last, collector.rollout.values[0])


def test_episodes_run_on_across_iterations(collect):
    collector = collect(num_chunks=7)
    assert collector.collect().episodes == 0
    assert collector.collect().episodes == 3


def test_success_is_zero_if_all_episodes_end_at_the_time_limit(collect):
    collector = collect(num_chunks=7)
    assert np.isnan(collector.collect().success)
    assert collector.collect().success == 0.0


def test_the_parts_of_the_time_are_all_of_it(collect):
    statistics = collect().collect()
    parts = ("render_s", "policy_s", "physics_s", "wait_s")
    assert all(getattr(statistics, part) > 0 for part in parts)
    assert sum(getattr(statistics, part) for part in parts) == pytest.approx(statistics.wall_s)


def test_a_lane_does_not_depend_on_the_others(collect):
    def first_lane(num_lanes: int) -> torch.Tensor:
        collector = collect()
        storage, values = collector.rollout, torch.zeros(13, 3)
        run_lanes(lambda lane: lane.collect(storage, values), collector._lanes[:num_lanes])
        return storage.log_probs[:, :2].clone()

    assert torch.equal(first_lane(1), first_lane(2))


def test_observations_are_kept_where_contexts_are_to_be_recomputed(collect):
    stored, collector = collect(), collect(contexts="every_epoch")
    stored.collect()
    collector.collect()
    assert torch.equal(collector.rollout.log_probs, stored.rollout.log_probs)
    one, other = (
        next(rollout.minibatches(8, torch.Generator().manual_seed(0)))
        for rollout in (stored.rollout, collector.rollout)
    )
    assert torch.equal(one.index, other.index)
    torch.testing.assert_close(other.context.compact().keys, one.context.keys)
    assert other.context.keys.requires_grad
    assert not one.context.keys.requires_grad
    assert other.seen.images.dtype == torch.uint8
    assert one.seen is None


def test_observations_are_kept_beside_stored_contexts_where_somebody_needs_them(collect):
    plain, both, anew = collect(), collect(keeps_seen=True), collect(contexts="every_epoch")
    batches = []
    for collector in (plain, both, anew):
        collector.collect()
        batches.append(next(collector.rollout.minibatches(8, torch.Generator().manual_seed(0))))
    assert torch.equal(batches[1].context.keys, batches[0].context.keys)
    assert torch.equal(batches[1].log_probs, batches[0].log_probs)
    assert torch.equal(batches[1].seen.images, batches[2].seen.images)


def test_the_same_seed_collects_the_same_numbers(collect):
    first, second = collect(seed=4), collect(seed=4)
    assert first.collect().num_steps == second.collect().num_steps
    assert torch.equal(first.rollout.log_probs, second.rollout.log_probs)
    other = collect(seed=5)
    other.collect()
    assert not torch.equal(first.rollout.log_probs, other.rollout.log_probs)


@pytest.mark.parametrize("num_chunks", [7, 13])
def test_a_collector_goes_on_in_the_middle_of_the_episodes_of_another(collect, num_chunks):
    one, other = collect(num_chunks=num_chunks), collect(num_chunks=num_chunks)
    one.collect()
    one.collect()
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    expected = one.collect()
    other.load_state_dict(state)
    statistics = other.collect()
    assert statistics.success == expected.success
    assert equal(statistics.outcomes, expected.outcomes)
    assert equal(other.rollout.steps, one.rollout.steps)
    assert torch.equal(other.rollout.next_values, one.rollout.next_values)


def equal(one: Rows, other: Rows) -> bool:
    pairs = zip(one.flatten().values(), other.flatten().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_worlds_that_cannot_be_stored_are_an_error(make_small_policy, make_lanes):
    suite = fake_suite(extras=("Grounded",))
    sims = make_lanes(suite, 2, image_size=32)
    policy, sources = make_small_policy(suite), shuffled_lanes(suite, [0], 2, seed=0)
    collector = Collector(policy, sims, sources, num_chunks=2, seed=0)
    with pytest.raises(ConfigError, match="'fake' cannot be stored in the middle of episodes: its"):
        collector.state_dict()


def test_simulations_that_cannot_be_lanes_are_refused(untrained_policy):
    suite = load_suite("tabletop_object")
    sim, other = VectorSim(suite, 1), VectorSim(load_suite("tabletop_goal"), 1)

    def collect(sims, num_chunks=1, num_sources=1, **settings):
        sources = shuffled_lanes(suite, [0], num_sources, 0)
        Collector(untrained_policy, sims, sources, num_chunks=num_chunks, seed=0, **settings)

    for sims in ([], [sim, sim], sim):
        with pytest.raises(ConfigError, match="expected a list of simulations, each once"):
            collect(sims)
    with pytest.raises(ConfigError, match="several suites: tabletop_goal, tabletop_object"):
        collect([sim, other])
    with pytest.raises(ConfigError, match="Collector: 2 sources for 1 simulations"):
        collect([sim], num_sources=2)
    with pytest.raises(ConfigError, match="num_chunks is 0, expected at least 1$"):
        collect([sim], num_chunks=0)
    with pytest.raises(ConfigError, match="num_chunks is 11, expected at least 12, which the long"):
        collect([sim], num_chunks=11, whole_episodes=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_chunks": 0}, "CollectorConfig: num_chunks = 0, expected at least 1"),
        ({"max_stored_gib": -1.0}, r"max_stored_gib = -1\.0, expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        CollectorConfig(**setting)


@pytest.fixture
def reach(write_fake_suite, make_small_policy, make_lanes):
    """Return a function that makes a collector of short episodes on a table, some of them won."""
    suite = find_suite(write_fake_suite(train=["red"], heldout=["green"], horizon=9))
    policy = make_small_policy(suite)

    def make(num_chunks: int, *, num_envs: int = 6, group: int = 1, **settings) -> Collector:
        sources = shuffled_lanes(suite, [0, 1], 2, seed=0)
        return Collector(
            policy,
            make_lanes(suite, num_envs, image_size=32),
            [Groups(source, group) for source in sources],
            num_chunks=num_chunks,
            seed=3,
            **settings,
        )

    return make


def all_rows(collector: Collector) -> Batch:
    """Return the rollout, slot after slot."""
    num_rows = collector.rollout.valid.numel()
    (batch,) = collector.rollout.minibatches(num_rows, torch.Generator())
    num_slots = collector.rollout.num_slots
    return batch[(batch.index % num_slots * num_rows + batch.index).argsort()]


def test_rows_tell_their_episode_and_how_it_ended(reach):
    collector = reach(20)
    outcomes = collector.collect().outcomes
    rows = all_rows(collector)
    by_episode = {int(e): i for i, e in enumerate(outcomes.episode)}
    assert len(by_episode) == len(outcomes) > 20
    assert 0 < outcomes.success.sum() < len(outcomes)
    for episode in rows.episode.unique().tolist():
        own = rows[rows.episode == episode]
        assert len({*own.task.tolist()}) == len({*own.state_id.tolist()}) == 1
        if episode not in by_episode:
            assert own.success.isnan().all()
            assert own.episode_return.isnan().all()
            continue
        outcome = outcomes[by_episode[episode]]
        assert (own.success == float(outcome.success)).all()
        assert (own.episode_return == own.reward.sum()).all()
        assert own.task[0] == outcome.task
        assert own.state_id[0] == outcome.state_id
        assert int(outcome.num_steps) <= 9
        assert len(own) == -(-int(outcome.num_steps) // 2)


def test_an_episode_keeps_its_number_and_what_it_has_earned_across_iterations(reach):
    short, long = reach(3), reach(12)
    parts = []
    for _ in range(4):
        short.collect()
        parts.append(all_rows(short))
    long.collect()
    whole, joined = all_rows(long), Batch.cat(parts)
    assert sorted(whole.episode.tolist()) == sorted(joined.episode.tolist())
    for part in parts[1:]:
        over = ~part.success.isnan()
        assert (part.episode_return[over] == part.success[over]).all()


def test_tasks_take_turns_in_every_lane(reach):
    rows = all_rows_of_begun(reach(30))
    assert {task: rows[task] for task in (0, 1)} == pytest.approx({0: 0.5, 1: 0.5}, abs=0.1)


def all_rows_of_begun(collector: Collector) -> dict[int, float]:
    """Return the fraction of a collector's episodes that each task has."""
    collector.collect()
    rows = all_rows(collector)
    tasks = torch.stack([rows.task[rows.episode == e][0] for e in rows.episode.unique()])
    return {task: float((tasks == task).float().mean()) for task in (0, 1)}


def test_whole_episodes_are_one_a_slot_after_which_it_rests(reach):
    collector = reach(7, whole_episodes=True)  # an episode takes five chunks at most
    begun = set()
    for _ in range(2):
        statistics = collector.collect()
        rows = all_rows(collector)
        assert statistics.episodes == 6
        assert len(rows.episode.unique()) == 6
        assert not begun & {*rows.episode.tolist()}
        begun |= {*rows.episode.tolist()}
        assert not rows.success.isnan().any()
        lengths = -(-statistics.outcomes.num_steps // 2)
        assert collector.rollout.valid.sum() == len(rows) == lengths.sum() < 6 * 7
        assert statistics.success == float(statistics.outcomes.success.float().mean())
    assert begun == set(range(12))  # none was left out


def test_a_group_begins_alike_and_acts_differently(reach):
    collector = reach(5, num_envs=8, group=4, whole_episodes=True)
    collector.collect()
    rows = all_rows(collector)
    assert rows.group.unique().tolist() == [0, 1]  # one in each lane
    for group in (0, 1):
        own = rows[rows.group == group]
        first = own[
            torch.tensor([int((own.episode == e).nonzero()[0]) for e in own.episode.unique()])
        ]
        assert len(first) == 4
        assert len(first.state_id.unique()) == len(first.task.unique()) == 1
        keys = first.context.flatten()["keys"]
        torch.testing.assert_close(keys, keys[:1].expand_as(keys))  # they saw the same
        assert len(first.actions.flatten(1).unique(dim=0)) == 4


def test_what_is_seen_last_is_not_looked_at_again(collect):
    collector, looks = collect(num_chunks=3), []
    for lane in collector._lanes:
        observe = lane.sim.observe
        lane.sim.observe = lambda *args, observe=observe: looks.append(1) or observe(*args)
    collector.collect()
    assert len(looks) == 2 * 4  # of two lanes: before each chunk and at the end; no episode ends
    collector.collect()
    assert len(looks) == 2 * 7
    collector.restart()
    collector.collect()
    assert len(looks) == 2 * 11


def test_minibatches_have_no_padding(collect):
    collector = collect(num_chunks=2)
    collector.collect()
    (batch,) = collector.rollout.minibatches(6, torch.Generator())
    length = int(batch.context.next_position.max())
    assert batch.context.keys.shape[3] == length < collector.rollout.steps.context.keys.shape[3]


def test_whole_episodes_end_with_the_values_that_others_have(collect):
    whole, others = collect(whole_episodes=True), collect()
    whole.collect()
    others.collect()
    assert whole.rollout.truncated[11].all()
    torch.testing.assert_close(whole.rollout.next_values[:12], others.rollout.next_values[:12])


def test_some_groups_are_played_anew_and_the_others_stay(reach):
    collector = reach(5, num_envs=8, group=2, whole_episodes=True)
    first = collector.collect()
    rollout = collector.rollout
    before, actions = all_rows(collector), rollout.steps.actions.clone().view(5, 8, -1)
    again = collector.play_again(torch.tensor([2, 3, 4, 5]))  # the last of one lane, and the first
    rows = all_rows(collector)
    assert again.episodes == 4
    assert len(rows.episode.unique()) == 8
    kept = {*before.episode.tolist()} & {*rows.episode.tolist()}
    assert len(kept) == 4
    assert not {*again.outcomes.episode.tolist()} & {*before.episode.tolist()}
    now = rollout.steps.actions.view(5, 8, -1)
    for slot in (0, 1, 6, 7):
        valid = rollout.valid[:, slot]
        assert torch.equal(now[valid, slot], actions[valid, slot])
    for group in rows.group.unique():
        own = rows[rows.group == group]
        assert len(own.episode.unique()) == 2
        assert len(own.state_id.unique()) == 1
    both = first.joined(again)
    assert both.episodes == 12
    assert both.num_steps == first.num_steps + again.num_steps
    assert both.success == float(both.outcomes.success.float().mean())
    assert both.wall_s == first.wall_s + again.wall_s
    collector.collect()
    assert len(all_rows(collector).episode.unique()) == 8


def test_values_at_the_time_limit_stay_where_nothing_is_played_anew(collect):
    collector = collect(whole_episodes=True)
    collector.collect()
    before = collector.rollout.next_values.clone()
    collector.play_again(torch.tensor([1]))
    after = collector.rollout.next_values
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:11, 1], after[:11, 1])
    assert after[:12, 1].all()
