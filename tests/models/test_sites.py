import pytest

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import AdapterLayout, LoRAConfig
from vla_crl.models.routes import RouterRoute
from vla_crl.models.sites import choose_layers, light_names, linear_layers, site_of


def test_every_parameter_has_a_site(policy):
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    sites = {site_of(name) for name, _ in policy.named_parameters()}
    assert sites == {"backbone", "auxiliary", "head", "value"}
    assert site_of("head.expert.layers.0.q_proj.lora_A.default.weight") == "head"
    assert site_of("adapters.router.gates.x.weight") == "router"
    with pytest.raises(ConfigError, match="'strange.weight' belongs to no part of a policy, exp"):
        site_of("strange.weight")
    with pytest.raises(ConfigError, match="'value_head_of_mine.weight' belongs to no part"):
        site_of("value_head_of_mine.weight")


def test_what_is_no_weight_of_the_base_is_adapters_router_and_value_head(policy):
    value = {name for name in policy.state_dict() if name.startswith("value_head.")}
    assert light_names(policy) == value
    base = {*policy.state_dict()} - value
    add_lora(policy, LoRAConfig(rank=2))
    policy.adapters.route = RouterRoute(router="linear", names=("default",))
    assert {*policy.state_dict()} - light_names(policy) == base
    assert any(name.startswith("adapters.router.") for name in light_names(policy))


def test_the_head_is_the_action_expert(policy):
    head = choose_layers(policy, LoRAConfig())
    assert head == choose_layers(policy, LoRAConfig(site="action_expert"))
    assert all(name.startswith("head.expert.") for name in head.ranks)


def test_of_the_backbone_layers_count_that_actions_depend_on(policy):
    names = list(choose_layers(policy, LoRAConfig(site="backbone")).ranks)
    # The last of two text layers passes on its keys and values, and nothing else.
    last = {name.rpartition(".")[2] for name in names if "text_model.layers.1" in name}
    assert last == {"k_proj", "v_proj"}
    assert len({name.rpartition(".")[2] for name in names if "text_model.layers.0" in name}) == 7


def test_layers_are_chosen_by_pattern(policy):
    config = LoRAConfig(site=("backbone.*.v_proj", "head.expert.layers.1.*"))
    names = list(choose_layers(policy, config).ranks)
    expected = [n for n in linear_layers(policy) if n.startswith("head.expert.layers.1.")]
    assert names[-len(expected) :] == expected
    assert all(n.endswith("v_proj") for n in names[: -len(expected)])
    assert any(n.startswith("backbone.") for n in names)


def test_a_pattern_that_fits_nothing_shows_what_is_near(policy):
    message = (
        r"lora.site: pattern 'head.expert.layers.0.q_prj' fits none of the \d+ layers; near it "
        "are head.expert.layers.0.q_proj, head"
    )
    with pytest.raises(ConfigError, match=message):
        choose_layers(policy, LoRAConfig(site=("head.expert.layers.0.q_prj",)))
    message = (
        r"lora.ranks: pattern 'backbone.\*' fits none of the 18 layers; near it are head.expert"
    )
    with pytest.raises(ConfigError, match=message):
        choose_layers(policy, LoRAConfig(ranks={"backbone.*": 4}))


def test_a_site_that_actions_do_not_depend_on_is_refused(policy):
    message = r"lora.site is \['token_heads.*'\], but actions depend on none of its \d+ layers; ch"
    with pytest.raises(ConfigError, match=message):
        choose_layers(policy, LoRAConfig(site=("token_heads.*",)))


def test_ranks_are_told_by_pattern_and_the_scale_is_the_same_for_all(policy):
    config = LoRAConfig(rank=8, alpha=16, ranks={"*.layers.0.q_proj": 2, "*_proj": 4})
    layout = choose_layers(policy, config)
    assert layout.scale == 2.0
    ranks = layout.ranks
    assert ranks["head.expert.layers.0.q_proj"] == 2
    assert ranks["head.expert.layers.1.q_proj"] == 4
    assert ranks["head.expert.action_out"] == 8
    assert str(layout) == "rank 2 to 8 in 18 layers, scale 2"
    add_lora(policy, config)
    pair = policy.adapters.matrices("default")["head.expert.layers.0.q_proj"]
    assert pair[0].shape[0] == pair[1].shape[1] == 2


def test_an_action_expert_that_is_not_there_is_told(policy, monkeypatch):
    monkeypatch.setattr("vla_crl.models.sites.EXPERT", "another_head.")
    with pytest.raises(ConfigError, match="site is 'action_expert', but the policy's head has no"):
        choose_layers(policy, LoRAConfig(site="action_expert"))
    names = list(choose_layers(policy, LoRAConfig(site="head")).ranks)
    assert names
    assert all(name.startswith("backbone.") for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0, "ranks": {"a": 1}}, "scale = 0.0, expected more than 0"),
        ({"scale": 1.0, "ranks": {}}, "ranks has 0 entries, expected at least 1"),
        ({"scale": 1.0, "ranks": {"a": 0}}, "ranks.a = 0, expected at least 1"),
    ],
)
def test_a_layout_that_is_none_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AdapterLayout(**settings)
