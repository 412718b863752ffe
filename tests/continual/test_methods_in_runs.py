"""Methods of the package in whole runs, in fake worlds: what they write, and going on with them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_crl.algos.distillation import DistillationConfig
from vla_crl.algos.grpo import GRPOConfig
from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.sft import SFTConfig
from vla_crl.compute import ComputeConfig
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.report.page import write_report
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite

SETTINGS = {
    "ewc": {"strength": 10.0, "num_chunks": 20, "batch_size": 8},
    "own_replay": {"quota": 30, "num_drawn": 16, "coefficient": 1.0},
}


@pytest.fixture
def config(tmp_path: Path, write_fake_suite, make_small_policy) -> TrainConfig:
    suite = write_fake_suite(train=["red", "green"], heldout=["blue"], horizon=24)
    save_policy(make_small_policy(find_suite(suite)), tmp_path / "base")
    return TrainConfig(
        suite=suite,
        policy=str(tmp_path / "base"),
        episodes_per_task=20,
        lora=LoRAConfig(rank=2),
        compute=ComputeConfig(num_torch_threads=1, num_sim_threads=1),
        learner=PPOConfig(minibatch_size=16, value_warmup_iterations=1, num_epochs=1),
        collector=CollectorConfig(num_envs=6, num_chunks=5),
        evaluation=EvaluationConfig(num_episodes=2, num_sampled_episodes=1),
        checkpoint_every=1,
        video_episodes=0,
    )


def train(config: TrainConfig, path: Path, *, resume: bool = False) -> RunDirectory:
    trainer = Trainer(config, RunDirectory(path))
    if not resume:
        RunDirectory.create(path, config, seed=0, command=[])
    trainer.train(resume=resume)
    trainer.close()
    return RunDirectory(path)


def kill(config: TrainConfig, path: Path, monkeypatch, *, stage: int, iteration: int) -> None:
    """Run until an update."""
    update = PPO.update

    def fail(self, *arguments):
        rows = RunDirectory(path).read_metrics()
        if rows and (rows[-1]["stage"], rows[-1]["iteration"]) == (stage, iteration - 1):
            raise KeyboardInterrupt
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            train(config, path)


def content(run: RunDirectory) -> dict:
    """Return what a run says, without what the clock does, and what it keeps."""
    rows = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in run.read_metrics()]
    found: dict = {file.name: file.read_text() for file in sorted(run.path.glob("*.csv"))}
    found["metrics"] = rows
    for file in sorted(run.checkpoints.glob("*/*.safetensors")):
        tensors = load_file(file)
        tensors.pop("wall_s", None)
        found[f"{file.parent.name}/{file.name}"] = {k: v.tolist() for k, v in tensors.items()}
    return found


def test_composed_methods_go_on_to_the_same_numbers(config, tmp_path, monkeypatch):
    both = dataclasses.replace(config, method="ewc+own_replay", method_settings=SETTINGS)
    whole = train(both, tmp_path / "whole")
    row = whole.read_metrics()[-1]
    assert row["ewc/penalty_grad_ratio"] > 0.0
    assert row["own_replay/replay_grad_ratio"] > 0.0
    assert row["own_replay/num_kept"] > 0.0
    assert row["ewc/num_held"] > 0.0
    kill(both, tmp_path / "killed", monkeypatch, stage=2, iteration=3)
    ours, theirs = content(train(both, tmp_path / "killed", resume=True)), content(whole)
    assert ours.keys() == theirs.keys()
    for part, value in theirs.items():
        assert ours[part] == value, part
    memory = whole.memory / "own_replay"
    assert 0 < sum(file.stat().st_size for file in memory.iterdir()) < 1e6


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("flow", {"lora": None}),
        ("gaussian", {"method_settings": {"reference": "base"}}),
    ],
)
def test_what_is_held_near_an_earlier_policy_goes_on_to_the_same_numbers(
    config, tmp_path, monkeypatch, make_small_policy, make_small_head, head, changes
):
    policy = make_small_policy(find_suite(config.suite), head=make_small_head(head))
    save_policy(policy, tmp_path / "base")
    near = dataclasses.replace(config, method="kl_to_previous", **changes)
    whole = train(near, tmp_path / "whole")
    rows = whole.read_metrics()
    held = {row["stage"] for row in rows if row.get("reference_kl", 0.0) > 0.0}
    assert held == ({1, 2} if "method_settings" in changes else {2})
    kill(near, tmp_path / "killed", monkeypatch, stage=2, iteration=3)
    assert content(train(near, tmp_path / "killed", resume=True)) == content(whole)
    if head == "gaussian":
        loaded = load_policy(whole.checkpoint(2))
        (name,) = loaded.adapters.base_exploration.weights
        began, trained = policy.get_parameter(name), loaded.get_parameter(name)
        assert torch.equal(loaded.adapters.base_exploration.weights[name], began)
        assert not torch.equal(trained, began)


class Looking(ContinualMethod):
    """Looks at rollouts."""

    stores = "returns"

    def before_update(self, policy, rollout):
        self.returns = rollout.returns.clone()


class Careless(Looking):
    """Looks at whatever there is."""

    needs_rollouts = False

    def before_update(self, policy, rollout):
        self.num_updates = 1


class Slow(ContinualMethod):
    """Has a step size of its own."""

    def param_groups(self, policy, groups):
        return [dataclasses.replace(g, learning_rate=0.5 * g.learning_rate) for g in groups]


class Slower(Slow):
    """Likewise."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learner": SFTConfig(), "method": "own_replay"},
            "method 'own_replay': looks at episodes that the policy itself plays .it stores .* its "
            "own successful chunks, .*, but learner.kind 'sft' learns of demonstrations, so that "
            "none are played; choose a learner of .* 'ppo' or 'cloning', or another method",
        ),
        (
            {"learner": SFTConfig(), "method": f"sequential+{__name__}:Looking"},
            r"method 'Looking': looks at .* say needs_rollouts = False in the method's class",
        ),
        ({"lora": None, "method": "task_adapters"}, "'task_adapters': the policy has no adapters"),
        (
            {"lora": None, "method": "kl_to_previous", "method_settings": {"reference": "base"}},
            "'kl_to_previous': method_settings.reference is 'base', the policy without its "
            "adapters, but it has none; give the recipe a section lora, or choose 'previous_task'",
        ),
        (
            {"method": f"{__name__}:Slow+{__name__}:Slower"},
            "method 'Slower': param_groups changes '.*', which 'Slow' has changed already",
        ),
        (
            {"learner": GRPOConfig(reference="base", kl_coef=0.1), "lora": None},
            "learner.reference is 'base', the policy without its adapters, but it has none",
        ),
        (
            {"learner": DistillationConfig(teacher="base"), "lora": None},
            "learner.teacher is 'base', the policy without its adapters, but it has none",
        ),
    ],
)
def test_what_a_method_or_learner_cannot_work_with_is_refused_before_the_run_begins(
    config, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message):
        Trainer(dataclasses.replace(config, **changes), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_closed_form_that_the_head_has_not_is_refused_before_the_run_begins(
    config, tmp_path, make_small_policy, make_small_head
):
    head = make_small_head("tokens")
    policy = make_small_policy(find_suite(config.suite), head=head, insulation="none")
    save_policy(policy, tmp_path / "tokens")
    changed = dataclasses.replace(
        config,
        policy=str(tmp_path / "tokens"),
        method="ewc",
        method_settings={"fisher": "gaussian"},
    )
    message = "fisher = 'gaussian' needs a normal density, but .* CategoricalDensity; choose 'samp"
    with pytest.raises(ConfigError, match=message):
        Trainer(changed, RunDirectory(tmp_path / "run"))


def test_a_method_that_needs_no_rollouts_goes_with_demonstrations(config, tmp_path):
    own = dataclasses.replace(config, learner=SFTConfig(), method=f"{__name__}:Careless")
    Trainer(own, RunDirectory(tmp_path / "run")).close()


class Shown(ContinualMethod):
    """Imitates the expert beside the reward, and trains on when the stage is over."""

    def __init__(self, config):
        super().__init__(config)
        self.returns, self.moved = torch.zeros(5, 6), torch.zeros(1)

    def before_task(self, policy: Any, stage):
        (task,) = stage.tasks
        self.steps = LabelledSteps(policy, stage.demonstrations(task, 3))
        self.generator = stage.generator

    def losses(self, policy, batch, evaluation):
        shown = next(self.steps.minibatches(8, self.generator))
        loss = policy.imitation(shown.context, shown.actions, shown.mask, self.generator)
        return {"shown": 0.5 * loss.mean()}

    def after_task(self, policy, stage):
        weights = policy_parameters(policy).values()
        before = [weight.detach().clone() for weight in weights]
        stage.train(6)
        gaps = [(w - b).detach().abs().max() for w, b in zip(weights, before, strict=True)]
        self.returns, self.moved = stage.collect().returns.clone(), torch.stack(gaps).max()

    def state_dict(self):
        return {"returns": self.returns, "moved": self.moved}

    def load_state_dict(self, state):
        self.returns, self.moved = state["returns"], state["moved"]


def test_a_method_of_ones_own_uses_all_of_a_stage_and_goes_on_to_the_same_numbers(
    config, tmp_path, monkeypatch
):
    own = dataclasses.replace(config, method=f"{__name__}:Shown")
    whole = train(own, tmp_path / "whole")
    rows = whole.read_metrics()
    assert all(row["shown_grad_ratio"] > 0.0 for row in rows if "shown" in row)
    assert {row["stage"] for row in rows if row.get("shown", 0.0) > 0.0} == {1, 2}
    ends = [row["episodes"] for row in rows if row["stage"] == 1]
    assert ends[-2] < 20 <= ends[-1] < 26  # what is trained on is beyond the budget
    kept = load_file(whole.checkpoint(2) / "method.safetensors")
    assert kept["method/moved"] > 0.0
    assert kept["method/returns"].shape == (5, 6)
    kill(own, tmp_path / "killed", monkeypatch, stage=2, iteration=3)
    assert content(train(own, tmp_path / "killed", resume=True)) == content(whole)


def test_a_memory_that_is_damaged_is_told_on_resuming(config, tmp_path, monkeypatch):
    replay = dataclasses.replace(
        config, method="own_replay", method_settings=SETTINGS["own_replay"]
    )
    path = tmp_path / "killed"
    kill(replay, path, monkeypatch, stage=2, iteration=3)
    (file, *_) = sorted((path / "memory").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="memory is damaged: .*safetensors has the SHA-256"):
        train(replay, path, resume=True)


def outcomes(run: RunDirectory, task: str) -> dict[int, list[str]]:
    """Return the lines of a task's evaluated episodes by stage, without the stage."""
    found: dict[int, list[str]] = {}
    for line in run.episodes.path.read_text().splitlines()[1:]:
        stage, rest = line.split(",", 1)
        if rest.startswith(f"{task},"):
            found.setdefault(int(stage), []).append(rest)
    return found


def test_adapters_of_tasks_forget_nothing_and_act_as_they_were_measured(
    config, tmp_path, monkeypatch
):
    more = dataclasses.replace(config.evaluation, num_episodes=20, num_sampled_episodes=0)
    own = dataclasses.replace(config, method="task_adapters", evaluation=more)
    run = train(own, tmp_path / "whole")
    red = outcomes(run, "reach_red")
    assert red[1] == red[2]  # the very same episodes
    policy = load_policy(str(run.checkpoint(2)))
    assert policy.adapters.names == ("task_0", "task_1")
    suite = find_suite(config.suite)
    sims = simulate_lanes(suite, 6, image_size=32, compute=config.compute)
    tasks = [task.name for task in suite.tasks]
    agent = PolicyAgent(policy, deterministic=True, seed=0)
    results = evaluate(agent, sims, tasks, num_episodes=20)
    matrix = SuccessMatrix.read(run.matrix_file)
    assert [result.successes for result in results] == matrix.successes[2].tolist()
    close_lanes(sims)

    path = tmp_path / "killed"
    kill(own, path, monkeypatch, stage=2, iteration=3)
    assert content(train(own, path, resume=True)) == content(run)


def test_a_policy_held_to_another_goes_on_to_the_same_numbers(config, tmp_path, monkeypatch):
    settings = {"coefficient": 1.0}
    held = dataclasses.replace(config, method="kl_to_previous", method_settings=settings)
    whole = train(held, tmp_path / "whole")
    assert whole.read_metrics()[-1]["reference_kl_grad_ratio"] > 0.0
    assert load_policy(str(whole.checkpoint(2))).adapters.names == ("default",)
    kill(held, tmp_path / "killed", monkeypatch, stage=2, iteration=3)
    assert content(train(held, tmp_path / "killed", resume=True)) == content(whole)


def test_all_tasks_at_once_are_one_stage_with_the_budget_of_all(config, tmp_path, monkeypatch):
    joint = dataclasses.replace(config, method="multitask")
    run = train(joint, tmp_path / "joint")
    matrix = SuccessMatrix.read(run.matrix_file)
    assert matrix.evaluated_stages == (0, 2)
    assert matrix.has_rounds_only
    rows = run.read_metrics()
    assert {row["stage"] for row in rows} == {2}
    assert {row["task"] for row in rows} == {"reach_red + reach_green"}
    assert 40 <= rows[-1]["episodes"] < 60
    assert rows[-2]["episodes"] < 40
    tasks = [line.split(",")[3] for line in run.training_episodes.path.read_text().split()[1:]]
    assert abs(tasks.count("reach_red") - tasks.count("reach_green")) <= 12
    page = write_report(run.path).read_text()
    assert "2 tasks trained:" in page
    assert "after stage 2: all tasks" in page
    assert "after stage 1" not in page

    path = tmp_path / "killed"
    kill(joint, path, monkeypatch, stage=2, iteration=3)
    assert content(train(joint, path, resume=True)) == content(run)
