import csv
import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_crl.continual import experience as experience_module
from vla_crl.continual import trainer as trainer_module
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.checksums import write_sums
from vla_crl.models.checkpoint import load_adapter, load_policy, save_policy
from vla_crl.models.heads.parallel import ParallelConfig
from vla_crl.models.heads.tokens import TokensConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.routes import TaskRoute
from vla_crl.runs.directory import RunDirectory
from vla_crl.runs.episodes import EVALUATION_COLUMNS
from vla_crl.sim.backends import find_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig

TASKS = ("red_cube_in_basket", "green_cube_in_tray")


def test_every_task_is_evaluated_before_and_after_every_stage(finished):
    for file in (finished.matrix_file, finished.sampled_matrix_file):
        matrix = SuccessMatrix.read(file)
        assert matrix.train_tasks == TASKS
        assert matrix.heldout_tasks == ("white_mug_in_tray",)
        assert (matrix.episodes == 2).all()
        assert matrix.episodes.shape == (3, 3)


def test_every_stage_spends_its_budget_and_only_that(finished):
    last = {row["stage"]: row["episodes"] for row in finished.read_metrics()}
    assert set(last) == {1, 2}
    assert all(4 <= episodes <= 8 for episodes in last.values())


def test_every_training_episode_is_a_line(finished):
    with finished.training_episodes.path.open() as file:
        lines = [*csv.DictReader(file)]
    last = {row["stage"]: row["episodes"] for row in finished.read_metrics()}
    for stage, task in enumerate(TASKS, start=1):
        own = [line for line in lines if line["stage"] == str(stage)]
        assert len(own) == last[stage]
        assert {line["task"] for line in own} == {task}
        assert len({line["episode"] for line in own}) == len(own)
        assert {line["success"] for line in own} <= {"0", "1"}
        assert all(1 <= int(line["num_steps"]) <= 60 for line in own)


def test_every_evaluated_episode_is_a_line_and_the_matrix_counts_them(finished, config):
    suite = find_suite(config.suite)
    for episodes, matrix in (
        (finished.episodes, finished.matrix_file),
        (finished.sampled_episodes, finished.sampled_matrix_file),
    ):
        with episodes.path.open() as file:
            lines = [*csv.DictReader(file)]
        assert tuple(lines[0]) == EVALUATION_COLUMNS
        assert len(lines) == 3 * 3 * 2
        for cell in SuccessMatrix.read(matrix).cells():
            own = [
                line
                for line in lines
                if (line["stage"], line["task"]) == (str(cell.stage), cell.task)
            ]
            assert [int(line["state_id"]) for line in own] == [*suite.test_ids[:2]]
            assert sum(int(line["success"]) for line in own) == cell.successes
            assert all(1 <= int(line["num_steps"]) <= suite.horizon for line in own)
            assert {line["seed"] for line in own} == {str(config.seed)}


def test_the_ratio_is_one_before_the_first_update(finished):
    # But for rounding: minibatches have other sizes than the batches that acted.
    assert max(row["ratio_error"] for row in finished.read_metrics()) < 5e-5


def test_the_adapter_of_every_stage_is_kept_and_training_changes_it(finished, config):
    policy, states = load_policy(config.policy), []
    for stage in (0, 1, 2):
        load_adapter(policy, finished.checkpoint(stage))
        states.append({k: v.clone() for k, v in policy.state_dict().items()})
    changed = {key for key in states[0] if not torch.equal(states[0][key], states[2][key])}
    assert changed
    assert all("lora_" in key or key.startswith("value_head.") for key in changed)


def test_the_same_seed_gives_identical_runs(finished, config, tmp_path, run_all, assert_same_run):
    assert_same_run(run_all(config, tmp_path / "again"), finished)


class UnfreezingMethod(ContinualMethod):
    """Trains one weight of the base beside the adapters, and changes another when all is over."""

    def before_task(self, policy, stage):
        dict(policy.named_parameters())["head.expert.norm.weight"].requires_grad_(True)

    def after_task(self, policy, stage):
        dict(policy.named_parameters())["state_in.bias"].data += 1.0


class AddingMethod(ContinualMethod):
    """Has an adapter for each task, and a copy of the first when it was trained."""

    def before_task(self, policy, stage):
        assert isinstance(policy, VLAPolicy)
        bank, task = policy.adapters, stage.tasks[0]
        bank.add(task, LoRAConfig(rank=2, alpha=3))
        bank.activate({task: 1.0}, train=(task,))
        known = {name: {name: 1.0} for name in bank.names if name in TASKS}
        bank.route = TaskRoute(tasks=known, default={})

    def after_task(self, policy, stage):
        assert isinstance(policy, VLAPolicy)
        if stage.tasks[0] == TASKS[0]:
            policy.adapters.snapshot("first")


