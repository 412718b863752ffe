import shutil

import torch

from vla_crl.contracts import Observation
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.pretrained_vlm import PretrainedBackboneConfig
from vla_crl.models.random_weights import with_random_weights


def test_weights_are_random_and_all_else_is_kept(policy, observation: Observation):
    policy.norm_stats.action_mean.fill_(0.25)
    torch.manual_seed(1)
    fresh = with_random_weights(policy)
    assert fresh.config == policy.config
    assert fresh.norm_stats.action_mean[0] == 0.25
    for (name, own), other in zip(fresh.named_parameters(), policy.parameters(), strict=True):
        is_constant = own.unique().numel() <= 2  # biases, scales of norms, padding
        assert is_constant or not torch.equal(own, other), name
    assert not fresh.training
    torch.manual_seed(1)
    again = with_random_weights(policy)
    assert all(map(torch.equal, fresh.parameters(), again.parameters()))


def test_a_pretrained_backbone_is_random_too_and_asks_for_no_source(make_policy, save_vlm):
    source = save_vlm("smolvlm")
    config = make_policy().config
    settings = {
        "embodiment": config.embodiment,
        "image_size": 32,
        "head": config.head,
        "things": config.things,
    }
    backbone = PretrainedBackboneConfig(source=str(source))
    policy = VLAPolicy(PolicyConfig(backbone=backbone, **settings))
    shutil.rmtree(source)
    fresh = with_random_weights(policy)
    name = next(n for n, _ in policy.named_parameters() if n.endswith("q_proj.weight"))
    assert not torch.equal(fresh.get_parameter(name), policy.get_parameter(name))
    ids = [
        model.tokenizer.encode(["pick up the red cube"])[0].tolist() for model in (fresh, policy)
    ]
    assert ids[0] == ids[1]
