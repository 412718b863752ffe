"""Good files of every kind that is read, small enough to be copied for every input."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_crl.catalog import suite_path
from vla_crl.datasets.npz import save_demonstrations
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import save_adapter, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.rollout.demonstrations import collect_demonstrations
from vla_crl.sim.backends import find_suite
from vla_crl.sim.divergence import Divergence

SUITE = """
backend = "vla_crl.testing.fake_worlds:BACKEND"
horizon = 4
num_train_states = 8
num_test_states = 4
"""
EXPERT = [{"task": "reach_red", "successes": 1, "episodes": 4}]
RECIPE = """
suite = "fake"
policy = "FOLDER/policies/small"
episodes_per_task = 8
method = "sequential"
method_settings = {}
seed = 1
rounds = 1
video_episodes = 0
insulation = "full"
ppo = {learning_rate = 1e-3, target_kl = 0.1, value_warmup_iterations = 0}
lora = {rank = 2, site = "action_expert"}
collector = {num_envs = 2, num_chunks = 2}
evaluation = {num_episodes = 2, num_envs = 2}
variation = {light_gain = [0.5, 1.5]}
exploration = {noise_level = 0.5}
compute = {num_sim_threads = 1}
"""
PRETRAINING = """
suite = "fake"
policy = "FOLDER/policies/small.toml"
num_episodes = 4
num_eval_episodes = 2
supervised = {num_updates = 1, batch_size = 2, loss_weights = {flow = 1.0}}
dataset = {}
perturbation = {sigmas = [0.0]}
"""
PRESET = """
image_size = 32
vocabulary = ["reach", "the", "red", "green", "blue", "square"]
max_words = 12
insulation = "full"
action_horizon = 2
execution_horizon = 2
num_action_bins = 8
things = ["red square"]
value_width = 8
embodiment = {action = ["delta_x", "gripper"], state = ["x"], cameras = ["top"]}
backbone = {vision_width = 32, num_vision_heads = 2, width = 32, num_layers = 1, num_heads = 2}
head = {kind = "flow", expert = {width = 16, num_heads = 4, mlp_width = 16, num_action_tokens = 2}}
flow = {num_steps = 2, noise_level = 0.6, stochastic_step = "last"}
"""
CONFIG = {"suite": "fake", "policy": "p", "rounds": 1, "seed": 0, "ppo": {"gamma": 0.9}}
VERSIONS = {
    "vla_crl": "1",
    "git": {"commit": "0" * 40, "dirty": False},
    "python": "3.11",
    "platform": "Linux",
    "cpu_model": "A",
    "num_cores": 2,
    "seed": 0,
    "command": ["vla-crl", "train"],
    "packages": {"numpy": "2"},
    "conditions": {"look": "a"},
    "policy_weights": "1a",
}
ITERATION = {"stage": 1, "task": "a", "success": 0.5, "kl": 0.1, "steps_per_s": 9.0}
TASKS = {"a": "train", "b": "train", "c": "heldout"}


def write_good_files(folder: Path, policy) -> None:
    """Fill a folder, which is in VLA_CRL_PATH.

    Args:
        folder: With envs/, policies/, experiments/ and more.
        policy: Makes a small one for a suite.
    """
    for part in ("envs/fake", "policies", "experiments", "run"):
        (folder / part).mkdir(parents=True)
    (folder / "envs/fake/suite.toml").write_text(SUITE)
    (folder / "envs/fake/expert.json").write_text(json.dumps(EXPERT))
    for name, text in (("small", RECIPE), ("pretrain", PRETRAINING)):
        recipe = text.replace("FOLDER", str(folder))
        (folder / f"experiments/{name}.toml").write_text(recipe)
    (folder / "policies/small.toml").write_text(PRESET)
    (folder / "table.toml").write_bytes((suite_path("tabletop_goal") / "suite.toml").read_bytes())
    suite = find_suite("fake")
    _write_checkpoints(folder, policy(suite))
    _write_run(folder / "run")
    demonstrations = collect_demonstrations(suite, 4, image_size=32)
    save_demonstrations(demonstrations, suite, folder / "demonstrations.npz")
    state = {"qpos": np.zeros(3)}
    diverged = Divergence("fake", "reach_red", 1, 2, "a joint", np.zeros((2, 3)), state)
    diverged.save(folder).rename(folder / "divergence.npz")


def _write_checkpoints(folder: Path, policy) -> None:
    """Write a policy and adapters of it, without checksums, which would find every change."""
    base, adapter = folder / "policies/small", folder / "adapter"
    save_policy(policy, base, {"by": "a test"})
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, adapter, str(base))
    for checkpoint in (base, adapter):
        (checkpoint / "SHA256SUMS").unlink()


def _write_run(run: Path) -> None:
    (run / "config.json").write_text(json.dumps(CONFIG))
    (run / "versions.json").write_text(json.dumps(VERSIONS))
    rows = [ITERATION | {"iteration": i, "episodes": 8 * i, "wall_s": 3.0 * i} for i in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = [(stage, task, TASKS[task], 1 + stage, 4) for stage in (0, 1, 2) for task in TASKS]
    columns = ("stage", "task", "split", "successes", "episodes")
    _write_csv(run / "matrix.csv", columns, cells)
    named = [dict(zip(columns, cell, strict=True)) for cell in cells]
    (run / "matrix.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    columns = ("stage", "task", "state_id", "success", "num_steps", "seed")
    played = [
        (s, t, state, state % 2, 9, 0) for s in (0, 1, 2) for t in TASKS for state in range(4)
    ]
    _write_csv(run / "episodes.csv", columns, played)


def _write_csv(path: Path, columns: tuple[str, ...], rows: Sequence[Sequence[object]]) -> None:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in (columns, *rows)))
