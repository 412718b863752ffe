import dataclasses

import pytest
import torch

from vla_crl.continual.beginning import load_beginning, prepare_training
from vla_crl.continual.recipe import TrainConfig
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.adapters import add_lora, trainable_parameters
from vla_crl.models.checkpoint import load_policy, save_adapter, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.routes import TaskRoute
from vla_crl.recipes import load_recipe


def begin(config, **changes):
    """Return the policy of a recipe as it is trained."""
    changed = dataclasses.replace(config, **changes)
    policy = load_beginning(changed)
    policy.config = dataclasses.replace(
        policy.config, insulation=changed.insulation or policy.config.insulation
    )
    prepare_training(policy, changed)
    return policy


def test_without_adapters_the_weights_themselves_are_trained(config):
    policy = begin(config, lora=None)
    assert policy.adapters.names == ()
    assert trainable_parameters(policy).keys() == {"head", "value"}
    frozen = {name.split(".")[0] for name, p in policy.named_parameters() if not p.requires_grad}
    assert "head" not in frozen
    assert "value_head" not in frozen


def test_parts_of_the_backbone_are_trained_where_it_is_not_insulated(config):
    policy = begin(config, lora=None, train=("backbone", "value"), insulation="none")
    assert trainable_parameters(policy).keys() == {"backbone", "value"}
    message = "backbone parameters are trainable, but no gradient .*: all parameters of 'backbone'"
    with pytest.raises(ConfigError, match=message):
        begin(config, lora=None, train=("backbone", "value"))


def test_random_weights_are_those_of_the_seed(config):
    policies = [
        load_beginning(dataclasses.replace(config, lora=None, init="random", seed=seed))
        for seed in (1, 1, 2)
    ]
    one, again, other = ([*policy.parameters()] for policy in policies)
    assert all(map(torch.equal, one, again))
    assert not all(map(torch.equal, one, other))
    base = load_policy(config.policy)
    assert policies[0].config == base.config
    assert not all(map(torch.equal, one, base.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("backbone",)}, r"train is \['backbone'\], but adapters are trained; leave it"),
        ({"train": ()}, "train has 0 entries, expected at least 1"),
        ({"train": ("heads",)}, r"train\[0\] = 'heads', expected .*Did you mean"),
        ({"init": "random"}, "init is 'random', but adapters of random weights .*lora = \"None\""),
    ],
)
def test_settings_of_what_is_not_trained_are_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)


def test_a_policy_goes_on_with_the_adapter_that_it_brings(config, tmp_path):
    policy = load_policy(config.policy)
    add_lora(policy, LoRAConfig(rank=2))
    policy.adapters.add("resting", LoRAConfig(rank=1), trained=False)
    save_policy(policy, tmp_path / "brought")
    further = {"policy": str(tmp_path / "brought"), "lora": LoRAConfig(rank=2)}
    found = begin(config, **further)
    assert found.adapters.record() == policy.adapters.record()
    trained = {name for name, p in found.named_parameters() if p.requires_grad}
    assert all(".default." in name or name.startswith("value_head.") for name in trained)
    message = "brings 'default' of rank 2 .*, 'resting' .*, the recipe asks for 'default' of rank 8"
    with pytest.raises(ConfigError, match=message):
        begin(config, policy=further["policy"])
    with pytest.raises(CheckpointError, match="the policy has adapters, but all weights are to be"):
        begin(config, policy=further["policy"], lora=None)
    policy.adapters.activate({"resting": 1.0})
    save_policy(policy, tmp_path / "brought")
    with pytest.raises(ConfigError, match="brings an adapter 'default' that does not act, so it"):
        begin(config, **further)


@pytest.mark.parametrize(
    ("recipe", "init", "train"),
    [
        ("full_finetuning", "checkpoint", ("head", "value")),
        ("from_scratch", "random", ("backbone", "head", "value")),
    ],
)
def test_the_controls_of_the_study_are_recipes(recipe, init, train):
    config = load_recipe("train", recipe)
    assert isinstance(config, TrainConfig)
    assert (config.lora, config.init, config.train) == (None, init, train)
    policy = begin(config)
    assert trainable_parameters(policy).keys() == set(train)


@pytest.mark.parametrize("is_routed", [False, True])
def test_a_policy_of_other_adapters_is_told_what_to_begin_with(config, tmp_path, is_routed):
    policy = load_policy(config.policy)
    policy.adapters.add("task_0", LoRAConfig(rank=2))
    if is_routed:
        policy.adapters.route = TaskRoute(tasks={"red": {"task_0": 1.0}})
    save_adapter(policy, tmp_path / "stage", config.policy)
    merged = "what 'vla-crl export --merge' makes of"
    advice = "the policy that they were added to" if is_routed else f"{merged} the policy"
    with pytest.raises(ConfigError, match=f"make them equal, or begin with {advice}$"):
        begin(config, policy=str(tmp_path / "stage"))
    advice = "name that policy" if is_routed else f"name that policy, or {merged} this one"
    with pytest.raises(CheckpointError, match=f"all weights are to be trained; {advice}$"):
        begin(config, policy=str(tmp_path / "stage"), lora=None)
