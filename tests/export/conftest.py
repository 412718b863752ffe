import pytest
import torch

from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.sim.native.suite import load_suite


@pytest.fixture(scope="session")
def make_adapted_policy(make_small_policy):
    """Return a function that builds a small policy with adapters that do something."""

    def make():
        policy = make_small_policy(load_suite("tabletop_object"))
        add_lora(policy, LoRAConfig(rank=2, alpha=3, site="both"))
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return policy

    return make
