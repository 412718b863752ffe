"""The check of a device: on the CPU, and on one that does not forgive tensors left there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_crl.cli import device_check
from vla_crl.cli.device_check import Trial, check_device
from vla_crl.cli.main import main
from vla_crl.compute import ComputeConfig
from vla_crl.models.checkpoint import save_policy
from vla_crl.sim.backends import find_suite
from vla_crl.testing.strict_device import strict_device

STEPS = ("act", "pretrain", "train", "evaluate", "save and load")
PRESET = """
image_size = 32
vocabulary = ["where", "is", "the", "reach", "red", "green", "square"]
max_words = 5
action_horizon = 2
execution_horizon = 2
value_width = 8

[backbone]
vision_width = 32
num_vision_heads = 2
vision_mlp_width = 32
width = 32
num_layers = 2
num_heads = 2
num_kv_heads = 2
mlp_width = 32

[head.expert]
width = 16
num_heads = 2
mlp_width = 16
"""


@pytest.fixture
def trial(tmp_path: Path, write_fake_suite, make_small_policy, make_small_head) -> Trial:
    name = write_fake_suite(train=["red"], heldout=["green"], horizon=9)
    for folder, kind in (("base", "flow"), ("bins", "tokens")):
        policy = make_small_policy(find_suite(name), head=make_small_head(kind))
        save_policy(policy, tmp_path / folder)
    (tmp_path / "preset.toml").write_text(PRESET, encoding="utf-8")
    return Trial(
        suite=name,
        preset=str(tmp_path / "preset.toml"),
        base=str(tmp_path / "base"),
        heads=(str(tmp_path / "bins"),),
        num_envs=4,
        num_updates=1,
        num_episodes=1,
    )


def test_the_cpu_does_what_the_cpu_does(trial: Trial):
    checks = [*check_device("cpu", trial)]
    steps = (*STEPS, f"act by {trial.heads[0]}")
    names = [f"{step} in {dtype} on cpu" for dtype in ("float32", "bfloat16") for step in steps]
    assert [check.name for check in checks] == names
    assert [check.status for check in checks] == ["ok"] * len(names)
    for check in checks[0], checks[4], checks[6], checks[10]:
        expected = "differences: actions 0, log-probabilities 0, values 0; "
        assert check.found.startswith(expected)
    for check in checks[5], checks[11]:  # what is chosen of bins is not compared
        assert check.found.startswith("differences: log-probabilities ")


@pytest.mark.parametrize("kind", ["noise"])
def test_policies_with_other_heads_are_tried_alike(
    trial: Trial, kind: str, tmp_path: Path, monkeypatch: Any
):
    preset = PRESET.replace("[head.expert]", f'[head]\nkind = "{kind}"\n\n[head.expert]')
    (tmp_path / "preset.toml").write_text(preset, encoding="utf-8")
    base = tmp_path / f"base_{kind}"
    trial.pretrain(ComputeConfig(), base)
    monkeypatch.setattr(device_check, "TOLERANCES", {"float32": 0.01})
    checks = [*check_device("cpu", replace(trial, base=str(base)))]
    assert [(check.status, check.found) for check in checks if check.status != "ok"] == []


def test_a_device_that_computes_something_else_fails(trial: Trial, monkeypatch: Any):
    monkeypatch.setattr(device_check, "TOLERANCES", {"float32": -1.0})
    monkeypatch.setattr(device_check, "MAX_RATIO_ERROR", 0.0)
    act, pretrain, train, evaluate, save, _ = check_device("cpu", trial)
    for check in (act, pretrain):
        assert check.status == "fail"
        assert check.found.startswith("actions differ by 0, where they are up to ")
        assert check.advice == "compute on the 'cpu', and tell us"
    assert train.status == "fail"
    assert "expected below 0.0" in train.found
    assert evaluate.status == save.status == "ok"


@pytest.mark.slow
def test_the_strict_device_does_what_the_cpu_does(trial: Trial, monkeypatch: Any):
    monkeypatch.setattr(ComputeConfig, "__post_init__", lambda self: None)
    monkeypatch.setattr(ComputeConfig, "prepare", lambda self: None)
    # The strict device has no autocast, in which a backbone in bfloat16 is pretrained.
    monkeypatch.setattr(device_check, "TOLERANCES", {"float32": 1e-3})
    with strict_device() as device:
        *checks, worlds = check_device(device, trial)
    assert [check.status for check in checks] == ["ok"] * 6, checks
    assert worlds.name == "train in worlds on strict"
    assert worlds.status == "fail"
    assert "sim_device 'strict': the backend" in worlds.found


def test_a_gpu_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--device", "cuda:9"]) == 2
    assert "device 'cuda:9': torch" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_does_what_the_cpu_does(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--device", "cuda:0"]) == 0, capsys.readouterr().out