class CountingMethod(ContinualMethod):
    """Keeps something that is no tensor."""

    def state_dict(self) -> Any:
        return {"count": 3}


def trained_by(method, config, path):
    """Return the trainer of a run with a method of this file."""
    own = dataclasses.replace(config, method=f"{__name__}:{method.__name__}")
    trainer = Trainer(own, RunDirectory(path))
    RunDirectory.create(path, own, seed=0, command=[])
    trainer.train(resume=False)
    return trainer


@pytest.fixture(scope="module")
def adding(config, tmp_path_factory) -> Trainer:
    return trained_by(AddingMethod, config, tmp_path_factory.mktemp("adding") / "run")


def assert_same_weights(one, other) -> None:
    assert one.adapters.record() == other.adapters.record()
    own, theirs = one.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys()
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == []


def test_a_checkpoint_holds_the_adapters_that_were_added(adding):
    folder = adding.run.checkpoint(2)
    assert_same_weights(load_policy(folder), adding.policy)
    assert adding.policy.adapters.names == ("default", TASKS[0], "first", TASKS[1])
    assert (folder / "adapter.json").is_file()
    assert not (folder / "policy.json").exists()


def test_a_checkpoint_is_the_whole_policy_where_weights_of_the_base_were_trained(config, tmp_path):
    short = dataclasses.replace(config, tasks=TASKS[:1])
    trainer = trained_by(UnfreezingMethod, short, tmp_path / "run")
    folder, base = trainer.run.checkpoint(1), load_policy(config.policy)
    loaded = load_policy(folder)
    assert_same_weights(loaded, trainer.policy)
    for name in ("head.expert.norm.weight", "state_in.bias"):
        assert not torch.equal(loaded.get_parameter(name), base.get_parameter(name))
    assert not (folder / "adapter.json").exists()


def test_one_adapter_a_task_forgets_exactly_nothing(adding):
    with adding.run.episodes.path.open() as file:
        lines = [*csv.DictReader(file)]

    def episodes(stage, task):
        wanted = [line for line in lines if (line["stage"], line["task"]) == (stage, task)]
        return [(line["state_id"], line["success"], line["num_steps"]) for line in wanted]

    for task in (TASKS[0], "white_mug_in_tray"):  # learnt, and never learnt
        assert episodes("1", task) == episodes("2", task)
        assert len(episodes("1", task)) == 2


def test_a_loaded_checkpoint_acts_as_it_was_measured(adding):
    loaded = load_policy(adding.run.checkpoint(2))
    seen = loaded.example_observation()
    acts = {}
    for task in adding.stream.tasks:
        for deterministic in (True, False):
            chunks = []
            for policy in (loaded, adding.policy):
                draws = torch.Generator().manual_seed(0)
                with policy.adapters.routed(task), torch.no_grad():
                    context = policy.encode(seen)
                    chunks.append(policy.act(context, deterministic=deterministic, generator=draws))
            assert torch.equal(chunks[0].actions, chunks[1].actions)
            assert torch.equal(chunks[0].log_prob, chunks[1].log_prob)
        acts[task] = chunks[0].actions.tolist()
    assert len({str(found) for found in acts.values()}) == 3


def test_a_state_of_a_method_that_is_no_tensor_is_refused(config, run_all, tmp_path):
    changed = dataclasses.replace(config, method=f"{__name__}:CountingMethod")
    with pytest.raises(ConfigError, match=r"state_dict\(\)\['count'\] is a int, expected a tensor"):
        run_all(changed, tmp_path / "k")


def test_a_stage_whose_warm_up_took_all_its_episodes_is_an_error(
    config, run_all, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer_module, "check_budget", lambda *_: None)
    learner = dataclasses.replace(config.learner, value_warmup_iterations=50)
    short = dataclasses.replace(config, learner=learner, episodes_per_task=1)
    with pytest.raises(ConfigError, match="stage 1: its .* episodes were used up by .* iterations"):
        run_all(short, tmp_path / "l")


class RecordingMethod(ContinualMethod):
    """Writes down which stage hooks were called."""

    calls: list[str] = []  # noqa: RUF012 (shared on purpose: the trainer builds the instance)

    def before_task(self, policy, stage):
        self.calls.append(f"before {stage.tasks[0]}, {stage.number} of {stage.num_stages}")

    def after_task(self, policy, stage):
        rollout = stage.collect()
        self.calls.append(f"after {stage.tasks[0]}, {rollout.values.shape[0]} chunks")
        returns = rollout.returns.clone()
        rollout.compute_advantages(gamma=0.99, gae_lambda=0.95)
        assert torch.equal(rollout.returns, returns)  # of this rollout, not of the last one

    def state_dict(self):
        memory = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        return {"memory": memory.T, "view": memory[0], "wall_s": torch.tensor(7.0)}


