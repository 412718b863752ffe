from dataclasses import replace

import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.export.card import card_text
from vla_crl.export.measured import Measured
from vla_crl.export.programs import TOLERANCE, example_inputs, export_programs
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.heads.gaussian import GaussianConfig
from vla_crl.models.heads.head import ActionHead
from vla_crl.models.heads.noise import NoiseConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.sim.native.suite import load_suite

EXPERT = ActionExpertConfig(width=16, num_heads=2, mlp_width=16)
HEADS = {
    "noise": (NoiseConfig(num_steps=2, expert=EXPERT), "noise, 2 steps from zero noise"),
    "gaussian": (GaussianConfig(expert=EXPERT), "| action head | gaussian |"),
}


@pytest.fixture
def policy(make_small_policy, request):
    config = make_small_policy(load_suite("tabletop_object")).config
    return VLAPolicy(replace(config, head=HEADS[request.param][0])).eval()


@pytest.mark.parametrize("policy", HEADS, indirect=True)
def test_programs_of_other_heads_act_as_their_policy(policy):
    programs = export_programs(policy)
    assert programs.difference < TOLERANCE
    inputs = example_inputs(policy, 5)
    for name in ("act", "sample"):
        actions, value = programs.exported[name].module()(*inputs[name])
        expected, _ = programs.eager[name](*inputs[name])
        torch.testing.assert_close(actions, expected, rtol=0.0, atol=1e-5)
        assert value.shape == (5,)
    mode, _ = programs.eager["act"](*inputs["act"])
    assert torch.equal(inputs["act"][5], torch.zeros(5, 2, 7))
    assert (mode - programs.eager["sample"](*inputs["sample"])[0]).abs().max() > 1e-3


class Undrawn(ActionHead):
    def sample(self, context, *, deterministic, generator):
        raise NotImplementedError

    def density(self, context, trace):
        raise NotImplementedError

    def imitation(self, context, actions, generator):
        raise NotImplementedError


@pytest.mark.parametrize("policy", ["gaussian"], indirect=True)
def test_a_head_that_draws_while_it_samples_is_refused(policy):
    policy.head = Undrawn(policy.config.head, policy.head.sizes)
    with pytest.raises(ConfigError, match=r"drawn before they sample \(DrawnHead\), this policy's"):
        export_programs(policy)


@pytest.mark.parametrize("policy", HEADS, indirect=True)
def test_the_card_names_the_head(policy):
    measured = Measured(suite="tabletop_object", tasks=(), origin="Made up.", hardware="")
    text = card_text("name", policy, measured, license_id="mit", notes=(), latency=())
    expected = HEADS[policy.config.head.kind][1]
    assert expected in text
    assert ("flow-matching" in text) == (policy.config.head.kind == "noise")
