"""Does a device do what the CPU does: pretrain, train, evaluate, save and load?"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch

from vla_crl.algos.ppo import PPOConfig
from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.cli.doctor import Check
from vla_crl.compute import ComputeConfig, Dtype
from vla_crl.continual.recipe import EvaluationConfig, TrainConfig
from vla_crl.continual.trainer import Trainer
from vla_crl.contracts import Observation
from vla_crl.density import CategoricalDensity
from vla_crl.errors import USER_ERRORS, SpecError
from vla_crl.models.checkpoint import load_policy, save_adapter
from vla_crl.models.policy import VLAPolicy
from vla_crl.pretraining.pretrain import pretrain
from vla_crl.pretraining.recipe import PretrainConfig
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.runs.directory import RunDirectory
from vla_crl.sim.backends import find_suite, simulate

NUM_OBSERVATIONS = 8
TOLERANCES: dict[Dtype, float] = {"float32": 0.01, "bfloat16": 0.1}
"""What is computed in, and the largest difference from the CPU, relative to the largest number of
its kind, or to 1. A GPU's convolutions keep 10 bits of float32, bfloat16 has 8, and dozens of
roundings follow one another; a number that is wrong is another one altogether."""
SAME = 1e-6
"""The same for a policy that was saved and loaded."""
MAX_RATIO_ERROR = 0.01
"""Of a probability ratio that should be 1: updates see what was seen while collecting."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried, and at which size.

    Attributes:
        suite: Name of a suite; its first training task is trained on.
        preset: What is pretrained.
        base: Preset or checkpoint of the policy that is trained on.
        heads: Those of policies with other heads, which act.
        num_envs: Environments, and demonstrations, and episodes of a stage.
        num_updates: Of pretraining.
        num_episodes: Test episodes a task.
    """

    suite: str = "tabletop_object"
    preset: str = "tiny"
    base: str = "tiny"
    heads: tuple[str, ...] = ("tiny_noise", "tiny_gaussian", "tiny_parallel", "tiny_tokens")
    num_envs: int = 32
    num_updates: int = 8
    num_episodes: int = 2

    def pretrain(self, compute: ComputeConfig, output: Path) -> None:
        """Make a base policy."""
        config = PretrainConfig(
            suite=self.suite,
            policy=self.preset,
            supervised=SupervisedConfig(num_updates=self.num_updates, num_warmup_updates=1),
            num_episodes=self.num_envs,
            num_eval_episodes=self.num_episodes,
            compute=compute,
        )
        pretrain(config, output, recipe=self.preset)

    def train(self, compute: ComputeConfig, folder: Path) -> RunDirectory:
        """Train on a task."""
        config = TrainConfig(
            suite=self.suite,
            policy=self.base,
            episodes_per_task=self.num_envs,
            tasks=(find_suite(self.suite).tasks_of("train")[0].name,),
            heldout_tasks=(),
            compute=compute,
            learner=PPOConfig(value_warmup_iterations=0, num_epochs=2, target_kl=None),
            collector=CollectorConfig(num_envs=self.num_envs, num_chunks=6),
            evaluation=EvaluationConfig(num_episodes=self.num_episodes, num_sampled_episodes=1),
            video_episodes=0,
        )
        trainer = Trainer(config, RunDirectory(folder))
        try:
            run = RunDirectory.create(folder, config, seed=config.seed, command=[])
            trainer.train(resume=False)
        finally:
            trainer.close()
        return run

    def evaluate(self, policy: VLAPolicy) -> int:
        """Return the number of successes on test states, in worlds on the CPU."""
        suite, image_size = find_suite(self.suite), policy.config.image_size
        sims = simulate_lanes(suite, self.num_envs, image_size=image_size, compute=ComputeConfig())
        try:
            agent = PolicyAgent(policy, deterministic=True)
            results = evaluate(agent, sims, num_episodes=self.num_episodes)
        finally:
            close_lanes(sims)
        return sum(result.successes for result in results)


def check_device(device: str, trial: Trial | None = None) -> Iterator[Check]:
    """Pretrain, train, evaluate, save and load on a device, and compare with the CPU.

    Args:
        device: As in `ComputeConfig`; on a GPU worlds are simulated too, if MuJoCo Warp is there.
        trial: What is tried.

    Yields:
        One result a step and kind of numbers; a step that fails does not stop the others.

    Raises:
        ConfigError: There is no such device, or the CPU cannot do it either.
    """
    ComputeConfig(device=device).prepare()
    with TemporaryDirectory() as folder:
        yield from _Checks(trial or Trial(), device, Path(folder)).run()


class _Checks:
    """Checks of one device against a policy that the CPU has made."""

    def __init__(self, trial: Trial, device: str, folder: Path) -> None:
        self._trial, self._device, self._folder = trial, device, folder
        self._pretrained, cpu = folder / "base_cpu", ComputeConfig()
        trial.pretrain(cpu, self._pretrained)
        self._trained = trial.train(cpu, folder / "run_cpu").checkpoint(1)
        self._seen = _observe(trial.suite, load_policy(self._trained).config.image_size)

    def run(self) -> Iterator[Check]:
        """Check everything."""
        for dtype in TOLERANCES:
            for work in (
                self._act,
                self._pretrain,
                self._train,
                self._evaluate,
                self._save_and_load,
            ):
                name = work.__name__.strip("_").replace("_", " ")
                yield _check(f"{name} in {dtype} on {self._device}", partial(work, dtype))
            for policy in self._trial.heads:
                name = f"act by {policy} in {dtype} on {self._device}"
                yield _check(name, partial(self._act, dtype, policy))
        if self._device != "cpu":
            sim_device = "cuda:0" if self._device == "cuda" else self._device
            name = f"train in worlds on {sim_device}"
            yield _check(name, partial(self._train, "float32", sim_device))

    def _act(self, dtype: Dtype, policy: str | None = None) -> str:
        path = policy or self._trained
        ours, theirs = (
            load_policy(path, device=where, dtype=dtype) for where in (self._device, "cpu")
        )
        return _compare(ours, theirs, self._seen, TOLERANCES[dtype])

    def _pretrain(self, dtype: Dtype) -> str:
        base = self._folder / f"base_{dtype}"
        self._trial.pretrain(ComputeConfig(device=self._device, dtype=dtype), base)
        ours, theirs = load_policy(base), load_policy(self._pretrained)
        return _compare(ours, theirs, self._seen, TOLERANCES[dtype])

    def _train(self, dtype: Dtype, sim_device: str = "cpu") -> str:
        compute = ComputeConfig(device=self._device, sim_device=sim_device, dtype=dtype)
        folder = self._folder / f"run_{dtype}_{sim_device}"
        rows = self._trial.train(compute, folder).read_metrics()
        error = max(row["ratio_error"] for row in rows)
        if not error < MAX_RATIO_ERROR:
            raise SpecError(f"ratio_error is {error:.2g}, expected below {MAX_RATIO_ERROR}")
        seconds = sum(row["collect_s"] for row in rows), sum(row["update_s"] for row in rows)
        return f"ratio_error {error:.1g}, collecting {seconds[0]:.1f} s, updates {seconds[1]:.1f} s"

    def _evaluate(self, dtype: Dtype) -> str:
        policies = (self._load(where, dtype) for where in (self._device, "cpu"))
        ours, theirs = (self._trial.evaluate(policy) for policy in policies)
        return f"{ours} successes, on the CPU {theirs}"

    def _save_and_load(self, dtype: Dtype) -> str:
        policy, copy = self._load(self._device, dtype), self._folder / f"copy_{dtype}"
        save_adapter(policy, copy, self._trial.base)
        loaded = load_policy(copy, device=self._device, dtype=dtype)
        return _compare(loaded, policy, self._seen, SAME)

    def _load(self, device: str, dtype: Dtype) -> VLAPolicy:
        return load_policy(self._trained, device=device, dtype=dtype)


def _check(name: str, work: Callable[[], str]) -> Check:
    """Do some work and tell what it found, or how it failed, and how long it took."""
    started, status, advice = perf_counter(), "ok", ""
    try:
        found = work()
    except (*USER_ERRORS, RuntimeError, TypeError) as error:  # the last two are torch's and Warp's
        found, status, advice = str(error), "fail", "compute on the 'cpu', and tell us"
    return Check(
        name=name, status=status, found=f"{found}; {perf_counter() - started:.1f} s", advice=advice
    )


def _observe(suite: str, image_size: int) -> Observation:
    """Return what robots see in the first initial states."""
    slots = np.arange(NUM_OBSERVATIONS)
    with closing(simulate(find_suite(suite), len(slots), image_size=image_size)) as sim:
        sim.reset(slots, tasks=slots % len(sim.suite.tasks), state_ids=slots)
        return sim.observe()


@torch.no_grad()
def _compare(ours: VLAPolicy, theirs: VLAPolicy, seen: Observation, tolerance: float) -> str:
    """Let two policies act on the same with the same randomness, and tell how far apart they are.

    Raises:
        SpecError: Farther than tolerated.
    """
    chunk = theirs.act(theirs.encode(seen), deterministic=False, generator=_seeded())
    context = ours.encode(seen)
    evaluation = ours.evaluate_actions(context, chunk.trace.to(ours.device))
    actions = ours.act(context, deterministic=False, generator=_seeded()).actions
    pairs = {
        "actions": (actions, chunk.actions),
        "log-probabilities": (evaluation.density.log_prob(), chunk.log_prob),
        "values": (evaluation.value, chunk.value),
    }
    if isinstance(evaluation.density, CategoricalDensity):
        del pairs["actions"]  # a rounding may choose the bin beside, and all after it others
    told: list[str] = []
    for name, (our, their) in pairs.items():
        gap, scale = float((our.cpu() - their.cpu()).abs().max()), float(their.abs().max())
        if not gap <= tolerance * max(scale, 1.0):
            raise SpecError(f"{name} differ by {gap:.2g}, where they are up to {scale:.2g}")
        told.append(f"{name} {gap:.1g}")
    return f"differences: {', '.join(told)}"


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
