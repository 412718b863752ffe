"""What methods are for, by sign: sequential fine-tuning forgets the toy tasks, methods help."""

from pathlib import Path

import numpy as np
import pytest

from vla_crl.continual.known_methods import make_method
from vla_crl.errors import ConfigError
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


def test_there_is_no_expert(tmp_path: Path):
    run = ToyTraining(make_method("sequential", {}), tmp_path)
    run.begin(1)
    with pytest.raises(ConfigError, match="demonstrations of 'reach_red': the toy tasks have"):
        run._stage.demonstrations("reach_red", 3)


def test_a_stage_may_be_trained_further_when_it_is_over(tmp_path: Path):
    run = ToyTraining(make_method("sequential", {}), tmp_path, num_iterations=1)
    run.begin(1)
    before = run.policy.get_parameter("head.2.bias").detach().clone()
    run._stage.train(300)  # three rollouts, of which the first trains the value head alone
    assert (run.policy.get_parameter("head.2.bias") != before).any()
    assert run._ppo.iteration == 3
