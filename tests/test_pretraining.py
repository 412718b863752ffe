import copy
import dataclasses

import numpy as np
import pytest
import torch

from vla_crl import pretraining
from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.checkpoint import load_policy, read_card
from vla_crl.pretraining import BatchSampler, PretrainConfig, pretrain, train_supervised
from vla_crl.rollout.demonstrations import collect_demonstrations
from vla_crl.rollout.evaluate import TaskResult
from vla_crl.sim.native.suite import load_suite

SUITE = "tabletop_30"
CONFIG = PretrainConfig(
    suite=SUITE,
    policy="tiny",
    num_episodes=10,
    num_eval_episodes=1,
    question_fraction=0.5,
    supervised=SupervisedConfig(num_updates=2, batch_size=16),
)


@pytest.fixture(scope="module")
def demonstrations():
    return collect_demonstrations(load_suite(SUITE), 10, seed=1)


@pytest.fixture
def sampler(demonstrations, untrained_policy):
    return BatchSampler(untrained_policy, demonstrations, load_suite(SUITE), CONFIG)


def test_pretraining_leaves_a_checkpoint_whose_card_tells_how_it_was_made(tmp_path):
    card = pretrain(CONFIG, tmp_path / "checkpoint", recipe="mine")
    assert read_card(tmp_path / "checkpoint") == card
    assert card["samples"] == 32
    page = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "vla-crl pretrain mine" in page
    assert "| `tabletop_object.red_cube_in_basket` | 0 % |" in page
    assert set(card["success_on_test_ids"]) == {task.name for task in load_suite(SUITE).tasks}
    assert not torch.equal(
        load_policy(tmp_path / "checkpoint").norm_stats.state_mean, torch.zeros(8)
    )


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    with pytest.raises(ConfigError, match="exists; remove it or give another --output"):
        pretrain(CONFIG, tmp_path, recipe="mine")


def test_questions_have_no_action_loss_and_commands_do(sampler):
    batch = sampler.draw()
    where = sampler._token_ids[sampler._num_commands, 0]  # first word of "where is the red cube"
    assert torch.equal(batch.has_action, batch.observation.token_ids[:, 0] != where)
    assert batch.has_action.any()
    assert not batch.has_action.all()


def test_chunks_are_the_next_clean_labels_and_stop_at_the_end_of_the_episode(
    sampler, demonstrations
):
    batch = sampler.draw()
    for row in range(len(batch.observation.state)):
        step = np.flatnonzero(
            (demonstrations.state == batch.observation.state[row].numpy()).all(axis=1)
        )[0]
        left = demonstrations.episode_end[step] - step
        assert batch.action_mask[row].sum() == min(8, left)
        expected = demonstrations.label[step : step + min(8, left)]
        assert np.array_equal(batch.action_chunk[row].numpy()[: len(expected)], expected)


def test_the_target_of_a_question_is_the_thing_it_names(sampler):
    batch = sampler.draw()
    for row in torch.arange(len(batch.observation.state))[~batch.has_action]:
        words = batch.observation.token_ids[row]
        asked = (sampler._token_ids == words).all(dim=1).nonzero().item() - sampler._num_commands
        assert torch.equal(batch.named_uv[row, 0], batch.object_uv[row, :, asked])
        assert torch.equal(batch.named_visible[row, 0], batch.object_visible[row, :, asked])
        assert not batch.named_visible[row, 1].any()


def test_a_policy_for_another_number_of_things_is_refused(tmp_path):
    from vla_crl.catalog import policy_path

    text = policy_path("tiny").read_text().replace("num_objects = 22", "num_objects = 3")
    (tmp_path / "small.toml").write_text(text)
    wrong = dataclasses.replace(CONFIG, policy=str(tmp_path / "small.toml"))
    with pytest.raises(ConfigError, match="num_objects = 3, but suite 'tabletop_30' has 22"):
        pretrain(wrong, tmp_path / "checkpoint", recipe="mine")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_eval_episodes": 201}, "num_eval_episodes is 201, but suite .* has 200 test states"),
        (
            {"num_check_episodes": 5000, "target_success": 0.5},
            "num_check_episodes is 5000, but suite 'tabletop_30' has 4000 training states",
        ),
        (
            {"supervised": dataclasses.replace(CONFIG.supervised, loss_weights={"flo": 1.0})},
            "supervised.loss_weights: unknown loss term 'flo'. Did you mean 'flow'",
        ),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(
    tmp_path, monkeypatch, setting, message
):
    monkeypatch.delattr(pretraining, "collect_demonstrations")
    with pytest.raises(ConfigError, match=message):
        pretrain(dataclasses.replace(CONFIG, **setting), tmp_path / "checkpoint", recipe="mine")


def test_a_sentence_too_long_for_the_policy_is_refused_before_the_demonstrations(
    tmp_path, monkeypatch
):
    from vla_crl.catalog import policy_path

    monkeypatch.delattr(pretraining, "collect_demonstrations")
    text = policy_path("tiny").read_text().replace("max_words = 16", "max_words = 4")
    (tmp_path / "terse.toml").write_text(text)
    wrong = dataclasses.replace(CONFIG, policy=str(tmp_path / "terse.toml"))
    with pytest.raises(SpecError, match="expected 1 to 4; shorten it or raise max_words"):
        pretrain(wrong, tmp_path / "checkpoint", recipe="mine")


def test_cameras_that_do_not_fit_are_refused_before_the_demonstrations(tmp_path, monkeypatch):
    from vla_crl.catalog import policy_path

    monkeypatch.delattr(pretraining, "collect_demonstrations")
    text = policy_path("tiny").read_text().replace("image_size = 64", "image_size = 32")
    (tmp_path / "blurred.toml").write_text(text)
    wrong = dataclasses.replace(CONFIG, policy=str(tmp_path / "blurred.toml"))
    with pytest.raises(SpecError, match=r"the policy expects .* with \(2, 32, 32, 3\)"):
        pretrain(wrong, tmp_path / "checkpoint", recipe="mine")


def test_an_interrupted_evaluation_leaves_the_trained_policy(tmp_path, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, tmp_path / "checkpoint", recipe="mine")
    load_policy(tmp_path / "checkpoint")
    assert "success_on_test_ids" not in read_card(tmp_path / "checkpoint")


def test_the_question_fraction_is_checked():
    with pytest.raises(ConfigError, match=r"question_fraction = 1\.0"):
        dataclasses.replace(CONFIG, question_fraction=1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target_success": 0.0}, r"target_success = 0\.0, expected in \(0, 1\]"),
        ({"check_every": 0}, "check_every = 0, expected at least 1"),
        ({"num_check_episodes": 0}, "num_check_episodes = 0, expected at least 1"),
    ],
)
def test_the_settings_of_an_early_stop_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **setting)


def test_pretraining_stops_at_the_first_look_that_finds_the_target(
    demonstrations, untrained_policy, monkeypatch
):
    looks = []

    def evaluate(agent, suite, **settings):
        assert not policy.training
        looks.append(settings)
        return [TaskResult("lift", "train", [1, 3, 4][len(looks) - 1], 10)]

    monkeypatch.setattr(pretraining, "evaluate", evaluate)
    config = dataclasses.replace(
        CONFIG,
        target_success=0.3,
        check_every=2,
        num_check_episodes=7,
        supervised=SupervisedConfig(num_updates=9, batch_size=4),
    )
    policy = copy.deepcopy(untrained_policy)
    assert train_supervised(policy, demonstrations, load_suite(SUITE), config) == 4
    assert looks == [{"num_episodes": 7, "states": "train"}] * 2
    assert not policy.training
