"""A policy on a device that does not forgive tensors left on the CPU, as a GPU would not."""

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from vla_crl.algos.supervised import SupervisedConfig, SupervisedLearner
from vla_crl.contracts import ARM
from vla_crl.files.state_dicts import load_tensors
from vla_crl.models.adapters import (
    add_lora,
    load_adapter_state_dict,
    trainable_parameters,
)
from vla_crl.models.backbone import Backbone
from vla_crl.models.checkpoint import (
    build_policy,
    load_adapter,
    load_policy,
    save_adapter,
    save_policy,
)
from vla_crl.models.heads.head import HEADS
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.normalization import NormStats
from vla_crl.models.token_heads import LOSS_TERMS
from vla_crl.models.weights import base_fingerprint
from vla_crl.rows import Rows
from vla_crl.testing import check_policy
from vla_crl.testing.strict_device import StrictTensor, strict_device


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tensors_of(rows: Rows) -> Iterator[torch.Tensor]:
    for field in fields(rows):  # pyright: ignore[reportArgumentType]
        column = getattr(rows, field.name)
        yield from [column] if isinstance(column, torch.Tensor) else tensors_of(column)


def are_close(ours: Rows, theirs: Rows) -> None:
    for our, their in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        assert isinstance(our, StrictTensor)
        torch.testing.assert_close(our.cpu(), their, rtol=1e-3, atol=1e-4)


@pytest.fixture
def device():
    with strict_device() as name:
        yield name


