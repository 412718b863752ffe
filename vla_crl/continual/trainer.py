"""The stage loop: train on one task after another, evaluate all tasks after each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.config import check_seed
from vla_crl.continual.method import ContinualMethod, make_method
from vla_crl.continual.stream import TaskStream
from vla_crl.continual.success_matrix import Cell, SuccessMatrix, append_stage
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.adapters import LoRAConfig, add_lora, check_loss_paths
from vla_crl.models.checkpoint import load_adapter, load_policy, save_adapter
from vla_crl.models.policy import StochasticStep
from vla_crl.progress import console, track
from vla_crl.rollout.agents import policy_agent
from vla_crl.rollout.collector import CollectionStatistics, Collector, CollectorConfig
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import simulate_lanes
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.run_directory import RunDirectory
from vla_crl.sim.backends import find_suite
from vla_crl.sim.divergence import save_divergences
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

METHOD_FILE = "method.safetensors"
"""State of the continual-learning method in a stage's checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the success matrix is measured."""

    num_episodes: int = 100
    """Test episodes a task and stage; always the same test states."""
    num_sampled_episodes: int = 50
    """The same for the sampling policy, as it acts in training; 0 leaves it out."""
    num_envs: int = 128
    """Environments stepped together."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("num_episodes", 1), ("num_sampled_episodes", 0), ("num_envs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"evaluation.{name} is {getattr(self, name)}, expected at least {least}"
                )

    def check_states(self, suite: TaskSuite) -> None:
        """Check that the suite has as many test states as are asked for.

        Raises:
            ConfigError: It has fewer.
        """
        for name in ("num_episodes", "num_sampled_episodes"):
            if getattr(self, name) > len(suite.test_ids):
                raise ConfigError(
                    f"evaluation.{name} is {getattr(self, name)}, but suite '{suite.name}' has "
                    f"{len(suite.test_ids)} test states"
                )


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """How training samples actions; what is omitted is the policy's own setting."""

    noise_level: float | None = None
    """Noise level of the stochastic flow step, > 0."""
    stochastic_step: StochasticStep | None = None
    """Which flow step is stochastic: always the last, or one drawn for every observation."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A recipe: suite x policy x method x stream x budget."""

    suite: str
    """Suite of the catalogue."""
    policy: str
    """Preset or checkpoint directory of the base policy."""
    episodes_per_task: int
    """Training episodes of a stage; its last iteration runs to its end, so a few more."""
    method: str = "sequential"
    """Continual-learning method."""
    method_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method."""
    tasks: tuple[str, ...] | None = None
    """Training tasks in order; the suite's training tasks if omitted."""
    heldout_tasks: tuple[str, ...] | None = None
    """Tasks only evaluated; the suite's held-out tasks if omitted."""
    rounds: int = 1
    """How often the training tasks are run through, in the same order."""
    seed: int = 0
    """Seeds everything."""
    num_torch_threads: int = 2
    """Threads of the policy's matrix products."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Learning rule."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Adapters."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """Noise while collecting."""
    variation: VariationConfig = field(default_factory=VariationConfig)
    """Domain randomisation: what training episodes vary, in tasks without a variation of their own.
    Evaluation does not."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    """Size of an iteration."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Success matrix."""
    video_episodes: int = 2
    """Episodes filmed of every training task, before and after the stream; 0 films nothing."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("num_torch_threads", 1), ("video_episodes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        check_seed(self.seed)
        if self.tasks == ():
            raise ConfigError("tasks is empty; name a task, or leave it out for the suite's own")

    def stream(self, suite: TaskSuite) -> TaskStream:
        """Resolve the stream against the suite.

        Raises:
            ConfigError: A task that the suite does not have.
        """
        tasks, heldout = self.tasks, self.heldout_tasks
        if tasks is None:
            tasks = tuple(task.name for task in suite.tasks_of("train"))
        if heldout is None:
            heldout = tuple(task.name for task in suite.tasks_of("heldout"))
        for name in (*tasks, *heldout):
            try:
                suite.task_index(name)
            except ConfigError as error:
                raise ConfigError(
                    f"{error} If the recipe's tasks are those of another suite, name some of this "
                    "one, or ask for all of its own: --tasks None --heldout-tasks None"
                ) from error
        return TaskStream(
            train_tasks=tasks, heldout_tasks=heldout, rounds=self.rounds,
            episodes_per_task=self.episodes_per_task,
        )  # fmt: skip


class Trainer:
    """One run of a recipe; everything it finds out goes to its run directory.

    A stage is done when its row stands in the success matrix; what a killed stage left behind is
    discarded on resuming, and the numbers are those of a run that was never killed.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        """Load suite and policy and check that everything fits; nothing is written yet.

        Raises:
            ConfigError: The recipe does not fit the suite or the policy.
            CheckpointError: The policy's weights are missing or do not fit.
        """
        torch.set_num_threads(config.num_torch_threads)
        torch.manual_seed(config.seed)
        self.config, self.run = config, run
        self.suite = find_suite(config.suite)
        self.stream = config.stream(self.suite)
        config.evaluation.check_states(self.suite)
        if config.video_episodes > len(self.suite.test_ids):
            raise ConfigError(
                f"video_episodes is {config.video_episodes}, but suite '{self.suite.name}' has "
                f"{len(self.suite.test_ids)} test states"
            )
        self.suite.simulate(1, variation=config.variation).close()  # does the variation fit?
        self.policy = load_policy(config.policy)
        self.policy.eval()
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
        check_loss_paths(self.policy, self.policy.config.insulation)
        self._check_budget()
        self.method: ContinualMethod = make_method(config.method, config.method_settings)
        self._wall_s = 0.0

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
        sims = simulate_lanes(
            self.suite,
            config.collector.num_envs,
            num_threads=config.collector.num_threads,
            variation=config.variation,
        )
        collector = Collector(
            self.policy, sims, task, num_chunks=config.collector.num_chunks, seed=seed
        )
        ppo = PPO(self.policy, config.ppo)
        generator = torch.Generator().manual_seed(seed)
        episodes = 0
        with track(f"stage {stage}/{self.stream.num_stages} {task}", budget) as progress:
            while episodes < budget:
                statistics = collector.collect()
                started = perf_counter()
                metrics = ppo.update(collector.storage, self.method, generator)
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

        def collect_fresh() -> RolloutStorage:
            collector.collect()
            return collector.storage

        self.method.after_task(self.policy, task, collect_fresh)
        for sim in sims:
            sim.close()

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
        wall_s = torch.tensor(self._wall_s, dtype=torch.float64)
        save_file(self.method.state_dict() | {"wall_s": wall_s}, folder / METHOD_FILE)
        if sampled:
            append_stage(self.run.sampled_matrix_file, sampled, rounds=self.stream.rounds)
        append_stage(self.run.matrix_file, cells, rounds=self.stream.rounds)
        console.print(_stage_line(stage, cells), soft_wrap=True)

    def _evaluate(self, stage: int, num_episodes: int, *, deterministic: bool) -> list[Cell]:
        cells, seed = [], _stage_seed(self.config.seed, stage)
        agent = policy_agent(self.policy, deterministic=deterministic, seed=seed)
        for tasks in self._evaluation_groups():
            with self.method.evaluating(self.policy, tasks[0]):
                results = evaluate(
                    agent,
                    self.suite.name,
                    tasks,
                    num_episodes=num_episodes,
                    num_envs=self.config.evaluation.num_envs,
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
        stage = SuccessMatrix.read(run.matrix_file, rounds=rounds).evaluated_stages[-1]
        if run.sampled_matrix_file.exists():
            _drop_later_stages(run.sampled_matrix_file, stage, rounds)
        run.keep_metrics(lambda row: row["stage"] <= stage)
        folder = run.checkpoint(stage)
        load_adapter(self.policy, folder)
        try:
            state = load_file(folder / METHOD_FILE)
            self._wall_s = float(state.pop("wall_s"))
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{folder / METHOD_FILE}: cannot be read ({error})") from error
        self.method.load_state_dict(state)
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
