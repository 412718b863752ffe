"""A whole run on a device that does not forgive tensors left on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_crl.algos.ppo import PPOConfig
from vla_crl.compute import ComputeConfig
from vla_crl.continual import beginning
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.trainer import Trainer
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite
from vla_crl.testing.strict_device import strict_device

TOLD = ("success", "ratio_error", "explained_variance", "policy_loss", "value_loss", "kl")


class Averaging(ContinualMethod):
    """Keeps numbers of the device, and takes them up again on resuming."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mean_return = torch.zeros(1)

    def after_task(self, policy, stage):
        self.mean_return = stage.collect().returns.mean(dim=(0, 1), keepdim=True)[0]

    def state_dict(self):
        return {"mean_return": self.mean_return}

    def load_state_dict(self, state):
        self.mean_return = state["mean_return"]


@pytest.fixture
def config(tmp_path: Path, write_fake_suite, make_small_policy) -> TrainConfig:
    suite = write_fake_suite(train=["red"], heldout=[], horizon=9)
    save_policy(make_small_policy(find_suite(suite)), tmp_path / "base")
    return TrainConfig(
        suite=suite,
        policy=str(tmp_path / "base"),
        method=f"{__name__}:Averaging",
        episodes_per_task=12,
        lora=LoRAConfig(rank=2),
        compute=ComputeConfig(num_torch_threads=1, num_sim_threads=1),
        learner=PPOConfig(minibatch_size=16, value_warmup_iterations=1, num_epochs=1),
        collector=CollectorConfig(num_envs=6, num_chunks=5),
        evaluation=EvaluationConfig(num_episodes=2, num_sampled_episodes=1),
        video_episodes=0,
    )


def train(config: TrainConfig, path: Path) -> RunDirectory:
    trainer = Trainer(config, RunDirectory(path))
    run = RunDirectory.create(path, config, seed=0, command=[])
    trainer.train(resume=False)
    trainer.close()
    return run


@pytest.mark.slow
def test_a_run_is_that_of_the_cpu(config, tmp_path, monkeypatch):
    on_cpu = train(config, tmp_path / "cpu")
    with strict_device() as strict:
        monkeypatch.setattr(
            beginning,
            "load_policy",
            lambda path, *, device, **settings: load_policy(path, device=strict, **settings),
        )
        run = train(config, tmp_path / "strict")
        resumed = Trainer(config, run)
        resumed.train(resume=True)
        resumed.close()
    for ours, theirs in zip(run.read_metrics(), on_cpu.read_metrics(), strict=True):
        assert [ours[name] for name in TOLD] == pytest.approx(
            [theirs[name] for name in TOLD], rel=1e-2, abs=1e-4, nan_ok=True
        )
    assert run.matrix_file.read_text() == on_cpu.matrix_file.read_text()
    for file in ("adapter.safetensors", "method.safetensors"):
        ours, theirs = (load_file(r.checkpoint(1) / file) for r in (run, on_cpu))
        for name in theirs.keys() - {"wall_s"}:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-3)
    weights = resumed.policy.state_dict()
    for name, tensor in load_file(run.checkpoint(1) / "adapter.safetensors").items():
        assert weights[name].device.type == "strict"
        assert torch.equal(weights[name].cpu(), tensor)
