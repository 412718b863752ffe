import csv
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.compute import ComputeConfig
from vla_crl.continual import stage as stage_module
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.recipe import EvaluationConfig, ExplorationConfig, TrainConfig
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.checkpoint import load_adapter, load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.run_directory import RunDirectory
from vla_crl.sim.backends import find_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig
from vla_crl.termination import Terminated, ending_on_sigterm

TASKS = ("red_cube_in_basket", "green_cube_in_tray")
WALL_CLOCK = {"steps_per_s", "wall_s"} | {
    f"{part}_s" for part in ("collect", "render", "policy", "wait", "physics", "update")
}


@pytest.fixture(scope="module")
def config(tmp_path_factory, make_untrained_policy) -> TrainConfig:
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
        ppo=PPOConfig(minibatch_size=16, value_warmup_iterations=1, num_epochs=1),
        collector=CollectorConfig(num_envs=4, num_chunks=6),
        evaluation=EvaluationConfig(num_episodes=2, num_sampled_episodes=2, num_envs=6),
    )


def run_all(config: TrainConfig, path: Path, *, resume: bool = False) -> RunDirectory:
    run = RunDirectory(path)
    trainer = Trainer(config, run)
    if not resume:
        RunDirectory.create(path, config, seed=config.seed, command=[])
    trainer.train(resume=resume)
    return run


def numbers(run: RunDirectory) -> list[dict]:
    """Return the metrics without what the clock says."""
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in run.read_metrics()]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> RunDirectory:
    return run_all(config, tmp_path_factory.mktemp("runs") / "a")


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


def test_the_same_seed_gives_identical_metrics(finished, config, tmp_path):
    again = run_all(config, tmp_path / "again")
    assert numbers(again) == numbers(finished)
    assert again.matrix_file.read_text() == finished.matrix_file.read_text()


def test_a_killed_run_resumed_equals_one_that_was_never_killed(
    finished, config, tmp_path, monkeypatch
):
    kill_in_stage_two(config, tmp_path / "b", monkeypatch, iteration=1)
    resumed = run_all(config, tmp_path / "b", resume=True)
    assert_same_files(resumed, finished)


def test_a_run_stored_in_the_middle_of_a_stage_goes_on_from_there(
    finished, config, tmp_path, monkeypatch, capsys
):
    path, often = tmp_path / "m", dataclasses.replace(config, checkpoint_every=1)
    last = max(row["iteration"] for row in finished.read_metrics() if row["stage"] == 2)
    assert last > 1
    kill_in_stage_two(often, path, monkeypatch, iteration=last)
    capsys.readouterr()
    resumed = run_all(often, path, resume=True)
    assert f"goes on in stage 2 after iteration {last - 1}" in capsys.readouterr().err
    assert_same_files(resumed, finished)
    assert not resumed.state.exists()


def test_where_all_states_are_damaged_the_stage_begins_again(
    finished, config, tmp_path, monkeypatch, capsys
):
    path, often = tmp_path / "n", dataclasses.replace(config, checkpoint_every=1)
    kill_in_stage_two(often, path, monkeypatch, iteration=2)
    for file in path.glob("state/*/state.json"):
        file.write_text("{}")
    capsys.readouterr()
    resumed = run_all(often, path, resume=True)
    said = capsys.readouterr().err
    assert "is damaged (state.json has the SHA-256" in said
    assert "goes on in stage" not in said
    assert_same_files(resumed, finished)


def test_a_state_of_a_stage_to_which_the_matrix_does_not_lead_is_an_error(
    config, tmp_path, monkeypatch
):
    path, often = tmp_path / "o", dataclasses.replace(config, checkpoint_every=1)
    kill_in_stage_two(often, path, monkeypatch, iteration=2)
    run, lines = RunDirectory(path), (path / "matrix.csv").read_text().splitlines()
    metrics = run.metrics_file.read_text()
    run.matrix_file.write_text("\n".join(lines[:4]) + "\n")
    with pytest.raises(
        CheckpointError, match="state: is of stage 2, but .*csv ends with stage 0; r"
    ):
        Trainer(often, run).train(resume=True)
    run.matrix_file.unlink()
    with pytest.raises(
        CheckpointError, match="state: is of stage 2, but .*matrix.csv is missing; r"
    ):
        Trainer(often, run).train(resume=True)
    assert run.metrics_file.read_text() == metrics


