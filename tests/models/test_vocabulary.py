import copy

import numpy as np
import pytest
import torch

from vla_crl.contracts import Observation
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.tokenizer import WordTokenizer
from vla_crl.models.vocabulary import make_readable
from vla_crl.testing.strict_device import strict_device

KNOWN = ("pick up the red cube", "where is the cube")


def observe(policy: VLAPolicy, *sentences: str) -> Observation:
    size, rng = policy.config.image_size, np.random.default_rng(0)
    return Observation(
        rng.integers(0, 256, (len(sentences), 2, size, size, 3), dtype=np.uint8),
        rng.normal(size=(len(sentences), 8)).astype(np.float32),
        sentences,
    )


@torch.no_grad()
def act(policy: VLAPolicy, *sentences: str) -> tuple[torch.Tensor, ...]:
    chunk = policy.act(policy.encode(observe(policy, *sentences)), deterministic=True)
    return chunk.actions, chunk.log_prob, chunk.value


def embeddings(policy: VLAPolicy) -> torch.Tensor:
    return policy.backbone.model.get_input_embeddings().weight.detach().clone()


def test_words_are_told_in_lower_case_as_the_vocabulary_would_have_them():
    tokenizer = WordTokenizer(("pick", "up"), 9)
    assert tokenizer.unknown_words("Pick UP, the Teapot!") == [",", "the", "teapot", "!"]
    assert tokenizer.unknown_words("pick up") == []
    assert tokenizer.length("Pick up pick") == 3


def test_new_words_get_numbers_behind_the_known_ones(policy: VLAPolicy):
    before, words = policy.tokenizer.encode(KNOWN), policy.config.vocabulary
    new = make_readable(policy, ["Fetch the mug", "fetch the blue Mug, the jar"])
    assert new == ("fetch", "mug", ",", "jar")
    assert policy.config.vocabulary == (*words, *new)
    for ours, theirs in zip(policy.tokenizer.encode(KNOWN), before, strict=True):
        assert torch.equal(ours[:, : theirs.shape[1]], theirs)
    ids, _ = policy.tokenizer.encode(["fetch the jar"])  # no warning of unknown words
    assert ids[0, :3].tolist() == [2 + len(words), 4, 5 + len(words)]


def test_known_words_act_as_before_bit_for_bit(policy: VLAPolicy):
    rows, acted = embeddings(policy), act(policy, *KNOWN)
    others = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    assert make_readable(policy, ["fetch the mug", "put it on the very far side of the table"])
    assert torch.equal(embeddings(policy)[: len(rows)], rows)
    for ours, theirs in zip(act(policy, *KNOWN), acted, strict=True):
        assert torch.equal(ours, theirs)
    changed = [name for name, t in policy.state_dict().items() if not torch.equal(t, others[name])]
    assert len(changed) == 1
    assert "embed_tokens" in changed[0]


def test_the_shipped_policy_acts_as_before_bit_for_bit():
    sentences = ("open the drawer", "pick up the red cube and place it in the basket")
    policy = load_policy("tiny")
    acted = act(policy, *sentences)
    assert make_readable(policy, ["yank out the compartment"]) == ("yank", "out", "compartment")
    for ours, theirs in zip(act(policy, *sentences), acted, strict=True):
        assert torch.equal(ours, theirs)


def test_new_words_differ_and_are_as_large_as_known_ones(policy: VLAPolicy):
    known = embeddings(policy)[2:] + 3.0
    with torch.no_grad():
        policy.backbone.model.get_input_embeddings().weight[2:] = known
    make_readable(policy, [" ".join(f"word{number}" for number in range(500))])
    new = embeddings(policy)[-500:]
    assert len(torch.unique(new, dim=0)) == 500
    assert torch.allclose(new.mean(dim=0), known.mean(dim=0), atol=0.15)
    assert torch.allclose(new.std(dim=0), known.std(dim=0), rtol=0.15)
    assert len(torch.unique(act(policy, "pick word1", "pick word2")[0], dim=0)) == 2


def test_nothing_new_changes_nothing(policy: VLAPolicy):
    config, tokenizer = policy.config, policy.tokenizer
    assert make_readable(policy, KNOWN) == ()
    assert policy.config is config
    assert policy.tokenizer is tokenizer


def test_longer_sentences_get_room(policy: VLAPolicy):
    sentence = "pick up the red cube where the blue cube is"
    make_readable(policy, [sentence])
    assert policy.config.max_words == 10
    assert policy.tokenizer.encode([sentence])[1].sum() == 10
    act(policy, sentence)


def test_a_policy_with_new_words_is_trained_saved_and_loaded(policy: VLAPolicy, tmp_path):
    make_readable(policy, ["fetch the mug and put it down here"])
    embedding = policy.backbone.model.get_input_embeddings().weight
    policy.backbone.embed_words(policy.tokenizer.encode(["fetch"])[0]).sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.any(dim=1).nonzero().flatten().tolist() == [10]  # [PAD] stays as it is
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.config == policy.config
    for ours, theirs in zip(act(loaded, "fetch"), act(policy, "fetch"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_loaded_to_be_trained_has_float32_weights(policy: VLAPolicy, tmp_path, dtype):
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, dtype=dtype, is_trained=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())
    make_readable(loaded, ["fetch"])
    save_policy(loaded, tmp_path / "again")


def test_words_are_learnt_where_the_policy_is(policy: VLAPolicy):
    words = copy.deepcopy(policy)
    torch.manual_seed(3)
    make_readable(words, ["fetch the mug"])
    with strict_device() as device:
        policy.to(device)
        torch.manual_seed(3)
        make_readable(policy, ["fetch the mug"])
        assert {parameter.device.type for parameter in policy.parameters()} == {device}
        there = embeddings(policy).cpu()
    assert torch.equal(there, embeddings(words))
