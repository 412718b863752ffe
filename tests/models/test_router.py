from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vla_crl.config import Settings
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import check_loss_paths, train_adapters
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.router import LinearRouter, LinearRouterConfig, Router
from vla_crl.models.routes import RouterRoute

NAMES = ("a", "b")


@pytest.fixture
def routed(policy):
    """A policy with two adapters and a router, whose numbers are not zero."""
    for name in NAMES:
        policy.adapters.add(name, LoRAConfig(rank=2), trained=False)
        for _, up in policy.adapters.matrices(name).values():
            nn.init.normal_(up, std=0.3)
    policy.adapters.route = RouterRoute(router="linear", names=NAMES)
    return policy


def randomize_router(policy) -> None:
    for parameter in policy.adapters.router.parameters():
        nn.init.normal_(parameter)


def actions(policy, observation) -> Tensor:
    with torch.no_grad():
        return policy.act(policy.encode(observation), deterministic=True).actions


def test_a_new_router_gives_all_adapters_the_same_share(routed, observation):
    found = actions(routed, observation)
    with routed.adapters.acting({"a": 0.5, "b": 0.5}):
        expected = actions(routed, observation)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)
    randomize_router(routed)
    assert not torch.equal(actions(routed, observation), found)


def test_a_block_of_acting_leaves_the_router_out(routed, observation):
    randomize_router(routed)
    before = actions(routed, observation)
    with routed.adapters.acting({}):
        base = actions(routed, observation)
    assert not torch.equal(base, before)
    assert torch.equal(actions(routed, observation), before)
    assert routed.adapters.route_of("any task") == {"a": 1.0, "b": 1.0}


def test_gates_are_the_softmax_of_a_linear_map_by_hand():
    router = LinearRouter(LinearRouterConfig(), {"x.y": 2}, 2)
    gate = router.gates["x/y"]
    assert isinstance(gate, nn.Linear)
    gate.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # exp(0) / (exp(0) + exp(ln 3)) = 1 / 4
    gates = router("x.y", torch.tensor([[0.0, torch.tensor(3.0).log()]]))
    torch.testing.assert_close(gates, torch.tensor([[0.25, 0.75]]))


def test_a_sequence_has_the_gates_of_its_mean():
    router = LinearRouter(LinearRouterConfig(level="sequence"), {"x": 3}, 4)
    randomize = torch.Generator().manual_seed(0)
    for parameter in router.parameters():
        parameter.data.normal_(generator=randomize)
    x = torch.randn(5, 6, 3, generator=randomize)
    gates = router("x", x)
    assert gates.shape == (5, 1, 4)
    token = LinearRouter(LinearRouterConfig(), {"x": 3}, 4)
    token.load_state_dict(router.state_dict())
    torch.testing.assert_close(gates[:, 0], token("x", x.mean(dim=1)))


def test_the_largest_gates_act_alone_and_sum_to_one():
    router = LinearRouter(LinearRouterConfig(num_chosen=2), {"x": 3}, 4)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(7, 3)
    gates = router("x", x)
    assert ((gates > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(7))
    every = LinearRouter(LinearRouterConfig(), {"x": 3}, 4)
    every.load_state_dict(router.state_dict())
    assert torch.equal(every("x", x).topk(2, dim=1).indices.sort(dim=1).values,
                       gates.topk(2, dim=1).indices.sort(dim=1).values)  # fmt: skip


def test_a_router_is_trained_with_the_adapters(routed):
    train_adapters(routed, ["b"])
    check_loss_paths(routed)
    trained = {name for name, p in routed.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"head", "adapters", "value_head"}
    assert not any(".lora_A.a." in name for name in trained)


def test_a_router_is_stored_with_the_policy(routed, observation, tmp_path):
    randomize_router(routed)
    save_policy(routed, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.adapters.route == routed.adapters.route
    assert torch.equal(actions(loaded, observation), actions(routed, observation))


@dataclass(frozen=True, kw_only=True)
class OneConfig(Settings):
    """Settings of `One`."""

    number: int = 0


class One(Router):
    """Lets one adapter act; a router of one's own."""

    config_class = OneConfig

    def __init__(self, config, widths, num_adapters):
        super().__init__(config, widths, num_adapters)
        self.gates = torch.zeros(num_adapters)
        self.gates[config.number] = 1.0

    def forward(self, layer, x):
        return self.gates.expand(*x.shape[:-1], -1)


def test_a_router_of_ones_own_is_named_by_its_module(routed, observation):
    own = RouterRoute(router=f"{__name__}:One", names=NAMES, settings={"number": 1})
    routed.adapters.route = own
    found = actions(routed, observation)
    with routed.adapters.acting({"b": 1.0}):
        torch.testing.assert_close(found, actions(routed, observation), rtol=0.0, atol=1e-5)


def test_adapters_of_other_layers_have_their_part_where_they_are(routed, observation):
    routed.adapters.add("c", LoRAConfig(rank=2, site=("*.q_proj",)), trained=False)
    for _, up in routed.adapters.matrices("c").values():
        nn.init.normal_(up, std=0.3)
    routed.adapters.route = RouterRoute(
        router=f"{__name__}:One", names=(*NAMES, "c"), settings={"number": 2}
    )
    found = actions(routed, observation)
    with routed.adapters.acting({"c": 1.0}):
        torch.testing.assert_close(found, actions(routed, observation), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router": "liner"}, "route: unknown router 'liner'. Did you mean 'linear'?"),
        ({"router": "torch.nn:Linear"}, "router 'torch.nn:Linear': is not a subclass of Router"),
        ({"router": "linear", "settings": {"levl": "token"}}, "unknown key 'levl' .* 'level'"),
        ({"router": "linear", "settings": {"num_chosen": 3}}, "num_chosen = 3, expected at most"),
    ],
)
def test_a_router_that_cannot_be_built_is_refused(routed, settings, message):
    before = routed.adapters.record()
    with pytest.raises(ConfigError, match=message):
        routed.adapters.route = RouterRoute(names=NAMES, **settings)
    assert routed.adapters.record() == before


def test_a_route_that_names_an_adapter_twice_is_refused():
    with pytest.raises(ConfigError, match=r"router: names are \['a', 'a'\], expected each once"):
        RouterRoute(router="linear", names=("a", "a"))
