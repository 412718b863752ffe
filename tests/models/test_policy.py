from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.context import Context
from vla_crl.models.heads import flow
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.policy import PolicyConfig
from vla_crl.models.token_heads import LOSS_TERMS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in policy.named_parameters()
    }


def imitation(policy, context, batch) -> torch.Tensor:
    mask = batch.action_mask & batch.has_action[:, None]
    rows = policy.imitation(context, batch.action_chunk, mask, seeded())
    return (rows * mask.sum(dim=1)).sum() / mask.sum()


def flow_gradients(policy, batch) -> dict[str, torch.Tensor]:
    loss = policy.losses(batch, terms=frozenset({"imitation"}), generator=seeded())["imitation"]
    return gradients(policy, loss)


def backbone_only(grads: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [g for name, g in grads.items() if name.startswith(("backbone.", "state_in."))]


def test_insulated_flow_loss_has_no_gradient_on_any_backbone_parameter(make_policy, batch):
    grads = backbone_only(flow_gradients(make_policy(insulation="full"), batch))
    assert len(grads) > 30
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_without_insulation_the_flow_loss_reaches_every_backbone_layer(make_policy, batch):
    grads = flow_gradients(make_policy(insulation="none"), batch)
    for name, grad in grads.items():
        # The last layer's keys and values are read, but not what follows them.
        last = name.startswith("backbone.model.text_model.layers.1") and not any(
            part in name for part in ("k_proj", "v_proj", "input_layernorm")
        )
        is_unread = last or name.startswith("backbone.model.text_model.norm")
        if name.startswith(("backbone.", "state_in.")):
            assert (grad != 0).any().item() != is_unread, name


def test_action_expert_gradient_is_the_same_with_and_without_insulation(make_policy, batch):
    insulated = flow_gradients(make_policy(insulation="full"), batch)
    joint = flow_gradients(make_policy(insulation="none"), batch)
    for name, grad in insulated.items():
        if name.startswith("head.expert."):
            assert torch.equal(grad, joint[name]), name


def test_partial_insulation_scales_the_backbone_gradient(make_policy, batch):
    joint = flow_gradients(make_policy(insulation="none"), batch)
    partial = flow_gradients(make_policy(insulation=0.25), batch)
    # The stop acts on K and V of each layer once; every path goes through exactly one of them.
    for full, scaled in zip(backbone_only(joint), backbone_only(partial), strict=True):
        torch.testing.assert_close(scaled, 0.25 * full, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stopped", ["keys", "values"])
def test_stopping_only_keys_or_only_values_leaves_a_gradient(
    make_policy, batch, observation, stopped
):
    policy = make_policy(insulation="none")
    context = policy.encode(observation)
    context = replace(context, **{stopped: getattr(context, stopped).detach()})
    grads = gradients(policy, imitation(policy, context, batch))
    assert any((grad != 0).any() for grad in backbone_only(grads))


def test_query_tokens_do_not_change_the_flow_loss(policy, batch):
    alone = policy.losses(batch, terms=frozenset({"imitation"}), generator=seeded())["imitation"]
    together = policy.losses(batch, generator=seeded())["imitation"]
    torch.testing.assert_close(together, alone)


def test_padding_of_the_words_does_not_change_the_actions(make_policy, observation):
    short = make_policy(max_words=6)
    long = make_policy(max_words=11)
    chunks = [p.act(p.encode(observation), deterministic=True) for p in (short, long)]
    torch.testing.assert_close(chunks[0].actions, chunks[1].actions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunks[0].value, chunks[1].value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stochastic_step", ["last", "random"])
@pytest.mark.parametrize("initial_noise", ["zero", "normal"])
def test_ratio_is_exactly_one_before_the_first_update(
    make_policy, observation, stochastic_step, initial_noise
):
    exploration = {"stochastic_step": stochastic_step, "initial_noise": initial_noise}
    policy = make_policy()
    policy.explore(exploration)
    assert policy.exploration == {"noise_level": 0.6} | exploration
    with torch.no_grad():
        context = policy.encode(observation)
    chunk = policy.act(context, deterministic=False, generator=seeded())
    found = policy.evaluate_actions(context, chunk.trace)
    log_prob, value = found.density.log_prob(), found.value
    assert log_prob.requires_grad
    assert torch.equal(log_prob, chunk.log_prob)
    assert torch.equal(value, chunk.value)


def test_stored_context_and_trace_evaluate_like_recomputed_ones(policy, observation):
    with torch.no_grad():
        context = policy.encode(observation)
        chunk = policy.act(context, deterministic=False, generator=seeded())
        storage, traces = context.allocate(8), chunk.trace.allocate(8)
        rows = torch.tensor([6, 1, 4, 3])
        context.copy_into(storage, rows)
        chunk.trace.copy_into(traces, rows)
        stored = policy.evaluate_actions(storage[rows], traces[rows])
        fresh = policy.evaluate_actions(policy.encode(observation), chunk.trace)
    assert torch.equal(stored.density.log_prob(), fresh.density.log_prob())
    assert torch.equal(stored.value, fresh.value)


def test_log_prob_of_a_minibatch_agrees_with_the_whole_batch(policy, observation):
    with torch.no_grad():
        context = policy.encode(observation)
        chunk = policy.act(context, deterministic=False, generator=seeded())
        rows = torch.tensor([2, 0])
        found = policy.evaluate_actions(context[rows], chunk.trace[rows])
    log_prob = found.density.log_prob()
    torch.testing.assert_close(log_prob, chunk.log_prob[rows], rtol=1e-4, atol=1e-4)


def test_deterministic_log_prob_is_the_density_of_the_mode(policy, observation):
    chunk = policy.act(policy.encode(observation), deterministic=True)
    # Last step, K = 4, noise level .6: std = .6 sqrt(.25/.75) sqrt(.25) = .17320508; 4 x 7 numbers.
    expected = -28.0 * np.log(0.17320508 * np.sqrt(2.0 * np.pi))
    assert chunk.log_prob[:, 0].tolist() == pytest.approx([expected] * 4, rel=1e-5)


def test_context_is_not_changed_by_sampling(policy, observation):
    with torch.no_grad():
        context = policy.encode(observation)
    before = Context.cat([context])
    for deterministic in (True, False):
        policy.act(context, deterministic=deterministic, generator=seeded())
    for name in ("keys", "values", "padding_mask", "next_position", "features"):
        assert torch.equal(getattr(context, name), getattr(before, name))


def test_sampling_depends_on_the_generator_only(policy, observation):
    context = policy.encode(observation)
    first, again, other = (
        policy.act(context, deterministic=False, generator=seeded(s)).actions for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_actions_are_unnormalised_and_clipped(policy, observation):
    policy.norm_stats.action_mean.fill_(0.5)
    policy.norm_stats.action_std.fill_(10.0)
    chunk = policy.act(policy.encode(observation), deterministic=True)
    expected = (chunk.trace.x_next * 10.0 + 0.5).clamp(-1.0, 1.0)
    assert torch.equal(chunk.actions, expected)
    assert chunk.actions.abs().max() == 1.0


def test_supervised_and_acting_paths_build_the_same_context(policy, batch, observation):
    loss = policy.losses(batch, terms=frozenset({"imitation"}), generator=seeded())["imitation"]
    direct = imitation(policy, policy.encode(observation), batch)
    torch.testing.assert_close(loss, direct)


def test_several_flow_draws_average_the_single_ones(make_policy, batch, observation):
    expert = make_policy().config.head.expert
    policy = make_policy(head=FlowConfig(num_flow_draws=3, expert=expert))
    context = policy.encode(observation)
    together = imitation(policy, context, batch)
    generator = seeded()
    times = flow.sample_flow_time((4, 3), generator)
    noise = torch.randn(4, 3, 8, 7, generator=generator)
    mask = batch.action_mask & batch.has_action[:, None]
    singles = []
    for draw in range(3):
        t = times[:, draw : draw + 1]
        x = flow.interpolate(batch.action_chunk[:, None], noise[:, draw : draw + 1], t)
        prediction = policy.head.expert(policy.head.expert.remember(context), x, t)
        losses = flow.flow_loss(prediction, batch.action_chunk, t)
        singles.append((losses * mask).sum() / mask.sum())
    torch.testing.assert_close(together, torch.stack(singles).mean())


def test_every_parameter_receives_a_gradient_from_the_losses(policy, batch, observation):
    context = policy.encode(observation)
    total = torch.stack(list(policy.losses(batch, generator=seeded()).values())).sum()
    grads = gradients(policy, total + policy.value(context).sum())
    assert [name for name, grad in grads.items() if not (grad != 0).any()] == []


def test_value_loss_stops_at_the_context(policy, observation):
    grads = gradients(policy, policy.value(policy.encode(observation)).sum())
    reached = {name.split(".")[0] for name, grad in grads.items() if (grad != 0).any()}
    assert reached == {"value_head"}


@pytest.mark.parametrize(
    "terms", [{"imitation"}, {"presence", "offset"}, {"action_tokens", "pointer"}]
)
def test_only_the_asked_terms_are_returned(policy, batch, terms):
    assert policy.losses(batch, terms=frozenset(terms)).keys() == terms


def test_all_terms_are_finite_and_positive(policy, batch):
    losses = policy.losses(batch)
    assert losses.keys() == LOSS_TERMS
    assert all(torch.isfinite(loss) and loss > 0.0 for loss in losses.values())


def test_grounding_terms_do_not_run_the_text_model(policy, batch, monkeypatch):
    monkeypatch.delattr(policy.backbone.model, "text_model")
    assert policy.losses(batch, terms=frozenset({"presence"})).keys() == {"presence"}


def test_policy_learns_to_imitate_a_state_dependent_action(make_policy, batch):
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    terms, generator = frozenset({"imitation", "action_tokens"}), seeded()
    history = []
    for _ in range(60):
        losses = policy.losses(batch, terms=terms, generator=generator)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append(losses["imitation"].item())
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:5])


def test_unknown_loss_term_is_an_error_with_the_nearest_name(policy, batch):
    with pytest.raises(
        ConfigError, match="unknown loss term 'imitations'. Did you mean 'imitation'?"
    ):
        policy.losses(batch, terms=frozenset({"imitations"}))


def test_images_of_another_size_are_refused(policy, observation):
    wrong = replace(observation, images=observation.images[:, :, :16, :16])
    message = r"images: got \(4, 2, 16, 16, 3\), the policy expects 2 cameras \(agentview, eye_in_"
    with pytest.raises(SpecError, match=message + r"hand\) of 32 x 32 pixels.* image_size = 32"):
        policy.encode(wrong)


def test_another_number_of_cameras_is_refused(policy, observation):
    wrong = replace(observation, images=observation.images[:, :1])
    with pytest.raises(SpecError, match="got 1 cameras, expected 2: agentview, eye_in_hand"):
        policy.encode(wrong)


def test_word_numbers_outside_the_vocabulary_are_unknown_words(policy, observation):
    strange = replace(observation, instruction=("pick up the spaceship",) * 4)
    other = replace(observation, instruction=("pick up the teapot",) * 4)
    with pytest.warns(UserWarning, match="does not know"):
        assert torch.equal(policy.encode(strange).keys, policy.encode(other).keys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"insulation": 1.5},
            r"insulation = 1.5 \(float\), expected 'full' or 'none' \| float mor",
        ),
        ({"insulation": "ful"}, r"insulation = 'ful' \(str\), expected 'full' or 'none' \| float"),
        ({"execution_horizon": 9}, "execution_horizon = 9 must be from 1 to action_horizon = 8"),
        ({"action_horizon": 7}, "action_horizon = 7 must be a multiple of"),
        ({"vocabulary": ()}, "vocabulary has 0 words; a backbone with random weights needs some"),
        ({"things": ("cup", "cup")}, r"things are \['cup', 'cup'\], expected each once"),
        ({"image_size": 60}, r"image_size = 60, expected a multiple of 16 .*, e\.g\. 48 or 64"),
        (
            {"image_size": 2048},
            "image_size = 2048 has 65,536 patches of backbone.patch_size = 8, expected at most 16,",
        ),
        ({"image_size": 8}, r"image_size = 8, expected a multiple of 16 .*, e\.g\. 16$"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**{"vocabulary": ("pick",)} | settings)


def test_an_action_expert_that_cannot_share_the_backbones_heads_is_refused(make_policy):
    message = "head.expert.num_heads = 3 must be a multiple of the backbone's 2 key and value heads"
    with pytest.raises(ConfigError, match=message):
        make_policy(head=FlowConfig(expert=ActionExpertConfig(num_heads=3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0, expected at least 1 and at most 1000"),
        ({"num_steps": 10**9}, "num_steps = 1000000000, expected at least 1 and at most 1000"),
        ({"noise_level": 0.0}, "noise_level = 0.0, expected more than 0 and at most 100"),
    ],
)
def test_flow_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FlowConfig(**settings)


def test_exploration_can_be_changed_and_what_is_not_given_stays(policy, observation):
    before = policy.config.head
    policy.explore({"stochastic_step": "random"})
    assert policy.config.head == replace(before, stochastic_step="random")
    with torch.no_grad():
        context = policy.encode(observation)
        generator = torch.Generator().manual_seed(0)
        steps = [
            policy.act(context, deterministic=False, generator=generator).trace.step
            for _ in range(20)
        ]
    assert torch.cat(steps).unique().tolist() == list(range(before.num_steps))


def test_exploration_without_noise_is_refused(policy):
    with pytest.raises(
        ConfigError, match="exploration of the head 'flow': noise_level = 0.0, expected more than 0"
    ):
        policy.explore({"noise_level": 0.0})


def test_exploration_of_another_head_is_refused_with_the_settings_there_are(policy):
    message = "exploration of the head 'flow': unknown setting 'temperature'. .*noise_level"
    with pytest.raises(ConfigError, match=message):
        policy.explore({"temperature": 1.0})


def test_imitation_of_a_row_is_the_mean_over_its_actions_that_count(policy, batch, observation):
    context, mask = policy.encode(observation), batch.action_mask & batch.has_action[:, None]
    rows = policy.imitation(context, batch.action_chunk, mask, seeded())
    weights = mask.sum(dim=1)
    whole = imitation(policy, context, batch)
    torch.testing.assert_close((rows * weights).sum() / weights.sum(), whole)
    assert policy.imitation(context, batch.action_chunk, mask & False, seeded()).tolist() == [0] * 4


@pytest.mark.parametrize(
    "name", ["image_size", "max_words", "num_action_bins", "num_position_bins", "value_width"]
)
def test_a_size_below_one_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} = 0, expected at least 1"):
        replace(PolicyConfig(vocabulary=("cube",)), **{name: 0})


def test_padding_words_are_not_computed_and_change_nothing(policy, observation):
    lengths = []
    policy.backbone.text_model.layers[0].register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].shape[1])
    )
    together = policy.encode(observation)
    alone = policy.encode(observation.__class__(
        observation.images[2:3], observation.state[2:3], observation.instruction[2:3]
    ))  # fmt: skip
    # A state token, 2 cameras of 4 tokens, and five words ("pick up the red cube") or two.
    assert lengths == [1 + 8 + 5, 1 + 8 + 2]
    assert together.keys.shape == (4, *alone.keys.shape[1:])
    assert together.keys.shape[3] == 1 + 8 + 6  # max_words
    rows = alone.padding_mask[:, None, None, :, None]
    torch.testing.assert_close(together.keys[2:3] * rows, alone.keys * rows)
    torch.testing.assert_close(together.features[2:3], alone.features)
