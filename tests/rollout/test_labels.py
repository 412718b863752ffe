import numpy as np
import torch

from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.demonstrations import collect_demonstrations, record_expert
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.sim.native.suite import load_suite


def test_every_step_comes_once_with_the_chunk_that_begins_there(untrained_policy: VLAPolicy):
    data = collect_demonstrations(load_suite("tabletop_object"), 3)
    labels = LabelledSteps(untrained_policy, data)
    batches = [*labels.minibatches(50, torch.Generator().manual_seed(0))]
    assert [len(batch) for batch in batches[:-1]] == [50] * (len(data) // 50)
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == [*range(len(data))]
    ends = np.unique(data.episode_end)
    for batch in batches:
        for row in range(0, len(batch), 7):
            step = int(batch.index[row])
            episode = int(batch.episode[row])
            left = int(ends[episode]) - step
            assert 0 < left <= ends[0] or episode > 0
            assert batch.mask[row].tolist() == [k < left for k in range(8)]
            wanted = data.label[step : step + min(left, 8)]
            assert np.array_equal(batch.actions[row, : len(wanted)].numpy(), wanted)
            assert batch.task[row] == data.task[step]
            assert batch.success[row] == float(data.episode_success[episode])
    batch = batches[0]
    assert batch.seen is not None
    with torch.no_grad():  # what is seen is what was demonstrated, in the words of its task
        seen = untrained_policy.encode(batch.seen)  # pyright: ignore[reportArgumentType]
        now = untrained_policy.evaluate_actions(seen, batch.trace)
    torch.testing.assert_close(now.density.log_prob(), batch.log_probs, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(now.value, batch.values)


def test_named_episodes_are_those_that_demonstrations_have(make_lanes):
    suite = load_suite("tabletop_object")
    whole = collect_demonstrations(suite, 4, seed=5)
    order = np.random.default_rng(5).permutation(suite.train_ids)[:4]
    lanes = make_lanes(suite, 3)
    ended: list[int] = []
    same = record_expert(
        lanes, np.arange(4) % len(suite.tasks), order, seed=[5], watch=lambda _, n: ended.append(n)
    )
    for name in ("images", "state", "label", "task", "episode_end", "episode_success"):
        assert np.array_equal(getattr(whole, name), getattr(same, name)), name
    assert sum(ended) == 4
