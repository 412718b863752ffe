"""The stage loop: train on one task after another, evaluate all tasks after each."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter

import torch

from vla_crl.algos.learner_checks import group_size_of
from vla_crl.config import as_record, to_mapping
from vla_crl.continual.beginning import example_evaluation, load_beginning, prepare_training
from vla_crl.continual.console_lines import end_line, iteration_line, stage_line
from vla_crl.continual.cost import check_budget, estimate_cost
from vla_crl.continual.demonstrated import Demonstrated
from vla_crl.continual.experience import check_group_size, contexts_of
from vla_crl.continual.generations import Generations, State
from vla_crl.continual.known_methods import make_method
from vla_crl.continual.loggers.loggers import Loggers
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_checks import check_method_fits, method_state, method_stream
from vla_crl.continual.recipe import TrainConfig
from vla_crl.continual.stage import (
    RunShared,
    StageRecord,
    StageTraining,
    make_learner,
    stage_seed,
)
from vla_crl.continual.success_matrix import Cell, SuccessMatrix, append_stage
from vla_crl.contracts import check_fits, compare_pictures
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.checksums import require_undamaged, write_sums
from vla_crl.files.state_dicts import join_states, load_tensors, part_of, save_tensors
from vla_crl.files.writing import replacing, sync
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.stage_checkpoint import restore, save_checkpoint
from vla_crl.models.weights import weights_fingerprint
from vla_crl.progress import console, track
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.rollout.outcomes import Outcomes
from vla_crl.rollout.results import TaskResult, episode_rows
from vla_crl.runs.directory import RunDirectory
from vla_crl.runs.episodes import EpisodeFile
from vla_crl.sim.backends import expert_of, find_suite, simulate
from vla_crl.sim.divergence import save_divergences
from vla_crl.sim.simulation import Filmed, Resumable, require
from vla_crl.termination import holding_sigterm

METHOD_FILE = "method.safetensors"
"""State of the continual-learning method in a stage's checkpoint."""


