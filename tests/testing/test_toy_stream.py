"""What methods are for, by sign: sequential fine-tuning forgets the toy tasks, methods help."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from vla_crl.continual.known_methods import make_method
from vla_crl.errors import ConfigError
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.testing.toy_stream import ToyTraining


def train(folder: Path, name: str, settings: dict | None = None, **changes) -> np.ndarray:
    return ToyTraining(make_method(name, settings or {}), folder, **changes).train()


def test_sequential_fine_tuning_learns_every_task_and_forgets_it(tmp_path: Path):
    rates = train(tmp_path, "sequential")
    assert rates[0].max() == 0.0
    assert np.diagonal(rates[1:]).min() > 0.9
    assert rates[-1, :-1].max() < 0.1


def test_all_tasks_at_once_are_learnt(tmp_path: Path):
    rates = train(tmp_path, "multitask")
    assert np.isnan(rates[1:-1]).all()
    assert rates[-1].min() > 0.9


def test_replay_keeps_what_was_learnt(tmp_path: Path):
    rates = train(tmp_path, "own_replay", {"coefficient": 0.1})
    assert np.diagonal(rates[1:]).min() > 0.9
    assert rates[-1].min() > 0.9


def test_held_weights_keep_what_was_learnt(tmp_path: Path):
    rates = train(tmp_path, "ewc", {"strength": 100.0}, num_tasks=2)
    assert rates[1, 0] > 0.9
    assert rates[-1, 0] > 0.8
    assert rates[-1, 1] > 0.8


def test_the_same_seed_gives_the_same_training(tmp_path: Path):
    one, same, other = (
        ToyTraining(make_method("sequential", {}), tmp_path, num_iterations=3, seed=seed)
        for seed in (0, 0, 1)
    )
    for run in (one, same, other):
        run.train()
    assert one.rows == same.rows
    assert one.rows != other.rows


def test_what_is_demonstrated_is_what_the_tasks_want(tmp_path: Path):
    run = ToyTraining(make_method("sequential", {}), tmp_path, num_tasks=2)
    run.begin(1)
    for number, name in enumerate(run.stream.train_tasks):
        shown = run._stage.demonstrations(name, 64)
        again = run._stage.demonstrations(name, 64)
        assert np.array_equal(shown.state, again.state)
        assert (len(shown), shown.num_episodes, shown.episode_success.all()) == (64, 64, True)
        assert len(shown.instructions) == 1
        labels = LabelledSteps(cast(Any, run.policy), shown)
        adam = torch.optim.Adam(run.policy.head.parameters(), lr=0.02)
        draws = torch.Generator().manual_seed(0)
        for batch in (each for _ in range(60) for each in labels.minibatches(32, draws)):
            loss = run.policy.imitation(batch.context, batch.actions, batch.mask).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert run._success()[number] > 0.95  # of what the policy sees, which is drawn anew
    with pytest.raises(ConfigError, match="unknown task 'reach_rde'. Did you mean 'reach_red'"):
        run._stage.demonstrations("reach_rde", 3)
    with pytest.raises(ConfigError, match="num_episodes is 0, expected at least 1"):
        run._stage.demonstrations("reach_red", 0)


def test_a_stage_may_be_trained_further_when_it_is_over(tmp_path: Path):
    run = ToyTraining(make_method("sequential", {}), tmp_path, num_iterations=1)
    run.begin(1)
    before = run.policy.get_parameter("head.2.bias").detach().clone()
    run._stage.train(300)  # three rollouts, of which the first trains the value head alone
    assert (run.policy.get_parameter("head.2.bias") != before).any()
    assert run._begun.iteration == 3
