import math
from dataclasses import replace

import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.context import Context


def make_context(policy, num_rows: int = 3, length: int = 7) -> Context:
    generator = torch.Generator().manual_seed(1)
    backbone = policy.backbone.sizes
    shape = (num_rows, backbone.num_layers, backbone.num_kv_heads, length, backbone.head_dim)
    mask = torch.ones(num_rows, length, dtype=torch.bool)
    mask[1, 3:5] = False
    return Context(
        keys=torch.randn(shape, generator=generator),
        values=torch.randn(shape, generator=generator),
        padding_mask=mask,
        next_position=mask.sum(dim=1),
        features=torch.zeros(num_rows, 4),
    )


def predict(policy, context, x, flow_time):
    memory = policy.head.expert.remember(context, flow_time.shape[1])
    return policy.head.expert(memory, x, flow_time)


def rotate(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding by complex numbers: pair (i, i + half) turns by position / theta^(2i/d)."""
    half = heads.shape[-1] // 2
    pairs = torch.complex(heads[..., :half].double(), heads[..., half:].double())
    angle = positions[:, None, :, None] * theta ** -(torch.arange(half).double() / half)
    turned = pairs * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def split(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    return x.double().unflatten(-1, (-1, head_dim)).transpose(1, 2)


def joint_attention(policy, prefix, valid, hidden):
    """One softmax over both experts, layer by layer, from the projections' weights alone."""
    backbone = policy.backbone.sizes
    length, tokens = prefix.shape[1], hidden.shape[1]
    num_valid = valid.sum(1)[:, None]
    state, others = num_valid - 1, torch.arange(length - 1).expand(len(prefix), -1)
    positions = torch.cat([state, others, num_valid + torch.arange(tokens)], dim=1)
    # Prefix rows see valid prefix columns, action rows see those and all action columns.
    mask = torch.zeros(len(prefix), length + tokens, length + tokens, dtype=torch.bool)
    mask[:, :, :length] = valid[:, None]
    mask[:, length:, length:] = True
    text_layers = policy.backbone.model.text_model.layers
    for ours, theirs in zip(policy.head.expert.layers, text_layers, strict=True):
        attention = theirs.self_attn
        rows = theirs.input_layernorm(prefix), ours.attention_norm(hidden)
        q, k, v = (
            torch.cat(
                [split(layer(x), backbone.head_dim) for layer, x in zip(pair, rows, strict=True)],
                dim=2,
            )
            for pair in (
                (attention.q_proj, ours.q_proj),
                (attention.k_proj, ours.k_proj),
                (attention.v_proj, ours.v_proj),
            )
        )
        q, k = (rotate(x, positions, backbone.rope_theta) for x in (q, k))
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(backbone.head_dim)
        weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2).float()
        prefix = prefix + attention.o_proj(mixed[:, :length])
        prefix = prefix + theirs.mlp(theirs.post_attention_layernorm(prefix))
        hidden = hidden + ours.o_proj(mixed[:, length:])
        x = ours.mlp_norm(hidden)
        hidden = hidden + ours.down_proj(
            torch.nn.functional.silu(ours.gate_proj(x)) * ours.up_proj(x)
        )
    return policy.head.expert.norm(hidden)


@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_two_passes_equal_one_joint_softmax(make_policy, num_kv_heads):
    policy = make_policy(backbone={"num_kv_heads": num_kv_heads})
    generator = torch.Generator().manual_seed(2)
    prefix = torch.randn(3, 6, 16, generator=generator)
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[1, 4:] = False
    x, flow_time = torch.randn(3, 1, 8, 7, generator=generator), torch.full((3, 1), 0.5)
    first_layer_input = []
    handle = policy.head.expert.layers[0].register_forward_pre_hook(
        lambda _, inputs: first_layer_input.append(inputs[0])
    )
    two_passes = predict(policy, policy.backbone(prefix, valid).context, x, flow_time)
    handle.remove()
    joint = joint_attention(policy, prefix, valid, first_layer_input[0])
    joint = policy.head.expert.action_out(joint).reshape(3, 1, 8, 7)
    torch.testing.assert_close(two_passes, joint, rtol=1e-4, atol=1e-5)


def test_several_draws_equal_a_loop_over_draws(policy):
    context = make_context(policy)
    x, flow_time = torch.randn(3, 4, 8, 7), torch.rand(3, 4)
    together = predict(policy, context, x, flow_time)
    for draw in range(4):
        one = predict(policy, context, x[:, draw : draw + 1], flow_time[:, draw : draw + 1])
        torch.testing.assert_close(together[:, draw : draw + 1], one, rtol=1e-4, atol=1e-5)


def test_padding_of_the_context_is_not_read(policy):
    context = make_context(policy)
    x, flow_time = torch.randn(3, 1, 8, 7), torch.rand(3, 1)
    before = predict(policy, context, x, flow_time)
    context.keys[1, :, :, 3:5] += 3.0
    context.values[1, :, :, 3:5] -= 3.0
    assert torch.equal(predict(policy, context, x, flow_time), before)


def test_actions_of_a_chunk_see_each_other_in_both_directions(policy):
    context = make_context(policy)
    x, flow_time = torch.randn(3, 1, 8, 7), torch.rand(3, 1)
    before = predict(policy, context, x, flow_time)
    for changed_action, read_action in ((0, 7), (7, 0)):
        changed = x.clone()
        changed[:, :, changed_action] += 1.0
        after = predict(policy, context, changed, flow_time)
        assert not torch.allclose(after[:, :, read_action], before[:, :, read_action])


def test_expert_depends_on_context_flow_time_and_position(policy):
    context = make_context(policy)
    x, flow_time = torch.randn(3, 1, 8, 7), torch.full((3, 1), 0.25)
    before = predict(policy, context, x, flow_time)
    assert not torch.allclose(predict(policy, context, x, flow_time + 0.25), before)
    assert not torch.allclose(predict(policy, context[[1, 2, 0]], x, flow_time), before)
    context.next_position.add_(3)
    assert not torch.allclose(predict(policy, context, x, flow_time), before)


def test_odd_width_is_refused():
    with pytest.raises(ConfigError, match="width = 5, expected at least 4 and .* a multiple of 2"):
        ActionExpertConfig(width=5)


def test_no_action_tokens_are_refused():
    with pytest.raises(ConfigError, match="num_action_tokens = 0, expected at least 1"):
        ActionExpertConfig(num_action_tokens=0)


def test_a_context_without_padding_needs_no_mask(policy):
    context, x, flow_time = make_context(policy), torch.randn(3, 1, 8, 7), torch.full((3, 1), 0.5)
    assert policy.head.expert.remember(context).mask is not None
    whole = replace(context, padding_mask=torch.ones_like(context.padding_mask))
    assert policy.head.expert.remember(whole, draws=2).mask is not None
    memory = policy.head.expert.remember(whole)
    assert memory.mask is None
    masked = memory._replace(mask=torch.zeros(3, 1, 2, 7 + 2))
    assert torch.equal(
        policy.head.expert(memory, x, flow_time), policy.head.expert(masked, x, flow_time)
    )