def test_the_method_is_called_around_every_stage_and_its_state_is_saved(config, run_all, tmp_path):
    RecordingMethod.calls.clear()
    method = f"{__name__}:RecordingMethod"
    run = run_all(dataclasses.replace(config, method=method), tmp_path / "e")
    assert RecordingMethod.calls == [
        "before red_cube_in_basket, 1 of 2",
        "after red_cube_in_basket, 6 chunks",
        "before green_cube_in_tray, 2 of 2",
        "after green_cube_in_tray, 6 chunks",
    ]
    state = load_file(run.checkpoint(2) / "method.safetensors")
    assert state["method/memory"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert state["method/view"].tolist() == [1.0, 2.0]
    assert state["method/wall_s"] == 7.0


def test_an_adapter_without_a_loss_path_is_an_error_before_anything_is_written(config, tmp_path):
    useless = dataclasses.replace(config, lora=LoRAConfig(site="backbone"))
    with pytest.raises(ConfigError, match="no gradient .* reaches them: .*insulation = 'full'"):
        Trainer(useless, RunDirectory(tmp_path / "f"))
    assert not (tmp_path / "f").exists()


def test_adapters_of_the_backbone_are_trained_where_it_is_not_insulated(config, run_all, tmp_path):
    open_brain = dataclasses.replace(
        config, tasks=TASKS[:1], lora=LoRAConfig(rank=2, site="both"), insulation="none"
    )
    run = run_all(open_brain, tmp_path / "open")
    assert max(row["ratio_error"] for row in run.read_metrics()) < 5e-5
    before, after = (load_file(run.checkpoint(stage) / "adapter.safetensors") for stage in (0, 1))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone", "head", "value_head"}
    load_policy(str(run.checkpoint(1)))


@pytest.mark.parametrize("head", [ParallelConfig(num_bins=9), TokensConfig(num_bins=9)])
def test_a_policy_of_tokens_is_trained_as_insulated_as_it_is(
    config, run_all, tmp_path, make_small_policy, head
):
    base = make_small_policy(find_suite("tabletop_object"), head=head, insulation=0.5)
    save_policy(base, tmp_path / "base")
    recipe = dataclasses.replace(
        config,
        policy=str(tmp_path / "base"),
        tasks=TASKS[:1],
        lora=LoRAConfig(rank=2),
        exploration={"temperature": 2.0},
    )
    run = run_all(recipe, tmp_path / "run")
    assert max(row["ratio_error"] for row in run.read_metrics()) < 5e-5
    before, after = (load_file(run.checkpoint(stage) / "adapter.safetensors") for stage in (0, 1))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers.1.mlp" in name for name in changed)  # behind the context
    assert any("vision_model" in name for name in changed)
    assert load_policy(str(run.checkpoint(1))).exploration == {"temperature": 2.0}


def test_insulation_of_nothing_is_refused(config, tmp_path):
    open_brain = dataclasses.replace(config, insulation=0.5)
    with pytest.raises(ConfigError, match="insulation is 0.5, but nothing of the backbone is trai"):
        Trainer(open_brain, RunDirectory(tmp_path / "run"))
    with pytest.raises(ConfigError, match="insulation = 1.5 .*float more than 0 and less"):
        dataclasses.replace(config, insulation=1.5)


def test_a_stream_names_its_unknown_task(config, tmp_path):
    wrong = dataclasses.replace(config, tasks=("red_cube_in_baskett",))
    message = (
        "Did you mean 'red_cube_in_basket'.*another suite, .*--tasks None --heldout-tasks None"
    )
    with pytest.raises(ConfigError, match=message):
        Trainer(wrong, RunDirectory(tmp_path / "g"))


def test_metrics_are_plain_json_lines(finished):
    lines = finished.metrics_file.read_text().splitlines()
    assert all(json.loads(line)["task"] in TASKS for line in lines)


def test_the_recipe_may_change_the_exploration_of_the_policy(config, tmp_path):
    exploration = {"noise_level": 0.3, "stochastic_step": "random"}
    wilder = dataclasses.replace(config, exploration=exploration)
    policy = Trainer(wilder, RunDirectory(tmp_path / "h")).policy
    assert policy.exploration == exploration | {"initial_noise": "zero"}


def test_a_policy_of_another_robot_is_refused(config, tmp_path):
    other = dataclasses.replace(config, policy="tiny_metaworld")
    message = r"policy 'tiny_metaworld' on suite 'tabletop_object': cameras\[1\] of the suite is"
    with pytest.raises(ConfigError, match=message):
        Trainer(other, RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize(
    "variation", [VariationConfig(light_gain=(0.5, 1.0)), VariationConfig(seed=1)]
)
def test_training_episodes_vary_as_the_recipe_says(
    config, run_all, tmp_path, monkeypatch, variation
):
    make, drawn = VectorSim.__init__, []

    def remember(sim, suite, num_slots, *, variation=None, **settings):
        drawn.append(variation)
        make(sim, suite, num_slots, variation=variation, **settings)

    def stop(*_, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(VectorSim, "__init__", remember)
    monkeypatch.setattr(experience_module, "Collector", stop)
    with pytest.raises(KeyboardInterrupt):
        run_all(
            dataclasses.replace(config, variation=variation, video_episodes=0), tmp_path / "run"
        )
    # Two lanes to train and two to evaluate; how an evaluation varies is the suite's matter.
    assert drawn == [variation, variation, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"episodes_per_task": 2},
            "at least 2 episodes and the first 1 train the value",
        ),
        (
            {"video_episodes": 500},
            "video_episodes is 500, but suite 'tabletop_object' has 200",
        ),
        (
            {"variation": VariationConfig(materials=("wod",))},
            "variation of 'red_cube_in_basket': unknown material 'wod'",
        ),
        (
            {"evaluation": EvaluationConfig(num_episodes=201)},
            "evaluation.num_episodes is 201, but suite 'tabletop_object' has 200 test states",
        ),
        (
            {"evaluation": EvaluationConfig(num_sampled_episodes=500)},
            "evaluation.num_sampled_episodes is 500, but",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    config, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message):
        Trainer(dataclasses.replace(config, **changes), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config_class", "changes", "message"),
    [
        (TrainConfig, {"seed": -1}, "seed = -1, expected at least 0 and at most 42949672"),
        (TrainConfig, {"seed": 10**30}, "seed = 10+, expected a number of 64 bits"),
        (TrainConfig, {"tasks": ()}, "tasks has 0 entries, expected at least 1"),
        (TrainConfig, {"video_episodes": -1}, "video_episodes = -1, expected at least 0"),
        (TrainConfig, {"checkpoint_every": -1}, "checkpoint_every = -1, expected at least 0"),
        (EvaluationConfig, {"num_envs": 0}, "EvaluationConfig: num_envs = 0, expected at lea"),
        (EvaluationConfig, {"num_episodes": 0}, "num_episodes = 0, expected at least 1"),
        (EvaluationConfig, {"num_sampled_episodes": -1}, "num_sampled_episodes = -1, expected"),
    ],
)
def test_settings_out_of_range_are_refused(config_class, changes, message):
    required = {"suite": "s", "policy": "p", "episodes_per_task": 1}
    with pytest.raises(ConfigError, match=message):
        config_class(**(required if config_class is TrainConfig else {}), **changes)


def test_a_checkpoint_of_a_run_is_a_policy(finished, config):
    policy = load_policy(finished.checkpoint(2))
    again = load_policy(config.policy)
    load_adapter(again, finished.checkpoint(2))
    states = policy.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_checkpoint_explores_as_its_run_did(config, run_all, tmp_path):
    exploration = {"noise_level": 0.3, "stochastic_step": "random"}
    wilder = dataclasses.replace(config, tasks=TASKS[:1], exploration=exploration)
    run = run_all(wilder, tmp_path / "wilder")
    assert load_policy(run.checkpoint(1)).exploration == exploration | {"initial_noise": "zero"}


def copy_without_base(run, path):
    """Copy a run whose second checkpoint no longer finds its base policy."""
    other = RunDirectory(shutil.copytree(run.path, path))
    file = other.checkpoint(2) / "adapter.json"
    places = {"base": "/gone/base", "base_from_here": "../gone"}
    file.write_text(json.dumps(json.loads(file.read_text()) | places))
    write_sums(file.parent, file.name)
    return other.checkpoint(2)


def test_a_run_begins_with_a_checkpoint_whose_base_the_recipe_finds(
    finished, config, run_all, tmp_path
):
    lost = copy_without_base(finished, tmp_path / "other")
    further = dataclasses.replace(config, policy=str(lost), tasks=TASKS[:1])
    with pytest.raises(CheckpointError, match="'/gone/base' is not there. Put it back .*or name"):
        Trainer(further, RunDirectory(tmp_path / "further"))
    moved = shutil.copytree(config.policy, tmp_path / "moved")
    run = run_all(dataclasses.replace(further, base=str(moved)), tmp_path / "further")
    shutil.rmtree(lost)  # checkpoints need the whole policy alone
    assert load_policy(run.checkpoint(1)).adapters.layouts["default"].scale == 2.0
