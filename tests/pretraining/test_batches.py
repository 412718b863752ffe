"""Batches: questions and commands, chunks, labels by name, and the parts of several origins."""

import dataclasses

import numpy as np
import pytest
import torch

from vla_crl.contracts import ARM
from vla_crl.models.checkpoint import build_policy
from vla_crl.pretraining.batches import BatchSampler, questions
from vla_crl.rollout.demonstrations import collect_demonstrations
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.simulation import NO_THING

SUITE = "tabletop_30"


@pytest.fixture(scope="module")
def demonstrations():
    return collect_demonstrations(load_suite(SUITE), 10, seed=1)


def make_sampler(policy, *origins, batch_size=16, question_fraction=0.5, **settings):
    return BatchSampler(
        policy, origins, batch_size=batch_size, question_fraction=question_fraction, **settings
    )


@pytest.fixture
def sampler(demonstrations, untrained_policy):
    return make_sampler(untrained_policy, demonstrations)


def test_questions_have_no_action_loss_and_commands_do(sampler, untrained_policy):
    batch = sampler.draw()
    where = untrained_policy.tokenizer.encode(["where"])[0][0, 0]
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


def test_the_target_of_a_question_is_the_thing_it_names(sampler, untrained_policy):
    batch = sampler.draw()
    asked_words, _ = untrained_policy.tokenizer.encode(questions(load_suite(SUITE).things))
    for row in torch.arange(len(batch.observation.state))[~batch.has_action]:
        words = batch.observation.token_ids[row]
        asked = (asked_words == words).all(dim=1).nonzero().item()
        assert torch.equal(batch.named_uv[row, 0], batch.object_uv[row, :, asked])
        assert torch.equal(batch.named_visible[row, 0], batch.object_visible[row, :, asked])
        assert not batch.named_visible[row, 1].any()


def test_labels_are_looked_up_by_the_names_of_the_policys_things(demonstrations):
    suite = load_suite(SUITE)
    policy = build_policy("tiny", embodiment=ARM, things=["tray", "teapot", "red cube"])
    batch = make_sampler(policy, demonstrations).draw()
    steps = [
        np.flatnonzero((demonstrations.state == state.numpy()).all(axis=1))[0]
        for state in batch.observation.state
    ]
    for column, thing in ((0, "tray"), (2, "red cube")):
        place = suite.things.index(thing)
        uv, visible = demonstrations.object_uv[steps], demonstrations.object_visible[steps]
        assert np.array_equal(batch.object_uv[:, :, column].numpy(), uv[:, :, place])
        assert np.array_equal(batch.object_visible[:, :, column].numpy(), visible[:, :, place])
        assert batch.object_visible[:, :, column].any()
    assert not batch.object_visible[:, :, 1].any()  # the suite has no teapot


def test_only_rows_with_grounding_are_asked_where_something_is(demonstrations, untrained_policy):
    half = dataclasses.replace(
        demonstrations, has_grounding=np.arange(len(demonstrations)) % 2 == 0
    )
    sampler = make_sampler(untrained_policy, half, question_fraction=0.9, batch_size=64)
    batch = sampler.draw()
    assert (batch.has_grounding | batch.has_action).all()
    assert not batch.has_grounding.all()
    assert not batch.has_action.all()


def test_demonstrations_of_no_thing_are_drawn_without_questions(demonstrations, untrained_policy):
    num = len(demonstrations)
    bare = dataclasses.replace(
        demonstrations,
        things=(),
        named=np.full((num, 2), NO_THING),
        object_uv=demonstrations.object_uv[:, :, :0],
        object_visible=demonstrations.object_visible[:, :, :0],
        has_grounding=np.zeros(num, dtype=bool),
    )
    batch = make_sampler(untrained_policy, bare).draw()
    assert batch.has_action.all()
    assert not batch.has_grounding.any()
    assert not batch.named_visible.any()
    assert not batch.object_visible.any()
    losses = untrained_policy.losses(batch)
    assert {losses[name].item() for name in ("presence", "pointer", "answer_tokens")} == {0.0}
    assert losses["imitation"] > 0.0


def marked(demonstrations, number: float):
    """Return the same with a state that tells them apart."""
    return dataclasses.replace(demonstrations, state=np.full_like(demonstrations.state, number))


@pytest.mark.parametrize(
    ("weights", "share"), [((), 0.5), ((3.0, 1.0), 0.75), ((1e306, 9.9e307), 0.01)]
)
def test_origins_are_drawn_from_as_their_weights_or_else_their_steps_say(
    demonstrations, untrained_policy, weights, share
):
    origins = marked(demonstrations, 1.0), marked(demonstrations, 2.0)
    sampler = make_sampler(untrained_policy, *origins, batch_size=4000, weights=weights)
    state = sampler.draw().observation.state
    assert (state == 1.0).float().mean() == pytest.approx(share, abs=0.03)
    assert sampler.shares.tolist() == pytest.approx([share, 1 - share])


def test_each_origin_keeps_its_own_sentences_things_and_labels(demonstrations, untrained_policy):
    said = tuple(f"push the {thing}" for thing in ("plate", "stove", "door"))
    shuffled = dataclasses.replace(
        demonstrations,
        instructions=said,
        task=demonstrations.task % 3,
        things=demonstrations.things[::-1],
        object_uv=demonstrations.object_uv[:, :, ::-1],
        object_visible=demonstrations.object_visible[:, :, ::-1],
        state=demonstrations.state + 100.0,
    )
    sampler = make_sampler(untrained_policy, demonstrations, shuffled, batch_size=64)
    batch = sampler.draw()
    ids = {sentence: untrained_policy.tokenizer.encode([sentence])[0][0] for sentence in said}
    for row in torch.arange(64)[batch.has_action]:
        state, words = batch.observation.state[row].numpy(), batch.observation.token_ids[row]
        is_shuffled = state[0] > 50
        origin = shuffled if is_shuffled else demonstrations
        step = np.flatnonzero((origin.state == state).all(axis=1))[0]
        sentence = origin.instructions[origin.task[step]]
        assert torch.equal(words, untrained_policy.tokenizer.encode([sentence])[0][0])
        assert (sentence in ids) == is_shuffled
        place = [demonstrations.things.index(t) for t in untrained_policy.config.things]
        number = step  # both have the same steps
        uv = demonstrations.object_uv[number][:, place]
        assert np.array_equal(batch.object_uv[row].numpy(), uv)


def test_the_seed_says_what_is_drawn(demonstrations, untrained_policy):
    origins = demonstrations, marked(demonstrations, 1.0)
    one, again, other = (
        make_sampler(untrained_policy, *origins, seed=seed).draw() for seed in (4, 4, 5)
    )
    assert torch.equal(one.observation.images, again.observation.images)
    assert not torch.equal(one.observation.images, other.observation.images)
