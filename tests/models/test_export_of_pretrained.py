"""Exporting policies whose backbone was somebody's before, as the command does it."""

import pytest
import torch

from vla_crl.cli.main import main
from vla_crl.contracts import ARM
from vla_crl.export.programs import export_programs
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.pretrained_vlm import PretrainedBackboneConfig


@pytest.fixture(scope="module")
def make_pretrained(save_vlm):
    def make(family: str) -> VLAPolicy:
        torch.manual_seed(0)
        config = PolicyConfig(
            embodiment=ARM,
            image_size=48,
            max_words=20,
            backbone=PretrainedBackboneConfig(source=str(save_vlm(family)), num_layers=1),
            head=FlowConfig(
                num_steps=1,  # every step and layer is traced
                expert=ActionExpertConfig(width=12, num_heads=4, mlp_width=16),
            ),
            value_width=8,
        )
        return VLAPolicy(config).eval()

    return make


def test_a_pretrained_backbone_needs_a_licence_named(make_pretrained, tmp_path, capsys):
    source, output = tmp_path / "source", tmp_path / "new"
    save_policy(make_pretrained("paligemma"), source)
    assert main(["export", "--policy", str(source), "--output", str(output)]) == 2
    assert "name the one under which you share this, e.g. --license" in capsys.readouterr().err
    flags = ["--policy", str(source), "--license", "mit", "--output", str(output)]
    assert main(["export", *flags]) == 0
    assert "license: mit" in (output / "README.md").read_text()
    assert load_policy(output).backbone.vlm.is_pretrained


def test_a_pretrained_backbone_becomes_a_program(make_pretrained):
    policy = make_pretrained("paligemma")
    add_lora(policy, LoRAConfig(rank=2))  # which stay apart
    assert export_programs(policy).difference < 1e-5
