"""Backbones that compute in bfloat16, on the CPU: what is rounded, and what stays exact."""

import json
from dataclasses import replace

import pytest
import torch

from vla_crl.contracts import ARM
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.adapters import (
    add_lora,
    check_loss_paths,
    train_only,
    trainable_parameters,
)
from vla_crl.models.checkpoint import (
    build_policy,
    load_adapter,
    load_policy,
    save_adapter,
    save_policy,
)
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.weights import base_fingerprint
from vla_crl.testing import check_policy

TOLERANCE = 0.05
"""bfloat16 has 8 bits, so 2^-9 = 0.2 % a rounding; a few dozen of them follow one another."""


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def exact(make_policy, tmp_path) -> VLAPolicy:
    """A policy in float32, saved in `tmp_path / "base"`."""
    policy = make_policy()
    save_policy(policy, tmp_path / "base")
    return policy.eval()


@pytest.fixture(params=["held", "autocast"])
def rounded(request, exact, tmp_path) -> VLAPolicy:
    """The same policy whose backbone computes in bfloat16, frozen or to be trained."""
    if request.param == "held":
        return load_policy(tmp_path / "base", dtype="bfloat16")
    policy = VLAPolicy(exact.config, dtype="bfloat16")
    policy.load_state_dict(exact.state_dict())
    return policy.eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual.float(), expected, rtol=0.0, atol=TOLERANCE * scale)


def test_keys_and_values_are_bfloat16_and_everything_else_float32(rounded, observation):
    backbone, seen = rounded.backbone, rounded.tokenize(observation)
    prefix = backbone.embed_images(seen.images).flatten(1, 2)
    valid = torch.ones(prefix.shape[:2], dtype=torch.bool)
    output = backbone(prefix, valid, rounded.token_heads.queries)
    context = output.context
    assert context.keys.dtype == context.values.dtype == torch.bfloat16
    others = (output.first_hidden, output.state_hidden, output.query_hidden, context.features)
    words = backbone.embed_words(seen.token_ids)
    assert {tensor.dtype for tensor in (prefix, words, *others)} == {torch.float32}


def test_a_stored_context_takes_half_the_memory(exact, rounded, observation):
    sizes = []
    for policy in (exact, rounded):
        stored = policy.encode(observation).allocate(10)
        sizes.append(stored.keys.nbytes + stored.values.nbytes)
    assert sizes[1] == sizes[0] / 2


def test_what_the_backbone_computes_agrees_with_float32(exact, rounded, observation):
    ours, theirs = rounded.encode(observation), exact.encode(observation)
    for name in ("keys", "values", "features"):
        assert_close(getattr(ours, name), getattr(theirs, name))
    assert not torch.equal(ours.features, theirs.features)


def test_actions_and_values_agree_with_float32(exact, rounded, observation):
    ours, theirs = (
        policy.act(policy.encode(observation), deterministic=True) for policy in (rounded, exact)
    )
    assert_close(ours.trace.x_next, theirs.trace.x_next)
    assert_close(ours.value, theirs.value)
    assert ours.actions.dtype == ours.log_prob.dtype == ours.value.dtype == torch.float32


def test_the_contract_is_kept_and_the_first_ratio_is_exactly_one(rounded, observation):
    check_policy(rounded, observation)
    with torch.no_grad():
        context = rounded.encode(observation)
    chunk = rounded.act(context, deterministic=False, generator=seeded())
    storage = context.allocate(len(context))
    context.copy_into(storage, slice(None))
    found = rounded.evaluate_actions(storage, chunk.trace)
    log_prob, value = found.density.log_prob(), found.value
    assert torch.equal(log_prob, chunk.log_prob)
    assert torch.equal(value, chunk.value)


def test_recomputed_contexts_leave_the_first_ratio_at_one(rounded, observation):
    with torch.no_grad():
        chunk = rounded.act(rounded.encode(observation), deterministic=False, generator=seeded())
    found = rounded.evaluate_actions(rounded.encode(observation), chunk.trace)
    log_prob = found.density.log_prob()
    torch.testing.assert_close(log_prob, chunk.log_prob, rtol=1e-5, atol=1e-4)


def test_losses_and_their_gradients_agree_with_float32(exact, rounded, batch):
    if rounded.backbone.weight_dtype == torch.bfloat16:
        train_only(rounded, "auxiliary", "head")
    losses, gradients = [], []
    for policy in (rounded, exact):
        losses.append(policy.losses(batch, generator=seeded()))
        torch.stack([*losses[-1].values()]).sum().backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    for name, expected in losses[1].items():
        assert losses[0][name].dtype == torch.float32
        assert_close(losses[0][name], expected)
    for part in {name.split(".")[0] for name in gradients[0]}:
        # Of a whole part: some parameters have no gradient but rounding, such as biases of keys.
        names = [name for name in gradients[0] if name.split(".")[0] == part]
        ours, theirs = (torch.cat([g[name].flatten() for name in names]) for g in gradients)
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98, part


