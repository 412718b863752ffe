import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from vla_crl.algos.learner import Learner
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.recipe import TrainConfig
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.continual.trainer import Trainer
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.checksums import write_sums
from vla_crl.models.checkpoint import save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.routes import TaskRoute
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite
from vla_crl.termination import Terminated, telling_how_to_go_on


def after_signal(function):
    """Return a function that gets SIGTERM first, and does its work all the same."""

    def call(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    return call


def kill_in_stage_two(run_all, config, path: Path, monkeypatch, *, resume: bool = False) -> Path:
    """Run until the update of the second iteration of stage 2."""
    update = Learner.update

    def fail(self, *arguments):
        in_stage_two = len(SuccessMatrix.read(path / "matrix.csv").evaluated_stages) == 2
        if in_stage_two and self.iteration == 1:
            raise KeyboardInterrupt
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            run_all(config, path, resume=resume)
    return path


def test_a_stage_that_was_never_stored_begins_again(
    finished, config, tmp_path, monkeypatch, run_all, assert_same_run, capsys
):
    never = dataclasses.replace(config, checkpoint_every=0)
    path = kill_in_stage_two(run_all, never, tmp_path / "b", monkeypatch)
    assert not (path / "state").exists()
    resumed = run_all(never, path, resume=True)
    assert "goes on in stage" not in capsys.readouterr().err
    assert_same_run(resumed, finished)


@pytest.fixture(scope="module")
def often(config) -> TrainConfig:
    return dataclasses.replace(config, checkpoint_every=1, loggers=("tensorboard",))


@pytest.fixture(scope="module")
def killed(often, run_all, tmp_path_factory) -> Path:
    """A run that was killed in the second iteration of stage 2."""
    with pytest.MonkeyPatch.context() as patch:
        return kill_in_stage_two(run_all, often, tmp_path_factory.mktemp("killed") / "a", patch)


def test_a_stage_goes_on_after_the_iteration_that_was_stored_last(
    finished, often, killed, tmp_path, run_all, assert_same_run, capsys
):
    path = shutil.copytree(killed, tmp_path / "m")
    resumed = run_all(often, path, resume=True)
    assert "goes on in stage 2 after iteration 1\n" in capsys.readouterr().err
    assert_same_run(resumed, finished)
    assert not resumed.state.exists()
    assert_tensorboard_shows_it_once(resumed)


def assert_tensorboard_shows_it_once(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = run.read_metrics()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in ("episodes", "kl", "value_loss_grad_norm"):
        shown = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        assert shown == [(i, pytest.approx(row[name])) for i, row in enumerate(rows, start=1)]
    matrix = SuccessMatrix.read(run.matrix_file)
    ends = [sum(row["stage"] <= stage for row in rows) for stage in matrix.evaluated_stages]
    for task, rates in zip(matrix.tasks, matrix.rates.T, strict=True):
        shown = [(event.step, event.value) for event in events.Scalars(f"test_success/{task}")]
        assert shown == list(zip(ends, map(pytest.approx, rates), strict=True))
        assert len(events.Scalars(f"sampled_success/{task}")) == len(ends)


class Everything(ContinualMethod):
    """Adds an adapter for each task to weights that are trained themselves, and keeps a copy."""

    def before_task(self, policy, stage):
        assert isinstance(policy, VLAPolicy)
        bank, task = policy.adapters, stage.tasks[0]
        bank.add(task, LoRAConfig(rank=2, alpha=3))
        bank.activate({task: 1.0}, train=(task,))
        bank.route = TaskRoute(tasks={**getattr(bank.route, "tasks", {}), task: {task: 1.0}})
        bank.route = dataclasses.replace(bank.route, default={})

    def after_task(self, policy, stage):
        assert isinstance(policy, VLAPolicy)
        policy.adapters.snapshot(f"{stage.tasks[0]}_old")
        dict(policy.named_parameters())["state_in.bias"].data += 0.1


def test_random_weights_that_are_trained_and_adapters_that_come_and_go_are_resumed(
    config, run_all, assert_same_run, tmp_path, monkeypatch, capsys
):
    every = dataclasses.replace(
        config,
        lora=None,
        init="random",
        method=f"{__name__}:Everything",
        checkpoint_every=1,
    )
    expected = run_all(every, tmp_path / "whole")
    path, finish = tmp_path / "killed", Trainer._finish_stage

    def fail(self, stage):
        if stage == 1:
            raise KeyboardInterrupt
        finish(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish_stage", fail)
        with pytest.raises(KeyboardInterrupt):  # the method has closed the stage
            run_all(every, path)
    kill_in_stage_two(run_all, every, path, monkeypatch, resume=True)
    resumed = run_all(every, path, resume=True)
    told = capsys.readouterr().err
    assert "goes on in stage 2 after iteration 1" in told
    assert_same_run(resumed, expected)
    assert (resumed.checkpoint(2) / "policy.json").is_file()


def test_where_all_states_are_damaged_the_stage_begins_again(
    finished, often, killed, tmp_path, run_all, assert_same_run, capsys
):
    path = shutil.copytree(killed, tmp_path / "n")
    for file in path.glob("state/*/state.json"):
        file.write_text("{}")
    resumed = run_all(often, path, resume=True)
    said = capsys.readouterr().err
    assert "is damaged (state.json has the SHA-256" in said
    assert (
        "no state to go on from: stage 2 begins again; iterations that are trained anew: 1" in said
    )
    assert "goes on in stage" not in said
    assert_same_run(resumed, finished)


def test_episodes_of_an_evaluation_that_no_row_of_the_matrix_counts_are_written_again(
    finished, config, tmp_path, run_all, assert_same_run
):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "t"))
    lines = run.matrix_file.read_text().splitlines(keepends=True)
    run.matrix_file.write_text("".join(line for line in lines if not line.startswith("2,")))
    with run.episodes.path.open("a") as file:
        file.write("2,white_mug_in_tr")
    assert_same_run(run_all(config, run.path, resume=True), finished)


def test_a_run_of_an_older_version_is_told_what_its_file_is_called_now(
    finished, config, tmp_path, run_all
):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "u"))
    run.training_episodes.path.replace(run.episodes.path)
    with pytest.raises(ConfigError, match=r"rename the file to training_episodes\.csv"):
        run_all(config, run.path, resume=True)