@pytest.fixture
def base(make_policy, make_small_head, tmp_path, request):
    """Where a small policy was saved that draws all it can; with a flow head if none is named."""
    policy = make_policy(head=make_small_head(getattr(request, "param", "flow")))
    draws = {"initial_noise": "normal", "stochastic_step": "random"}
    policy.explore({name: draws[name] for name in policy.exploration if name in draws})
    policy.norm_stats.action_std.fill_(0.5)
    save_policy(policy, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def on_device(base, device):
    return load_policy(base, device=device)


def test_all_weights_and_buffers_move(on_device):
    assert on_device.device.type == "strict"
    tensors = [*on_device.parameters(), *on_device.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"strict"}


def test_a_policy_on_a_device_keeps_the_contract(on_device, observation):
    check_policy(on_device, observation)


@pytest.mark.parametrize("base", HEADS, indirect=True)
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_draws_are_those_of_the_cpu(on_device, base, observation, deterministic):
    chunks = []
    for policy in (on_device, load_policy(base)):
        with torch.no_grad():
            context = policy.encode(observation)
        chunk = policy.act(context, deterministic=deterministic, generator=seeded())
        evaluated = policy.evaluate_actions(context, chunk.trace)
        log_prob = evaluated.density.log_prob()
        torch.testing.assert_close(log_prob, chunk.log_prob, rtol=1e-5, atol=1e-5)
        assert torch.equal(policy.value(context), chunk.value)
        chunks.append(chunk)
    are_close(*chunks)


def test_observations_arrive_on_the_device(on_device, observation):
    seen = on_device.tokenize(observation)
    assert all(isinstance(tensor, StrictTensor) for tensor in tensors_of(seen))


@pytest.mark.parametrize("base", HEADS, indirect=True)
def test_losses_gradients_and_steps_are_those_of_the_cpu(on_device, base, batch, device):
    policies, losses = (on_device, load_policy(base)), []
    for policy, rows in zip(policies, (batch.to(device), batch), strict=True):
        learner = SupervisedLearner(policy, SupervisedConfig(num_updates=2, num_warmup_updates=0))
        generator = seeded()
        for _ in range(2):
            losses.append(policy.losses(rows, terms=LOSS_TERMS, generator=generator))
            learner.update(losses[-1])
    for ours, theirs in zip(losses[:2], losses[2:], strict=True):
        for name, loss in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), loss, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("base", "site"),
    [("flow", "action_expert"), *((kind, "both") for kind in HEADS)],
    indirect=["base"],
)
def test_adapters_learn_on_a_device(base, device, observation, tmp_path, site, dtype):
    policy = load_policy(base, device=device, dtype=dtype)
    policy.config = replace(policy.config, insulation="none")
    add_lora(policy, LoRAConfig(rank=2, site=site))
    trained = [p for group in trainable_parameters(policy).values() for p in group]
    assert all(isinstance(p, StrictTensor) and p.dtype == torch.float32 for p in trained)
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    chunk = policy.act(policy.encode(observation).detach(), deterministic=False)
    start = [p.detach().clone() for p in trained]
    for _ in range(2):
        found = policy.evaluate_actions(policy.encode(observation), chunk.trace)
        optimizer.zero_grad()
        (found.density.log_prob().sum() + found.value.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
    moved = [not torch.equal(old, p) for old, p in zip(start, trained, strict=True)]
    # The mean of a Gaussian is computed of actions of 0, so their layer learns nothing.
    assert moved.count(False) == (2 if policy.config.head.kind == "gaussian" else 0)
    with policy.adapters.acting({}):
        policy.encode(observation)
    save_adapter(policy, tmp_path / "stage_1", str(base))
    loaded = load_policy(tmp_path / "stage_1", device=device, dtype=dtype)
    assert torch.equal(loaded.encode(observation).keys, policy.encode(observation).keys)
    load_adapter(policy, tmp_path / "stage_1")
    load_adapter_state_dict(policy, load_tensors(tmp_path / "stage_1/adapter.safetensors"))


def test_a_policy_on_a_device_is_saved_as_one_of_the_cpu(on_device, base, tmp_path):
    save_policy(on_device, tmp_path / "copy")
    ours, theirs = load_policy(tmp_path / "copy"), load_policy(base)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert base_fingerprint(on_device) == base_fingerprint(theirs)


def test_a_preset_is_built_on_a_device_with_the_weights_of_the_cpu(device):
    policies = []
    for where in (device, "cpu"):
        torch.manual_seed(0)
        policies.append(build_policy("tiny", embodiment=ARM, device=where))
    ours, theirs = (policy.state_dict() for policy in policies)
    assert all(torch.equal(ours[name].cpu(), tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "paligemma", "llava", "internvl"])
def test_pretrained_backbones_run_on_a_device(family, save_vlm, device, observation, tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text(
        f'max_words = 20\nimage_size = 32\n[backbone]\nsource = "{save_vlm(family)}"\n'
        "[head.expert]\nnum_heads = 4\n"
    )
    policy = build_policy(preset, embodiment=ARM, device=device).eval()
    check_policy(policy, observation)
    context = policy.encode(observation)
    (context.keys.sum() + context.features.sum()).backward()


def test_statistics_reach_the_device(on_device):
    rng = np.random.default_rng(0)
    on_device.norm_stats.set(rng.normal(size=(5, 8)), rng.normal(size=(5, 7)))
    assert on_device.norm_stats.state_mean.device.type == "strict"
    assert on_device.device.type == "strict"


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (NormStats, "normalize_state", lambda self, state: state - torch.zeros(8)),
        (NormStats, "unnormalize_action", lambda self, actions: actions * torch.ones(7)),
        (
            Backbone,
            "embed_words",
            lambda self, ids: self.model.get_input_embeddings()(ids.cpu()),
        ),
    ],
)
def test_an_operation_that_mixes_devices_is_found(
    on_device, observation, monkeypatch, owner, name, wrong
):
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(RuntimeError, match="of the cpu among those of device strict"):
        check_policy(on_device, observation)


def test_a_draw_on_the_device_is_found(on_device, observation, monkeypatch):
    def randn(shape, generator):
        return torch.empty(shape, device="strict").normal_(generator=generator)

    monkeypatch.setattr(torch, "randn", randn)
    with pytest.raises(RuntimeError, match="draws on device strict; draw on the CPU and move"):
        on_device.act(on_device.encode(observation), deterministic=False, generator=seeded())
