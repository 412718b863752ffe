"""The stage loop: train on one task after another, evaluate all tasks after each."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from vla_crl.algos.ppo import PPO
from vla_crl.algos.protocols import Rollout
from vla_crl.continual.method import ContinualMethod, make_method
from vla_crl.continual.recipe import TrainConfig
from vla_crl.continual.success_matrix import Cell, SuccessMatrix, append_stage
from vla_crl.contracts import check_fits
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.adapters import (
    adapters_merged,
    add_lora,
    check_loss_paths,
    check_only_adapters_train,
)
from vla_crl.models.checkpoint import (
    load_adapter,
    load_policy,
    load_tensors,
    save_adapter,
    save_tensors,
)
from vla_crl.progress import console, track
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.collector import CollectionStatistics, Collector
from vla_crl.rollout.contexts import ContextPlan, plan_contexts
from vla_crl.rollout.episodes import shuffled_lanes
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.run_directory import RunDirectory
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.divergence import save_divergences
from vla_crl.sim.simulation import Filmed, require

METHOD_FILE = "method.safetensors"
"""State of the continual-learning method in a stage's checkpoint."""


class Trainer:
    """One run of a recipe; everything it finds out goes to its run directory.

    Worlds are made once: those of training, which vary as the recipe says, and those of evaluation.

    A stage is done when its row stands in the success matrix; what a killed stage left behind is
    discarded on resuming, and the numbers are those of a run that was never killed.
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
        self.stream = config.stream(self.suite)
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
        self.policy = load_policy(
            config.policy, device=config.compute.device, dtype=config.compute.dtype
        )
        where = f"policy '{config.policy}' on suite '{config.suite}'"
        check_fits(self.policy.embodiment, self.suite.embodiment, where)
        self.policy.set_exploration(
            config.exploration.noise_level, config.exploration.stochastic_step
        )
        if self.policy.lora is None:
            add_lora(self.policy, config.lora)
        elif self.policy.lora != config.lora:
            raise ConfigError(
                f"policy '{config.policy}' brings adapters {self.policy.lora}, the recipe asks for "
                f"{config.lora}; make them equal"
            )
        self.policy.config = replace(self.policy.config, insulation=config.insulation)
        check_loss_paths(self.policy, config.insulation)
        self._check_budget()
        self.method: ContinualMethod = make_method(config.method, config.method_settings)
        self._wall_s = 0.0
        plan = self._plan_contexts()
        plan.check_memory(config.compute.device)
        console.print(str(plan), soft_wrap=True)
        self._make_worlds()

    def _plan_contexts(self) -> ContextPlan:
        """Decide how updates get their contexts, of what is to be trained now."""
        settings = self.config.collector
        num_rows = settings.num_envs * settings.num_chunks
        return plan_contexts(self.policy, num_rows, settings.contexts, settings.max_stored_gib)

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

    def close(self) -> None:
        """Let go of the worlds."""
        close_lanes(self._training_sims + self._evaluation_sims)

    def _check_budget(self) -> None:
        """Refuse a budget that the warm-up of the value head would use up."""
        config = self.config
        chunks = -(-self.suite.horizon // self.policy.config.execution_horizon)
        least = config.collector.num_envs * config.collector.num_chunks / chunks
        if config.episodes_per_task <= least * config.ppo.value_warmup_iterations:
            raise ConfigError(
                f"episodes_per_task is {config.episodes_per_task}, but an iteration takes at least "
                f"{least:.0f} episodes and the first {config.ppo.value_warmup_iterations} train "
                "the value head alone, so the policy would not be trained; raise it, or lower "
                "ppo.value_warmup_iterations, collector.num_envs or collector.num_chunks"
            )

    def train(self, *, resume: bool) -> None:
        """Run all stages that are not done yet."""
        last_done = self._restore() if resume else -1
        if last_done < 0:
            self._finish_stage(0)
        for stage, task in self.stream.stages():
            if stage <= last_done:
                continue
            self._train_stage(stage, task)
            self._finish_stage(stage)

    def _train_stage(self, stage: int, task: str) -> None:
        """Spend the stage's budget of episodes on its task."""
        config, budget = self.config, self.stream.episodes_per_task
        seed = _stage_seed(config.seed, stage)
        self.method.before_task(self.policy, task)
        check_only_adapters_train(self.policy, f"method '{config.method}': before_task")
        collector = Collector(
            self.policy,
            self._training_sims,
            shuffled_lanes(
                self.suite, [self.suite.task_index(task)], len(self._training_sims), seed
            ),
            num_chunks=config.collector.num_chunks,
            seed=seed,
            contexts=self._plan_contexts().contexts,
        )
        ppo = PPO(self.policy, config.ppo)
        generator = torch.Generator().manual_seed(seed)
        episodes = 0
        with track(f"stage {stage}/{self.stream.num_stages} {task}", budget) as progress:
            while episodes < budget:
                statistics = collector.collect()
                started = perf_counter()
                metrics = ppo.update(collector.rollout, self.method, generator)
                update_s = perf_counter() - started
                episodes += statistics.episodes
                self._wall_s += statistics.wall_s + update_s
                row = self._record(
                    stage, task, ppo.iteration, episodes, statistics, metrics, update_s
                )
                progress.print(_iteration_line(row))
                for line in save_divergences([*statistics.divergences], self.run.divergences):
                    progress.print(line)
                progress.advance(statistics.episodes)
        if ppo.iteration <= config.ppo.value_warmup_iterations:
            raise ConfigError(
                f"stage {stage}: its {episodes} episodes were used up by {ppo.iteration} "
                "iterations, which train the value head alone (ppo.value_warmup_iterations = "
                f"{config.ppo.value_warmup_iterations}); raise episodes_per_task"
            )

        def collect_fresh() -> Rollout:
            collector.collect()
            collector.rollout.compute_advantages(
                gamma=config.ppo.gamma, gae_lambda=config.ppo.gae_lambda
            )
            return collector.rollout

        self.method.after_task(self.policy, task, collect_fresh)

    def _record(
        self,
        stage: int,
        task: str,
        iteration: int,
        episodes: int,
        statistics: CollectionStatistics,
        metrics: Mapping[str, float],
        update_s: float,
    ) -> dict[str, Any]:
        """Write one line of metrics.jsonl and return it."""
        row = {
            "stage": stage,
            "task": task,
            "iteration": iteration,
            "episodes": episodes,
            "success": statistics.success,
            "return": statistics.success,
            "diverged": len(statistics.divergences),
            **metrics,
            "steps_per_s": statistics.num_steps / (statistics.wall_s + update_s),
            "collect_s": statistics.wall_s,
            "render_s": statistics.render_s,
            "policy_s": statistics.policy_s,
            "wait_s": statistics.wait_s,
            "physics_s": statistics.physics_s,
            "update_s": update_s,
            "wall_s": self._wall_s,
        }
        self.run.append_metrics(row)
        return row

    def _finish_stage(self, stage: int) -> None:
        """Evaluate all tasks, checkpoint, and mark the stage as done by its matrix row."""
        started, settings, sampled = perf_counter(), self.config.evaluation, []
        cells = self._evaluate(stage, settings.num_episodes, deterministic=True)
        if settings.num_sampled_episodes:
            sampled = self._evaluate(stage, settings.num_sampled_episodes, deterministic=False)
        self._wall_s += perf_counter() - started
        folder = self.run.checkpoint(stage)
        save_adapter(self.policy, folder, self.config.policy)
        state = {f"method/{name}": tensor for name, tensor in self._method_state().items()}
        state["wall_s"] = torch.tensor(self._wall_s, dtype=torch.float64)
        save_tensors(state, folder / METHOD_FILE)
        if sampled:
            append_stage(self.run.sampled_matrix_file, sampled, rounds=self.stream.rounds)
        append_stage(self.run.matrix_file, cells, rounds=self.stream.rounds)
        console.print(_stage_line(stage, cells), soft_wrap=True)

    def _method_state(self) -> Mapping[str, torch.Tensor]:
        state = self.method.state_dict()
        for name, value in state.items():
            if not isinstance(cast(Any, value), torch.Tensor):
                raise ConfigError(
                    f"method '{self.config.method}': state_dict()['{name}'] is a "
                    f"{type(value).__name__}, expected a tensor"
                )
        return state

    def _evaluate(self, stage: int, num_episodes: int, *, deterministic: bool) -> list[Cell]:
        cells, seed = [], _stage_seed(self.config.seed, stage)
        agent = PolicyAgent(self.policy, deterministic, seed)
        for tasks in self._evaluation_groups():
            with self.method.evaluating(self.policy, tasks[0]), adapters_merged(self.policy):
                results = evaluate(
                    agent,
                    self._evaluation_sims,
                    tasks,
                    num_episodes=num_episodes,
                    divergences=self.run.divergences,
                )
            cells += [
                Cell(
                    stage=stage,
                    task=result.task,
                    split=self.stream.split(result.task),
                    successes=result.successes,
                    episodes=result.episodes,
                )
                for result in results
            ]
        return cells

    def _evaluation_groups(self) -> list[tuple[str, ...]]:
        """Return the tasks that may share a batch: all, unless the method treats them apart."""
        if type(self.method).evaluating is ContinualMethod.evaluating:
            return [self.stream.tasks]
        return [(task,) for task in self.stream.tasks]

    def _restore(self) -> int:
        """Load the last stage that is done, drop what came later, and return its number."""
        run, rounds = self.run, self.stream.rounds
        if not run.matrix_file.exists():
            run.sampled_matrix_file.unlink(missing_ok=True)
            run.keep_metrics(lambda _: False)
            return -1
        matrix = SuccessMatrix.read(run.matrix_file, rounds=rounds)
        if foreign := set(matrix.tasks) - set(self.stream.tasks):
            raise ConfigError(
                f"{run.matrix_file}: has the task '{min(foreign)}', expected those of the stream: "
                f"{', '.join(self.stream.tasks)}; restore the file"
            )
        stage = matrix.evaluated_stages[-1]
        if run.sampled_matrix_file.exists():
            _drop_later_stages(run.sampled_matrix_file, stage, rounds)
        run.keep_metrics(lambda row: row["stage"] <= stage)
        folder = run.checkpoint(stage)
        load_adapter(self.policy, folder)
        state = load_tensors(folder / METHOD_FILE)
        if "wall_s" not in state:
            raise CheckpointError(f"{folder / METHOD_FILE}: 'wall_s' is missing; copy it again")
        self._wall_s = float(state.pop("wall_s"))
        self.method.load_state_dict({key.removeprefix("method/"): v for key, v in state.items()})
        return stage