def test_a_state_of_a_stage_to_which_the_matrix_does_not_lead_is_an_error(often, killed, tmp_path):
    path = shutil.copytree(killed, tmp_path / "o")
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


def test_a_state_that_does_not_fit_any_more_is_an_error(often, killed, tmp_path):
    path = shutil.copytree(killed, tmp_path / "p")
    other = dataclasses.replace(often, collector=CollectorConfig(num_envs=6, num_chunks=6))
    message = "state does not fit this run any more: .*set_states: .* the stage then begins again"
    with pytest.raises(CheckpointError, match=message):
        Trainer(other, RunDirectory(path)).train(resume=True)


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
    config, tmp_path, monkeypatch, run_all, capsys
):
    never = dataclasses.replace(config, checkpoint_every=0)
    monkeypatch.setattr(Learner, "update", after_signal(Learner.update))
    with pytest.raises(Terminated, match="again"), telling_how_to_go_on("again"):
        run_all(never, tmp_path / "s")
    assert "SIGTERM: stage 1 will begin again (checkpoint_every is 0)" in capsys.readouterr().err


def test_a_run_killed_before_its_first_row_starts_again_on_resume(
    config, finished, tmp_path, run_all, assert_same_run
):
    path = tmp_path / "c"
    RunDirectory.create(path, config, seed=0, command=[])
    resumed = run_all(config, path, resume=True)
    assert_same_run(resumed, finished)


def test_resuming_without_the_stage_checkpoint_says_which_file_is_missing(config, tmp_path):
    path = tmp_path / "d"
    run = RunDirectory.create(path, config, seed=0, command=[])
    run.matrix_file.write_text(
        "stage,task,split,successes,episodes\n0,red_cube_in_basket,train,0,2\n"
    )
    with pytest.raises(CheckpointError, match="adapter.json: cannot be read .No such"):
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
    write_sums(run.checkpoint(2), "method.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Trainer(config, run).train(resume=True)


@pytest.mark.parametrize("file", ["adapter.json", "adapter.safetensors", "method.safetensors"])
def test_a_checkpoint_that_is_damaged_is_not_resumed(finished, config, tmp_path, file):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "q"))
    path = run.checkpoint(2) / file
    path.write_bytes(path.read_bytes()[:-1] + b" ")  # JSON to which a space is nothing, or a number
    message = f"stage_2 is damaged: {file} has the SHA-256 .*; copy the whole checkpoint again"
    with pytest.raises(CheckpointError, match=message):
        Trainer(config, run).train(resume=True)


def test_a_run_that_was_moved_with_its_policy_goes_on(
    finished, often, killed, tmp_path, run_all, assert_same_run
):
    path, base = shutil.copytree(killed, tmp_path / "r"), tmp_path / "base"
    shutil.copytree(often.policy, base)
    resumed = run_all(dataclasses.replace(often, policy=str(base)), path, resume=True)
    assert_same_run(resumed, finished)


def test_a_matrix_of_other_tasks_is_not_resumed(finished, config, tmp_path):
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "j"))
    with run.matrix_file.open("a") as file:
        file.write("0,purple_ball_in_basket,heldout,1,2\n")
    with pytest.raises(ConfigError, match="matrix.csv: has the task 'purple_ball_in_basket', exp"):
        Trainer(config, run).train(resume=True)