def test_a_backbone_that_computes_in_bfloat16_learns_in_float32(exact, batch):
    policy = VLAPolicy(exact.config, dtype="bfloat16")
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    terms, history = frozenset({"imitation", "action_tokens", "pointer"}), []
    for _ in range(40):
        total = torch.stack([*policy.losses(batch, terms=terms, generator=seeded()).values()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.7 * history[0]
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


@pytest.mark.parametrize("site", ["action_expert", "backbone", "both"])
def test_adapters_are_float32_and_learn_on_a_bfloat16_backbone(exact, tmp_path, observation, site):
    policy = load_policy(tmp_path / "base", dtype="bfloat16")
    policy.config = replace(policy.config, insulation="none")
    before = policy.encode(observation).keys
    add_lora(policy, LoRAConfig(rank=2, site=site))
    trained = [p for group in trainable_parameters(policy).values() for p in group]
    assert {p.dtype for p in trained} == {torch.float32}
    check_loss_paths(policy)
    assert torch.equal(policy.encode(observation).keys, before)
    chunk = policy.act(policy.encode(observation).detach(), deterministic=False)
    start = [p.detach().clone() for p in trained]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    for _ in range(2):  # of a pair A, B only B gets a gradient at first
        found = policy.evaluate_actions(policy.encode(observation), chunk.trace)
        optimizer.zero_grad()
        (found.density.log_prob().sum() + found.value.sum()).backward()
        optimizer.step()
    assert not any(map(torch.equal, start, trained))


def test_weights_held_in_bfloat16_cannot_be_trained(exact, tmp_path):
    policy = load_policy(tmp_path / "base", dtype="bfloat16")
    train_only(policy, "backbone")
    with pytest.raises(ConfigError, match=r"is trainable but torch.bfloat16, in which small steps"):
        check_loss_paths(policy)


def test_a_policy_held_in_bfloat16_is_not_saved_whole(exact, tmp_path):
    policy = load_policy(tmp_path / "base", dtype="bfloat16")
    with pytest.raises(CheckpointError, match="held in torch.bfloat16, rounded; load the pol"):
        save_policy(policy, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_fingerprint_does_not_depend_on_the_type_of_numbers(exact, tmp_path, observation):
    policies = [load_policy(tmp_path / "base", dtype=d) for d in ("float32", "bfloat16")]
    assert base_fingerprint(policies[0]) == base_fingerprint(policies[1])
    add_lora(policies[1], LoRAConfig(rank=2))
    save_adapter(policies[1], tmp_path / "stage_1", str(tmp_path / "base"))
    load_adapter(policies[0], tmp_path / "stage_1")
    again = load_policy(tmp_path / "stage_1", dtype="bfloat16")
    assert again.backbone.dtype == torch.bfloat16
    assert torch.equal(again.encode(observation).keys, policies[1].encode(observation).keys)
    record = json.loads((tmp_path / "stage_1/adapter.json").read_text())
    assert record["base_sha256"] == base_fingerprint(policies[0])


def assert_positions_are_exact(policy: VLAPolicy) -> None:
    angles = [tensor for name, tensor in policy.named_buffers() if "freq" in name]
    assert len(angles) >= 2  # of the text model and of the action expert
    assert {tensor.dtype for tensor in angles} == {torch.float32}


def test_positions_stay_exact(exact, tmp_path):
    assert_positions_are_exact(load_policy(tmp_path / "base", dtype="bfloat16"))


@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "paligemma", "llava", "internvl"])
def test_pretrained_backbones_compute_in_bfloat16(family, save_vlm, tmp_path, observation):
    preset = tmp_path / "mine.toml"
    torch.manual_seed(0)
    preset.write_text(
        f'max_words = 20\nimage_size = 32\n[backbone]\nsource = "{save_vlm(family)}"\n'
        "[head.expert]\nnum_heads = 4\n"
    )
    trained = build_policy(preset, embodiment=ARM, dtype="bfloat16").eval()
    save_policy(trained, tmp_path / "base")
    held = load_policy(tmp_path / "base", dtype="bfloat16")
    plain = load_policy(tmp_path / "base")
    assert {p.dtype for p in held.backbone.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    expected = plain.encode(observation)
    for policy in (trained, held):
        check_policy(policy, observation)
        context = policy.encode(observation)
        assert context.keys.dtype == torch.bfloat16
        for name in ("keys", "values", "features"):
            assert_close(getattr(context, name), getattr(expected, name))
    assert_positions_are_exact(held)
