import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.attention import Past
from vla_crl.models.vlm import BackboneConfig

# Of nine tokens, the first of which is the state's; in the second row seven are valid.
POSITIONS = torch.tensor([[8, 0, 1, 2, 3, 4, 5, 6, 7], [6, 0, 1, 2, 3, 4, 5, 5, 5]])


def prefix_of(policy, length: int = 9):
    generator = torch.Generator().manual_seed(3)
    prefix = torch.randn(2, length, policy.config.backbone.width, generator=generator)
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[1, 7:] = False
    return prefix, valid


def test_recorded_keys_and_values_equal_the_cache_of_transformers(policy):
    prefix, valid = prefix_of(policy)
    context = policy.backbone(prefix, valid).context
    text_model = policy.backbone.model.text_model
    text_model.set_attn_implementation("sdpa")
    mask = valid[:, None, None, :].expand(2, 1, 9, 9)
    cache = text_model(
        inputs_embeds=prefix, attention_mask=mask, position_ids=POSITIONS, use_cache=True
    ).past_key_values
    for index, layer in enumerate(cache.layers):
        torch.testing.assert_close(context.keys[:, index], layer.keys)
        torch.testing.assert_close(context.values[:, index], layer.values)


def test_first_free_position_is_the_number_of_valid_tokens(policy):
    prefix, valid = prefix_of(policy)
    context = policy.backbone(prefix, valid).context
    assert context.next_position.tolist() == [9, 7]


def test_query_tokens_leave_the_context_unchanged(policy):
    prefix, valid = prefix_of(policy)
    alone = policy.backbone(prefix, valid).context
    for num_queries in (1, 4):
        queries = torch.randn(num_queries, policy.config.backbone.width)
        context = policy.backbone(prefix, valid, queries).context
        torch.testing.assert_close(context.keys, alone.keys)
        torch.testing.assert_close(context.values, alone.values)
        torch.testing.assert_close(context.features, alone.features)
        assert torch.equal(context.next_position, alone.next_position)


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_behind_a_stored_context_are_those_of_the_cache_of_transformers(policy, causal):
    prefix, valid = prefix_of(policy)
    tokens = torch.randn(2, 3, policy.config.backbone.width)
    context = policy.backbone.context(prefix, valid, padded_length=12)
    ours = policy.backbone.extend(context, tokens, causal=causal)
    text_model = policy.backbone.model.text_model
    text_model.set_attn_implementation("sdpa")
    mask = valid[:, None, None, :].expand(2, 1, 9, 9)
    cache = text_model(
        inputs_embeds=prefix, attention_mask=mask, position_ids=POSITIONS, use_cache=True
    ).past_key_values
    own = torch.ones(3, 3, dtype=torch.bool)
    own = own.tril() if causal else own
    mask = torch.cat([valid[:, None].expand(2, 3, 9), own.expand(2, 3, 3)], dim=2)[:, None]
    theirs = text_model(
        inputs_embeds=tokens,
        attention_mask=mask,
        position_ids=torch.tensor([[9, 10, 11], [7, 8, 9]]),
        past_key_values=cache,
    ).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tokens_one_after_another_are_those_of_a_causal_pass(policy):
    prefix, valid = prefix_of(policy)
    tokens = torch.randn(2, 4, policy.config.backbone.width)
    context, past = policy.backbone.context(prefix, valid), Past()
    together = policy.backbone.extend(context, tokens, causal=True)
    parts = [
        policy.backbone.extend(context, part, causal=True, past=past)
        for part in tokens.split([1, 2, 1], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), together, rtol=1e-4, atol=1e-5)
    assert len(past) == 4


def test_the_gradient_of_later_tokens_reaches_the_context_unless_it_is_stopped(policy):
    prefix, valid = prefix_of(policy)
    tokens, prefix = torch.randn(2, 2, policy.config.backbone.width), prefix.requires_grad_()
    for insulation, reaches in (("none", True), ("full", False)):
        context = policy.backbone.context(prefix, valid).insulate(insulation)
        hidden = policy.backbone.extend(context, tokens, causal=True)
        (gradient,) = torch.autograd.grad(hidden.sum(), prefix, allow_unused=True)
        assert (gradient is not None) == reaches