class Trainer:
    """One run of a recipe; everything it finds out goes to its run directory.

    Worlds are made once: those of training, which vary as the recipe says, and those of evaluation.

    A stage is done when its row stands in the success matrix, and its policy lies in `checkpoints`.
    Within a stage the state is stored every `checkpoint_every` iterations and when the method has
    closed the stage. On resuming, what was written after that is discarded, and the numbers are
    those of a run that was never killed.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        """Load suite and policy and check that everything fits; nothing is written yet.

        Raises:
            ConfigError: The recipe does not fit the suite or the policy.
            CheckpointError: The policy's weights are missing or do not fit.
        """
        config.compute.prepare()
        torch.manual_seed(config.seed)
        self.config, self.run = config, run
        self.suite = find_suite(config.suite)
        self.method: ContinualMethod = make_method(config.method, config.method_settings)
        self.stream = method_stream(self.method, config.method, config.stream(self.suite))
        self.suite.require_states(
            **{
                "evaluation.num_episodes": config.evaluation.num_episodes,
                "evaluation.num_sampled_episodes": config.evaluation.num_sampled_episodes,
                "video_episodes": config.video_episodes,
            }
        )
        if config.video_episodes:
            with closing(simulate(self.suite, 1, tasks=[])) as sim:
                require(sim, Filmed, f"filmed, as video_episodes = {config.video_episodes} asks")
        self.policy = self.load_base()
        self.weights = weights_fingerprint(self.policy)  # of the run's beginning
        where = f"policy '{config.policy}' on suite '{config.suite}'"
        check_fits(self.policy.embodiment, self.suite.embodiment, where)
        compare_pictures(self.policy.config.pictures, self.suite.pictures, where)
        self.policy.explore(config.exploration)
        insulation = config.insulation or self.policy.config.insulation
        self.policy.config = replace(
            self.policy.config, insulation=insulation, pictures=self.suite.pictures
        )
        prepare_training(self.policy, config)
        check_budget(config, self.suite, self.policy)
        self.loggers = Loggers(config.loggers, run, to_mapping(config))
        self._wall_s = 0.0
        self._generations = Generations(run.state)
        plan = contexts_of(config, self.suite, self.policy)
        cost = estimate_cost(config, self.suite, self.stream, self.policy, plan)
        cost.require_memory(config.compute.device)
        console.print(cost.describe(config.compute.device), soft_wrap=True)
        self._make_worlds()
        self._check_learner()
        demonstrated = Demonstrated(
            self.suite,
            image_size=self.policy.config.image_size,
            num_threads=config.compute.num_sim_threads,
            seed=config.seed,
        )
        self._shared = RunShared(
            num_stages=self.stream.num_stages, demonstrations=demonstrated, folder=run.memory
        )

    def load_base(self) -> VLAPolicy:
        """Return the policy with which the run begins, as it is on disk."""
        return load_beginning(self.config)

    def _make_worlds(self) -> None:
        """Make the worlds of training and of evaluation."""
        config, stream, settings = self.config, self.stream, self.config.evaluation
        num_episodes = max(settings.num_episodes, settings.num_sampled_episodes)
        make = partial(
            simulate_lanes,
            self.suite,
            image_size=self.policy.config.image_size,
            compute=config.compute,
        )
        self._training_sims = make(
            config.collector.num_envs,
            tasks=[self.suite.task_index(task) for task in stream.train_tasks],
            variation=config.variation,
        )
        self._evaluation_sims = make(
            min(settings.num_envs, num_episodes * len(stream.tasks)),
            tasks=[self.suite.task_index(task) for task in stream.tasks],
        )
        if every := config.checkpoint_every:
            stored = f"stored in a stage (checkpoint_every = {every}; 0 stores stages only)"
            require(self._training_sims[0], Resumable, stored)

    def _check_learner(self) -> None:
        """Build a learner as the stages do, and see whether worlds and method fit it."""
        config, sims = self.config, self._training_sims
        learner = make_learner(config, self.policy, self.suite)
        size = group_size_of(type(learner), config.learner)
        check_group_size(size, [sim.num_slots for sim in sims])
        if learner.data == "demonstrations":
            expert_of(sims[0])
        evaluation = example_evaluation(self.policy)
        check_method_fits(self.method, config.method, self.policy, learner, evaluation)

    @property
    def _base(self) -> str:
        """What adapters are saved as adapters of; those that `policy` may bring are in them."""
        return self.config.base or self.config.policy

    def close(self) -> None:
        """Let go of the worlds."""
        close_lanes(self._training_sims + self._evaluation_sims)

    def train(self, *, resume: bool) -> None:
        """Run all that is not done yet.

        Args:
            resume: Go on with what the run directory holds.

        Raises:
            ConfigError: The run directory's files do not fit the recipe.
            CheckpointError: A checkpoint is missing, damaged or does not fit.
            Terminated: SIGTERM came; where nothing else is said it ends the process, see
                `holding_sigterm`.
        """
        last_done, state = self._restore() if resume else (-1, None)
        self.loggers.begin(self.stream.rounds)
        if last_done < 0:
            self._finish_stage(0)
        for number, tasks in self.stream.stages():
            if number > last_done:
                self._train_stage(number, tasks, state)
                self._finish_stage(number)
                state = None
        self._generations.clear()

    def _train_stage(self, number: int, tasks: tuple[str, ...], state: State | None) -> None:
        """Spend the stage's budget of episodes on its tasks, from the beginning or from a state."""
        stage = StageTraining(
            self.config,
            self.policy,
            self.method,
            self._training_sims,
            number=number,
            tasks=tasks,
            shared=self._shared,
            wall_s=self._wall_s,
        )
        if state is not None:
            self._load(stage, state)
        if not stage.is_closed:
            self._spend_budget(stage)
            stage.close()
            self._store(stage)
        self._wall_s = stage.wall_s

    def _spend_budget(self, stage: StageTraining) -> None:
        """Iterate; SIGTERM ends it after an iteration, with its state stored."""
        every = self.config.checkpoint_every
        name = f"stage {stage.number}/{self.stream.num_stages} {' + '.join(stage.tasks)}"
        with track(name, stage.budget) as progress, holding_sigterm() as sigterm_came:
            progress.advance(stage.episodes)
            while not stage.is_spent:
                statistics, row = stage.iterate()
                ended = self._episode_rows(stage, statistics.outcomes)
                self.run.training_episodes.append(ended)
                self.run.append_metrics(row)
                self.loggers.iteration(row)
                progress.print(iteration_line(row))
                for line in save_divergences([*statistics.divergences], self.run.divergences):
                    progress.print(line)
                progress.advance(statistics.episodes)
                ends = sigterm_came()
                if every and (ends or stage.is_spent or stage.iteration % every == 0):
                    self._store(stage)
                if ends:
                    progress.print(end_line(stage, every))
                    break

    def _episode_rows(self, stage: StageTraining, ended: Outcomes) -> Iterator[tuple[object, ...]]:
        """Return the lines of training_episodes.csv on what has ended in an iteration."""
        columns = (ended.episode, ended.task, ended.state_id, ended.group, ended.num_steps)
        for row, success in zip(torch.stack(columns, 1).tolist(), ended.success, strict=True):
            episode, task, *rest = row
            name = self.suite.tasks[task].name
            yield stage.number, stage.iteration, episode, name, *rest, int(success)

    def _store(self, stage: StageTraining) -> None:
        """Store the state of a stage, and before it what the run directory says about it."""
        if self.config.checkpoint_every:
            sync(self.run.metrics_file)
            state = stage.state()
            self._generations.save(state.record, state.tensors)

    def _load(self, stage: StageTraining, state: State) -> None:
        """Bring a stage to a stored state."""
        try:
            stage.load_state(state)
        except (SpecError, ConfigError, CheckpointError) as error:
            raise CheckpointError(
                f"{self.run.state} does not fit this run any more: {error}. Resume with the "
                f"versions that wrote it, or remove {self.run.state}: the stage then begins again"
            ) from error
        console.print(
            f"goes on in stage {stage.number} after iteration {state.record['iteration']}",
            soft_wrap=True,
        )

    def _finish_stage(self, stage: int) -> None:
        """Evaluate all tasks, checkpoint, and mark the stage as done by its matrix row."""
        started, settings, sampled = perf_counter(), self.config.evaluation, []
        results = self._evaluate(stage, settings.num_episodes, deterministic=True)
        if settings.num_sampled_episodes:
            sampled = self._evaluate(stage, settings.num_sampled_episodes, deterministic=False)
        self._wall_s += perf_counter() - started
        folder = self.run.checkpoint(stage)
        save_checkpoint(self.policy, folder, self._base)
        state = join_states({"method": method_state(self.method, self.config.method)})
        state["wall_s"] = torch.tensor(self._wall_s, dtype=torch.float64)
        save_tensors(state, folder / METHOD_FILE)
        write_sums(folder, METHOD_FILE)
        sync(folder.parent)  # before the row that says that the folder is there
        if sampled:
            self._append(stage, sampled, self.run.sampled_episodes, self.run.sampled_matrix_file)
        cells = self._append(stage, results, self.run.episodes, self.run.matrix_file)
        console.print(stage_line(stage, cells), soft_wrap=True)

    def _append(
        self, stage: int, results: Sequence[TaskResult], episodes: EpisodeFile, matrix: Path
    ) -> list[Cell]:
        """Add a stage to the episodes and then, which says that it is done, to the matrix."""
        episodes.append(episode_rows(results, stage=stage, seed=self.config.seed))
        split = self.stream.split
        cells = [
            Cell(stage=stage, task=r.task, split=split(r.task), successes=r.successes,
                 episodes=r.episodes)
            for r in results
        ]  # fmt: skip
        append_stage(matrix, cells, rounds=self.stream.rounds)
        self.loggers.evaluation(matrix, cells)
        return cells

    def _evaluate(self, stage: int, num_episodes: int, *, deterministic: bool) -> list[TaskResult]:
        seed = stage_seed(self.config.seed, stage)
        return evaluate(
            PolicyAgent(self.policy, deterministic, seed),
            self._evaluation_sims,
            self.stream.tasks,
            num_episodes=num_episodes,
            divergences=self.run.divergences,
        )

    def _restore(self) -> tuple[int, State | None]:
        """Load the last stage that is done, and drop what was written after it was or is stored.

        Returns:
            The stage's number, and the state of the next one if that was stored.
        """
        run, rounds = self.run, self.stream.rounds
        last_done = self._last_done()
        state = self._state_after(last_done)
        for file in (run.episodes, run.sampled_episodes):
            file.keep_until(last_done)
        if last_done < 0:
            run.sampled_matrix_file.unlink(missing_ok=True)
        elif run.sampled_matrix_file.exists():
            _drop_later_stages(run.sampled_matrix_file, last_done, rounds)
        if state:
            record = state.record
            run.require_rows(record["stage"], record["iteration"], record["episodes"])
            run.keep_until(record["stage"], record["iteration"])
        else:
            self._tell_what_begins_again(last_done)
            run.keep_until(last_done, inf)
        if last_done < 0:
            return last_done, None
        folder = run.checkpoint(last_done)
        restore(self.policy, folder)
        stored = load_tensors(folder / METHOD_FILE)
        require_undamaged(folder, METHOD_FILE)
        if "wall_s" not in stored:
            raise CheckpointError(f"{folder / METHOD_FILE}: 'wall_s' is missing; copy it again")
        self._wall_s = float(stored["wall_s"])
        self.method.load_state_dict(part_of(stored, "method"))
        return last_done, state

    def _tell_what_begins_again(self, last_done: int) -> None:
        """Say which iterations are repeated, as no state of their stage is stored."""
        rows = self.run.read_metrics(("stage",))
        if repeated := [row for row in rows if row["stage"] > last_done]:
            console.print(
                f"no state to go on from: stage {repeated[0]['stage']} begins again; iterations "
                f"that are trained anew: {len(repeated)}",
                soft_wrap=True,
            )

    def _state_after(self, last_done: int) -> State | None:
        """Return the stored state of the stage after the last that is done, if there is one."""
        state = self._generations.load()
        if state is not None:
            record = as_record(StageRecord, state.record, str(self.run.state))
            state = replace(state, record=record)
        if state is None or (number := state.record["stage"]) <= last_done:
            return None
        numbers = (0, *(number for number, _ in self.stream.stages()))
        if number > next(n for n in (*numbers, number) if n > last_done):
            has = f"ends with stage {last_done}" if last_done >= 0 else "is missing"
            raise CheckpointError(
                f"{self.run.state}: is of stage {number}, but {self.run.matrix_file} {has}; "
                f"restore that file, or remove {self.run.state} to train from there again"
            )
        return state

    def _last_done(self) -> int:
        """Return the last stage of which the success matrix has a row, -1 if there is none."""
        file = self.run.matrix_file
        if not file.exists():
            return -1
        matrix = SuccessMatrix.read(file, rounds=self.stream.rounds)
        if foreign := set(matrix.tasks) - set(self.stream.tasks):
            raise ConfigError(
                f"{file}: has the task '{min(foreign)}', expected those of the stream: "
                f"{', '.join(self.stream.tasks)}; restore the file"
            )
        return matrix.evaluated_stages[-1]


def _drop_later_stages(path: Path, stage: int, rounds: int) -> None:
    matrix = SuccessMatrix.read(path, rounds=rounds)
    cells = [cell for cell in matrix.cells() if cell.stage <= stage]
    with replacing(path) as temporary:
        SuccessMatrix.from_cells(cells, rounds=rounds).write(temporary)
