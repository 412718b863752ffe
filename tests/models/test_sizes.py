"""How large a policy will be."""

from dataclasses import replace

import pytest

from vla_crl import hardware
from vla_crl.errors import ConfigError
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.sizes import num_parameters, require_room


@pytest.mark.parametrize(
    "sizes", [{}, {"width": 256, "mlp_width": 512}, {"num_vision_layers": 4}, {"num_kv_heads": 2}]
)
def test_parameters_are_estimated_before_they_are_there(untrained_policy, sizes):
    config = untrained_policy.config
    config = replace(config, backbone=replace(config.backbone, **sizes))
    made = sum(p.numel() for p in VLAPolicy(config).parameters())
    assert num_parameters(config) == pytest.approx(made, rel=0.2)


def test_a_policy_that_the_memory_cannot_hold_is_not_built(untrained_policy, monkeypatch):
    config = untrained_policy.config
    require_room(config, "here")
    monkeypatch.setattr(hardware, "available_memory", lambda device="cpu": 2**20)
    message = "^here: a policy of about 1,.* parameters: would take 0.0 GiB, .*smaller widths"
    with pytest.raises(ConfigError, match=message):
        require_room(config, "here")