def test_a_state_that_does_not_fit_any_more_is_an_error(config, tmp_path, monkeypatch):
    path, often = tmp_path / "p", dataclasses.replace(config, checkpoint_every=1)
    kill_in_stage_two(often, path, monkeypatch, iteration=2)
    other = dataclasses.replace(often, collector=CollectorConfig(num_envs=6, num_chunks=6))
    message = "state does not fit this run any more: .*set_states: .* the stage then begins again"
    with pytest.raises(CheckpointError, match=message):
        Trainer(other, RunDirectory(path)).train(resume=True)


def test_without_states_a_killed_stage_begins_again(
    finished, config, tmp_path, monkeypatch, capsys
):
    path, never = tmp_path / "q", dataclasses.replace(config, checkpoint_every=0)
    kill_in_stage_two(never, path, monkeypatch, iteration=2)
    assert not (path / "state").exists()
    resumed = run_all(never, path, resume=True)
    assert "goes on in stage" not in capsys.readouterr().err
    assert_same_files(resumed, finished)


def test_every_training_episode_is_a_line(finished):
    with finished.episodes_file.open() as file:
        lines = [*csv.DictReader(file)]
    last = {row["stage"]: row["episodes"] for row in finished.read_metrics()}
    for stage, task in enumerate(TASKS, start=1):
        own = [line for line in lines if line["stage"] == str(stage)]
        assert len(own) == last[stage]
        assert {line["task"] for line in own} == {task}
        assert len({line["episode"] for line in own}) == len(own)
        assert {line["success"] for line in own} <= {"0", "1"}
        assert all(1 <= int(line["num_steps"]) <= 60 for line in own)


def test_worlds_that_cannot_be_stored_need_a_recipe_that_says_so(
    config, tmp_path, write_fake_suite, make_small_policy
):
    suite = find_suite(write_fake_suite(extras=["Grounded", "Filmed"]))
    save_policy(make_small_policy(suite), tmp_path / "base")
    whole = dataclasses.replace(
        config, suite="fake", policy=str(tmp_path / "base"), tasks=None, heldout_tasks=None
    )
    message = (
        r"'fake' cannot be stored in a stage \(checkpoint_every = 5; 0 stores stages only\): its "
        ".*lacks get_states, set_states"
    )
    with pytest.raises(ConfigError, match=message):
        Trainer(whole, RunDirectory(tmp_path / "r"))
    Trainer(dataclasses.replace(whole, checkpoint_every=0), RunDirectory(tmp_path / "r"))


def test_sigterm_without_states_says_that_the_stage_begins_again(
    config, tmp_path, monkeypatch, capsys
):
    never = dataclasses.replace(config, checkpoint_every=0)
    monkeypatch.setattr(PPO, "update", after_signal(PPO.update))
    with pytest.raises(Terminated, match="again"), ending_on_sigterm("again"):
        run_all(never, tmp_path / "s")
    assert "SIGTERM: stage 1 will begin again (checkpoint_every is 0)" in capsys.readouterr().err


