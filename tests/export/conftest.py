"""One policy, exported once with all that the command can do."""

import json
from dataclasses import replace

import pytest
import torch

from vla_crl.cli.main import main
from vla_crl.continual.success_matrix import Cell, append_stage
from vla_crl.contracts import Split
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_adapter, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.sim.native.suite import load_suite


@pytest.fixture(scope="session")
def base(make_small_policy, tmp_path_factory):
    """The folder of a small base policy."""
    folder = tmp_path_factory.mktemp("base")
    policy = make_small_policy(load_suite("tabletop_object"))
    # Every step from noise is traced: two are enough.
    policy.head.config = replace(policy.config.head, num_steps=2)
    policy.config = replace(policy.config, head=policy.head.config)
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(base, tmp_path_factory):
    """The second stage of a run: adapters, and what was measured of them."""
    run = tmp_path_factory.mktemp("runs") / "skills"
    policy = load_policy(base)
    add_lora(policy, LoRAConfig(rank=2, alpha=3))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(policy, run / "checkpoints" / "stage_2", str(base))
    config = {"suite": "tabletop_object", "policy": str(base), "method": "sequential", "seed": 4}
    (run / "config.json").write_text(json.dumps(config))
    (run / "versions.json").write_text(json.dumps({"cpu_model": "Example CPU"}))
    for stage in range(3):
        counts: tuple[tuple[str, Split, int], ...] = (
            ("red", "train", 4 + stage),
            ("green", "train", 5),
            ("mug", "heldout", 1),
        )
        append_stage(
            run / "matrix.csv",
            [
                Cell(stage=stage, task=task, split=split, successes=successes, episodes=10)
                for task, split, successes in counts
            ],
        )
    return run / "checkpoints" / "stage_2"


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """What the command makes of it, with all that it can."""
    output = tmp_path_factory.mktemp("hub") / "skills-merged"
    flags = ["--policy", str(checkpoint), "--merge", "--torch-export", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla_crl.export.programs.NUM_REPEATS", 2)  # of what is timed
        assert main(["export", *flags]) == 0
    return output
