import pytest
import torch

from vla_crl.models import weights
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.routes import TaskRoute
from vla_crl.models.weights import base_fingerprint, weights_fingerprint


def randomize_adapters(policy) -> None:
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)


def test_a_fingerprint_of_the_weights_changes_with_any_of_them(make_policy):
    policy, same = make_policy(), make_policy()
    assert weights_fingerprint(policy) == weights_fingerprint(same)
    add_lora(policy, LoRAConfig(rank=2))
    prints = [weights_fingerprint(same), weights_fingerprint(policy)]
    randomize_adapters(policy)
    prints.append(weights_fingerprint(policy))
    policy.adapters.activate({"default": 0.5})
    prints.append(weights_fingerprint(policy))
    policy.adapters.route = TaskRoute(tasks={}, default={})
    prints.append(weights_fingerprint(policy))
    with torch.no_grad():
        next(policy.value_head.parameters()).add_(1.0)
        prints.append(weights_fingerprint(policy))
        next(policy.backbone.parameters()).add_(1.0)
        prints.append(weights_fingerprint(policy))
    assert len(set(prints)) == 7


def test_the_fingerprint_is_taken_once_and_of_the_file(policy, tmp_path, monkeypatch):
    save_policy(policy, tmp_path / "base")
    loaded = load_policy(tmp_path / "base")
    monkeypatch.setattr(weights, "_sha256", lambda *_: pytest.fail("hashed again"))
    before = base_fingerprint(loaded)
    add_lora(loaded, LoRAConfig(rank=2, site="both"))
    randomize_adapters(loaded)
    with torch.no_grad():
        loaded.value_head.output.weight.add_(1.0)
    assert base_fingerprint(loaded) == before
    monkeypatch.undo()
    assert base_fingerprint(policy) == before  # of a policy that was built