def after_signal(function):
    """Return a function that gets SIGTERM first, and does its work all the same."""

    def call(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    return call


def kill_in_stage_two(config, path, monkeypatch, *, iteration: int) -> None:
    """Run until the update of an iteration of stage 2."""
    update = PPO.update

    def fail(self, *arguments):
        in_stage_two = len(SuccessMatrix.read(path / "matrix.csv").evaluated_stages) == 2
        if in_stage_two and self.iteration == iteration - 1:
            raise KeyboardInterrupt
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            run_all(config, path)


def assert_same_files(one: RunDirectory, other: RunDirectory) -> None:
    assert numbers(one) == numbers(other)
    for name in ("matrix.csv", "matrix_sampled.csv", "episodes.csv"):
        assert (one.path / name).read_text() == (other.path / name).read_text()
    for stage in (0, 1, 2):
        weights = [load_file(run.checkpoint(stage) / "adapter.safetensors") for run in (one, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_run_killed_before_its_first_row_starts_again_on_resume(config, finished, tmp_path):
    path = tmp_path / "c"
    RunDirectory.create(path, config, seed=0, command=[])
    resumed = run_all(config, path, resume=True)
    assert numbers(resumed) == numbers(finished)


def test_resuming_without_the_stage_checkpoint_says_which_file_is_missing(config, tmp_path):
    path = tmp_path / "d"
    run = RunDirectory.create(path, config, seed=0, command=[])
    run.matrix_file.write_text(
        "stage,task,split,successes,episodes\n0,red_cube_in_basket,train,0,2\n"
    )
    with pytest.raises(CheckpointError, match="adapter.json is missing"):
        Trainer(config, run).train(resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing of the kind", "method.safetensors is truncated or not a safetensors file"),
        (save({"memory": torch.ones(1)}), "method.safetensors: 'wall_s' is missing; copy it again"),
    ],
    ids=["junk", "no time"],
)
def test_a_state_of_the_method_that_cannot_be_read_is_an_error(
    finished, config, tmp_path, content, message
):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "i"))
    (run.checkpoint(2) / "method.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Trainer(config, run).train(resume=True)


def test_a_matrix_of_other_tasks_is_not_resumed(finished, config, tmp_path):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "j"))
    with run.matrix_file.open("a") as file:
        file.write("0,purple_ball_in_basket,heldout,1,2\n")
    with pytest.raises(ConfigError, match="matrix.csv: has the task 'purple_ball_in_basket', exp"):
        Trainer(config, run).train(resume=True)


class UnfreezingMethod(ContinualMethod):
    """Trains what no checkpoint of a run holds."""

    def before_task(self, policy, task):
        dict(policy.named_parameters())["action_expert.norm.weight"].requires_grad_(True)


class MergingMethod(ContinualMethod):
    """Changes what no checkpoint of a run holds."""

    def after_task(self, policy, task, collect):
        dict(policy.named_parameters())["action_expert.norm.weight"].data += 1.0


class CountingMethod(ContinualMethod):
    """Keeps something that is no tensor."""

    def state_dict(self) -> Any:
        return {"count": 3}


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (
            UnfreezingMethod, ConfigError,
            "UnfreezingMethod': before_task: 'action_expert.norm.weight' is trainable, but check",
        ),
        (CountingMethod, ConfigError, r"state_dict\(\)\['count'\] is a int, expected a tensor"),
        (MergingMethod, CheckpointError, "stage_1: weights outside of adapters and value head hav"),
    ],
)  # fmt: skip
def test_a_method_that_changes_what_checkpoints_do_not_hold_is_refused(
    config, tmp_path, method, error, message
):
    changed = dataclasses.replace(config, method=f"{__name__}:{method.__name__}")
    with pytest.raises(error, match=message):
        run_all(changed, tmp_path / "k")


def test_a_stage_whose_warm_up_took_all_its_episodes_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_check_budget", lambda self: None)
    ppo = dataclasses.replace(config.ppo, value_warmup_iterations=50)
    short = dataclasses.replace(config, ppo=ppo, episodes_per_task=1)
    with pytest.raises(ConfigError, match="stage 1: its .* episodes were used up by .* iterations"):
        run_all(short, tmp_path / "l")


class RecordingMethod(ContinualMethod):
    """Writes down which stage hooks were called."""

    calls: list[str] = []  # noqa: RUF012 (shared on purpose: the trainer builds the instance)

    def before_task(self, policy, task):
        self.calls.append(f"before {task}")

    def after_task(self, policy, task, collect):
        rollout = collect()
        self.calls.append(f"after {task}, {rollout.values.shape[0]} chunks")
        returns = rollout.returns.clone()
        rollout.compute_advantages(gamma=0.99, gae_lambda=0.95)
        assert torch.equal(rollout.returns, returns)  # of this rollout, not of the last one

    def state_dict(self):
        memory = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        return {"memory": memory.T, "view": memory[0], "wall_s": torch.tensor(7.0)}


