"""A tiny training, run once, and what tells whether another run is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

TASKS = ("red_cube_in_basket", "green_cube_in_tray")
WALL_CLOCK = {"steps_per_s", "wall_s"} | {
    f"{part}_s" for part in ("collect", "render", "policy", "wait", "physics", "update")
}


@pytest.fixture(scope="session")
def config(tmp_path_factory, make_untrained_policy):
    import torch

    from vla_crl.algos.ppo import PPOConfig
    from vla_crl.compute import ComputeConfig
    from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
    from vla_crl.models.checkpoint import save_policy
    from vla_crl.rollout.collector import CollectorConfig

    folder = tmp_path_factory.mktemp("base")
    policy = make_untrained_policy()
    for parameter in policy.value_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # without any success only values give gradients
    save_policy(policy, folder)
    return TrainConfig(
        suite="tabletop_object",
        policy=str(folder),
        tasks=TASKS,
        heldout_tasks=("white_mug_in_tray",),
        episodes_per_task=4,
        compute=ComputeConfig(num_torch_threads=1, num_sim_threads=1),
        learner=PPOConfig(minibatch_size=16, value_warmup_iterations=1, num_epochs=1),
        collector=CollectorConfig(num_envs=4, num_chunks=6),
        evaluation=EvaluationConfig(num_episodes=2, num_sampled_episodes=2, num_envs=6),
    )


@pytest.fixture(scope="session")
def run_all() -> Callable:
    """Return a function that runs a recipe in a folder, or resumes it there."""

    def run(config, path: Path, *, resume: bool = False):
        from vla_crl.continual.trainer import Trainer
        from vla_crl.runs.directory import RunDirectory

        run = RunDirectory(path)
        trainer = Trainer(config, run)
        if not resume:
            RunDirectory.create(path, config, seed=config.seed, command=[])
        trainer.train(resume=resume)
        return run

    return run


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory, run_all):
    """The run directory of `config`."""
    return run_all(config, tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="session")
def assert_same_run() -> Callable:
    """Return a function that compares runs in all but what the clock says."""

    def content(run) -> dict:
        from safetensors.torch import load_file

        found: dict = {file.name: file.read_text() for file in sorted(run.path.glob("*.csv"))}
        assert len(found) == 5
        found["metrics"] = [
            {name: value for name, value in row.items() if name not in WALL_CLOCK}
            for row in run.read_metrics()
        ]
        for file in sorted(run.checkpoints.glob("*/*.safetensors")):
            tensors = load_file(file)
            tensors.pop("wall_s", None)
            found[f"{file.parent.name}/{file.name}"] = {k: v.tolist() for k, v in tensors.items()}
        return found

    def compare(one, other) -> None:
        found, expected = content(one), content(other)
        assert found.keys() == expected.keys()
        for part, value in expected.items():
            assert found[part] == value, f"{part} of {one.path.name}"

    return compare


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable:
    """Return a function that makes what a method sees of a stage; nothing can be done in it."""
    import numpy as np
    import torch

    from vla_crl.continual.method_stage import Stage
    from vla_crl.sim.native.suite import load_suite

    def refuse(*_):
        raise AssertionError

    def make(**changes) -> Stage:
        settings = {
            "number": 1,
            "num_stages": 2,
            "tasks": ("a",),
            "suite": load_suite("tabletop_object"),
            "collect": refuse,
            "train": refuse,
            "demonstrations": refuse,
            "generator": torch.Generator().manual_seed(0),
            "rng": np.random.default_rng(0),
            "folder": tmp_path / "memory",
        }
        return Stage(**(settings | changes))

    return make