def test_query_tokens_do_not_see_each_other(policy):
    prefix, valid = prefix_of(policy)
    queries = torch.randn(3, policy.config.backbone.width)
    together = policy.backbone(prefix, valid, queries).query_hidden
    changed = queries.clone()
    changed[2] += 1.0
    torch.testing.assert_close(
        policy.backbone(prefix, valid, changed).query_hidden[:, :2], together[:, :2]
    )


def test_content_of_padding_does_not_reach_valid_tokens(policy):
    prefix, valid = prefix_of(policy)
    before = policy.backbone(prefix, valid).context
    changed = torch.where(valid[..., None], prefix, prefix + 5.0)
    after = policy.backbone(changed, valid).context
    rows = valid[:, None, None, :, None]
    torch.testing.assert_close(after.keys * rows, before.keys * rows)
    torch.testing.assert_close(after.features, before.features)


def test_every_prefix_token_sees_later_ones(policy):
    prefix, valid = prefix_of(policy)
    before = policy.backbone(prefix, valid).context
    changed = prefix.clone()
    changed[:, -1] += 1.0
    after = policy.backbone(changed, valid).context
    assert not torch.allclose(after.values[:, 1, :, 0], before.values[:, 1, :, 0])


def test_image_tokens_are_ordered_row_by_row_from_the_top_left(make_policy):
    # Without vision layers a token depends on its own patches only.
    policy = make_policy(backbone={"num_vision_layers": 0})
    dark = np.zeros((1, 2, 32, 32, 3), dtype=np.uint8)
    tokens = policy.backbone.embed_images(torch.from_numpy(dark))
    assert tokens.shape == (1, 2, 4, 16)
    for row, column, token in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)):
        bright = dark.copy()
        bright[0, 0, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 255
        changed = policy.backbone.embed_images(torch.from_numpy(bright)) != tokens
        assert changed.any(dim=-1).flatten().nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "patch_size = 0, expected at least 1"),
        ({"pixel_shuffle": 0}, "pixel_shuffle = 0, expected at least 1"),
        ({"num_kv_heads": 3}, "num_heads by num_kv_heads must divide evenly, got 4 by 3"),
        ({"num_layers": 0}, "num_layers = 0, expected at least 1"),
        ({"num_layers": 10**9}, "num_layers = 1000000000, .* at most 1000"),
        ({"num_vision_layers": -1}, "num_vision_layers = -1, expected at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**settings)


def test_a_pass_for_the_context_alone_leaves_the_same_and_ends_before_the_last_mlp(policy):
    prefix, valid = prefix_of(policy)
    whole = policy.backbone(prefix, valid).context
    calls = []
    policy.backbone.text_model.layers[-1].mlp.register_forward_hook(lambda *_: calls.append(1))
    context = policy.backbone.context(prefix, valid, padded_length=12)
    assert not calls
    assert torch.equal(context.keys[..., :9, :], whole.keys)
    assert torch.equal(context.values[..., :9, :], whole.values)
    assert torch.equal(context.features, whole.features)
    assert context.padding_mask.sum(dim=1).tolist() == [9, 7]
    assert context.keys.shape[3] == context.padding_mask.shape[1] == 12


def test_features_are_of_what_goes_into_the_last_layer(policy):
    prefix, valid = prefix_of(policy)
    text_model, inputs = policy.backbone.text_model, []
    text_model.layers[-1].input_layernorm.register_forward_pre_hook(
        lambda _, arguments: inputs.append(arguments[0])
    )
    features = policy.backbone.context(prefix, valid).features
    hidden = inputs[0] / inputs[0].square().mean(dim=-1, keepdim=True).sqrt()
    mean = torch.stack([hidden[0].mean(dim=0), hidden[1, :7].mean(dim=0)])
    torch.testing.assert_close(features, torch.cat([mean, hidden[:, 0]], dim=1))