def test_the_method_is_called_around_every_stage_and_its_state_is_saved(config, tmp_path):
    RecordingMethod.calls.clear()
    method = f"{__name__}:RecordingMethod"
    run = run_all(dataclasses.replace(config, method=method), tmp_path / "e")
    assert RecordingMethod.calls == [
        "before red_cube_in_basket",
        "after red_cube_in_basket, 6 chunks",
        "before green_cube_in_tray",
        "after green_cube_in_tray, 6 chunks",
    ]
    state = load_file(run.checkpoint(2) / "method.safetensors")
    assert state["method/memory"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert state["method/view"].tolist() == [1.0, 2.0]
    assert state["method/wall_s"] == 7.0


def test_an_adapter_without_a_loss_path_is_an_error_before_anything_is_written(config, tmp_path):
    useless = dataclasses.replace(config, lora=LoRAConfig(site="backbone"))
    with pytest.raises(ConfigError, match="no gradient reaches them: .*insulation = 'full'"):
        Trainer(useless, RunDirectory(tmp_path / "f"))
    assert not (tmp_path / "f").exists()


def test_adapters_of_the_backbone_are_trained_where_it_is_not_insulated(config, tmp_path):
    open_brain = dataclasses.replace(
        config, tasks=TASKS[:1], lora=LoRAConfig(rank=2, site="both"), insulation="none"
    )
    run = run_all(open_brain, tmp_path / "open")
    assert max(row["ratio_error"] for row in run.read_metrics()) < 5e-5
    before, after = (load_file(run.checkpoint(stage) / "adapter.safetensors") for stage in (0, 1))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone", "action_expert", "value_head"}
    load_policy(str(run.checkpoint(1)))


def test_insulation_of_nothing_is_refused(config):
    with pytest.raises(
        ConfigError, match="insulation is 0.5, but with lora.site = 'action_expert' noth"
    ):
        dataclasses.replace(config, insulation=0.5)
    with pytest.raises(ConfigError, match="insulation = 1.5, expected 'full', 'none' or a number"):
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
    exploration = ExplorationConfig(noise_level=0.3, stochastic_step="random")
    wilder = dataclasses.replace(config, exploration=exploration)
    flow = Trainer(wilder, RunDirectory(tmp_path / "h")).policy.config.flow
    assert (flow.noise_level, flow.stochastic_step) == (0.3, "random")


def test_a_policy_of_another_robot_is_refused(config, tmp_path):
    other = dataclasses.replace(config, policy="tiny_metaworld")
    message = r"policy 'tiny_metaworld' on suite 'tabletop_object': cameras\[1\] of the suite is"
    with pytest.raises(ConfigError, match=message):
        Trainer(other, RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize(
    "variation", [VariationConfig(light_gain=(0.5, 1.0)), VariationConfig(seed=1)]
)
def test_training_episodes_vary_as_the_recipe_says(config, tmp_path, monkeypatch, variation):
    make, drawn = VectorSim.__init__, []

    def remember(sim, suite, num_slots, *, variation=None, **settings):
        drawn.append(variation)
        make(sim, suite, num_slots, variation=variation, **settings)

    def stop(*_, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(VectorSim, "__init__", remember)
    monkeypatch.setattr(stage_module, "Collector", stop)
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
        (TrainConfig, {"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        (TrainConfig, {"seed": 10**30}, "seed is 10+, expected 0 to 4294967295"),
        (TrainConfig, {"tasks": ()}, "tasks is empty; name a task, or leave it out"),
        (TrainConfig, {"video_episodes": -1}, "video_episodes is -1, expected at least 0"),
        (TrainConfig, {"checkpoint_every": -1}, "checkpoint_every is -1, expected at least 0"),
        (EvaluationConfig, {"num_envs": 0}, "evaluation.num_envs is 0, expected at least 1"),
        (EvaluationConfig, {"num_episodes": 0}, "evaluation.num_episodes is 0, expected at"),
        (EvaluationConfig, {"num_sampled_episodes": -1}, "num_sampled_episodes is -1, expected"),
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