def _stage_seed(seed: int, stage: int) -> int:
    """Give every stage its own random stream, so that a resumed stage repeats itself."""
    return 1_000 * seed + stage


def _drop_later_stages(path: Path, stage: int, rounds: int) -> None:
    matrix = SuccessMatrix.read(path, rounds=rounds)
    cells = [cell for cell in matrix.cells() if cell.stage <= stage]
    temporary = path.with_suffix(".rewritten.csv")
    temporary.unlink(missing_ok=True)
    SuccessMatrix.from_cells(cells, rounds=rounds).write(temporary)
    temporary.replace(path)


def _iteration_line(row: Mapping[str, Any]) -> str:
    total = row["collect_s"] + row["update_s"]
    parts = ("render", "policy", "physics", "wait", "update")
    shares = " ".join(f"{part} {100 * row[f'{part}_s'] / total:.0f}" for part in parts)
    rate = "    -" if isnan(row["success"]) else f"{row['success']:.3f}"  # too few episodes yet
    return (
        f"stage {row['stage']}  iteration {row['iteration']:4d}  episodes {row['episodes']:6d}  "
        f"success {rate}  return {rate}  kl {row['kl']:.4f}  "
        f"clip {row['clip_fraction']:.2f}  {row['steps_per_s']:.0f} steps/s "
        f"(%: {shares})"
    )


def _stage_line(stage: int, cells: Sequence[Cell]) -> str:
    rates = "  ".join(f"{cell.task} {100 * cell.successes / cell.episodes:.0f}" for cell in cells)
    return f"after stage {stage}, success in % on test states: {rates}"
