"""Supervised pretraining of a policy on scripted demonstrations and grounding questions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval

from vla_crl.algos.supervised import SupervisedConfig, SupervisedLearner
from vla_crl.compute import ComputeConfig
from vla_crl.config import Count, Seed, Settings
from vla_crl.contracts import check_fits
from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.files import keep, write_atomically
from vla_crl.hardware import hardware_name
from vla_crl.models.checkpoint import build_policy, save_policy
from vla_crl.models.context import TokenizedObservation
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.token_heads import GROUNDING_TERMS, LOSS_TERMS, SupervisedBatch
from vla_crl.progress import console, track
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.demonstrations import (
    Demonstrations,
    PerturbationConfig,
    collect_demonstrations,
)
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.sim.backends import find_suite
from vla_crl.sim.simulation import NO_THING, Simulation
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

NUM_EVAL_ENVS = 128
"""Environments stepped together where success is measured."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """A pretraining recipe."""

    suite: str
    """Suite whose tasks, training and held-out, are demonstrated; also NAME@joint_position."""
    policy: str
    """Preset that gives the architecture; its weights start at random. Robot and things that it
    does not name are the suite's."""
    supervised: SupervisedConfig
    """Optimisation."""
    num_episodes: Count = 2000
    """Demonstrations of the scripted expert, spread evenly over the tasks."""
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    """Noise on the expert's executed actions."""
    variation: VariationConfig = field(default_factory=VariationConfig)
    """Domain randomisation of the demonstrations, in tasks without a variation of their own."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """Recorded demonstrations that are read instead of the expert's."""
    question_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Part of the samples that ask "where is the red cube" instead of commanding an action."""
    target_success: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Stop as soon as the mean success on training states reaches this; None: do all updates."""
    check_every: Count = 100
    """Updates between two looks at that success."""
    num_check_episodes: Count = 10
    """Training states a task that such a look takes."""
    num_eval_episodes: Count = 100
    """Test episodes a task for the checkpoint's card."""
    seed: Seed = 0
    """Seed of demonstrations, weights and batches."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Devices, precision and threads. Demonstrations are always recorded on the CPU."""


def pretrain(config: PretrainConfig, output: Path, *, recipe: str) -> dict[str, Any]:
    """Collect or read demonstrations, train the policy, evaluate it and write a checkpoint.

    Args:
        config: The recipe.
        output: Checkpoint directory, must not exist.
        recipe: The recipe with its flags, as on the command line, for the card.

    Returns:
        The card.

    Raises:
        ConfigError: `output` exists, or the recipe does not fit the suite or the policy.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; remove it or give another --output")
    config.compute.prepare()
    suite = find_suite(config.suite)
    torch.manual_seed(config.seed)
    policy = build_policy(
        config.policy,
        embodiment=suite.embodiment,
        things=suite.things,
        pictures=suite.pictures,
        device=config.compute.device,
        dtype=config.compute.dtype,
    )
    _check_before_work(config, policy, suite)
    sims = simulate_lanes(
        suite, NUM_EVAL_ENVS, image_size=policy.config.image_size, compute=config.compute
    )
    try:
        return _pretrain(config, policy, sims, output, recipe)
    finally:
        close_lanes(sims)


def _pretrain(
    config: PretrainConfig,
    policy: VLAPolicy,
    sims: Sequence[Simulation],
    output: Path,
    recipe: str,
) -> dict[str, Any]:
    suite, started = sims[0].suite, perf_counter()
    demonstrations = _demonstrations(config, suite, policy.config.image_size)
    policy.norm_stats.set(demonstrations.state, demonstrations.label)
    num_updates = train_supervised(policy, demonstrations, sims, config)
    trained = perf_counter()
    card = {
        "suite": suite.name,
        "episodes_per_task": config.num_eval_episodes,
        "demonstrations": len(demonstrations.episode_success),
        "dataset": config.dataset.path and Path(config.dataset.path).name,
        "samples": num_updates * config.supervised.batch_size,
        "wall_s": round(trained - started, 1),
        "num_parameters": sum(p.numel() for p in policy.parameters()),
        "seed": config.seed,
        "hardware": hardware_name(),
        "recipe": recipe,
    }
    # Before the evaluation, which may be interrupted.
    keep(output, lambda folder: save_policy(policy, folder, card))
    agent = PolicyAgent(policy, deterministic=True)
    rows = evaluate(agent, sims, num_episodes=config.num_eval_episodes)
    success = {row.task: row.successes / row.episodes for row in rows}
    card |= {
        "success_on_test_ids": success,
        "mean_success": float(np.mean(list(success.values()))),
    }
    save_policy(policy, output, card)
    write_atomically(output / "README.md", card_markdown(card))
    return card


def _demonstrations(config: PretrainConfig, suite: TaskSuite, pixels: int) -> Demonstrations:
    num_threads = config.compute.num_sim_threads
    if config.dataset.path:
        return read_demonstrations(config.dataset, suite, pixels=pixels, num_threads=num_threads)
    return collect_demonstrations(
        suite,
        config.num_episodes,
        seed=config.seed,
        perturbation=config.perturbation,
        variation=config.variation,
        image_size=pixels,
        num_threads=num_threads,
    )


def _check_before_work(config: PretrainConfig, policy: VLAPolicy, suite: TaskSuite) -> None:
    """Refuse what would fail only after the demonstrations or after the training."""
    check_fits(
        policy.embodiment, suite.embodiment, f"policy '{config.policy}' for suite '{suite.name}'"
    )
    policy.tokenizer.encode(_commands(suite) + _questions(suite))
    suite.require_states(num_eval_episodes=config.num_eval_episodes)
    if config.target_success is not None and config.num_check_episodes > len(suite.train_ids):
        raise ConfigError(
            f"num_check_episodes is {config.num_check_episodes}, but suite '{suite.name}' has "
            f"{len(suite.train_ids)} training states"
        )
    for term in config.supervised.loss_weights:
        if term not in LOSS_TERMS:
            raise unknown_name("supervised.loss_weights", "loss term", term, LOSS_TERMS)
    known = policy.config.things
    if left_out := [thing for thing in suite.things if thing not in known]:
        console.print(
            f"policy '{config.policy}' knows other things: without grounding labels remain "
            f"{', '.join(left_out)}",
            soft_wrap=True,
        )


def card_markdown(card: Mapping[str, Any]) -> str:
    """Tell in words what the card of a checkpoint says."""
    success = card["success_on_test_ids"]
    rows = [f"| `{task}` | {100 * rate:.0f} % |" for task, rate in success.items()]
    sources = dict.fromkeys(task.rpartition(".")[0] for task in success)
    for source in sources if len(sources) > 1 else ():
        rates = [rate for task, rate in success.items() if task.rpartition(".")[0] == source]
        rows.append(f"| all of `{source}` | {100 * np.mean(rates):.0f} % |")
    read = card.get("dataset")
    origin = f"demonstrations of `{read}`" if read else "perturbed scripted demonstrations"
    lines = [
        f"# Base policy for `{card['suite']}`",
        "",
        f"{card['num_parameters']:,} parameters, trained on {card['samples']:,} samples of "
        f"{card['demonstrations']:,} {origin} "
        f"(together {card['wall_s'] / 60:.0f} minutes on {card['hardware']}).",
        "",
        f"Success on the first {card['episodes_per_task']} test states of each task, deterministic "
        f"actions; {100 * card['mean_success']:.0f} % on average:",
        "",
        "| task | success |",
        "| --- | --- |",
        *rows,
        "",
        f"Made by `vla-crl pretrain {card['recipe']}`, which writes this page too.",
        "",
    ]
    return "\n".join(lines)


def train_supervised(
    policy: VLAPolicy,
    demonstrations: Demonstrations,
    sims: Sequence[Simulation],
    config: PretrainConfig,
) -> int:
    """Run the updates of the recipe, printing the mean losses twenty times.

    Args:
        policy: To be trained.
        demonstrations: What it learns from.
        sims: Where its success is measured, if the recipe has a `target_success`.
        config: The recipe.

    Returns:
        The number of updates; fewer than the recipe's where `target_success` was reached.
    """
    settings = config.supervised
    learner = SupervisedLearner(policy, settings)
    sampler = BatchSampler(policy, demonstrations, sims[0].suite, config)
    generator = torch.Generator().manual_seed(config.seed)
    terms, sums = _terms(demonstrations, settings), defaultdict[str, Any](float)
    report_every, update = max(settings.num_updates // 20, 1), 0
    policy.train()
    with track("pretraining", settings.num_updates) as progress:
        for update in range(1, settings.num_updates + 1):
            batch = sampler.draw().to(policy.device)
            losses = policy.losses(batch, terms=terms, generator=generator)
            learner.update(losses)
            for name, loss in losses.items():
                sums[name] += loss.detach()  # a number only when told: a device need not wait
            progress.advance(1)
            if update % report_every == 0:
                means = "  ".join(
                    f"{name} {float(sums[name]) / report_every:.4f}" for name in sorted(sums)
                )
                progress.print(
                    f"update {update:6d}  samples {update * settings.batch_size:7d}  {means}"
                )
                sums.clear()
            if config.target_success and update % config.check_every == 0:
                success = _success_on_training_states(policy, sims, config)
                progress.print(f"update {update:6d}  success on training states {success:.2f}")
                if success >= config.target_success:
                    break
    policy.eval()
    return update


def _terms(demonstrations: Demonstrations, settings: SupervisedConfig) -> frozenset[str]:
    """Return the losses for which the demonstrations have labels."""
    terms = frozenset(settings.loss_weights)
    if demonstrations.has_grounding.any() or not terms & GROUNDING_TERMS:
        return terms
    left_out = ", ".join(sorted(terms & GROUNDING_TERMS))
    if terms <= GROUNDING_TERMS:
        raise ConfigError(
            f"supervised.loss_weights names {left_out}, but the demonstrations do not say where "
            "things are; name flow or action_tokens"
        )
    console.print(
        "the demonstrations do not say where things are: no questions are asked, and left out are "
        f"the losses {left_out}",
        soft_wrap=True,
    )
    return terms - GROUNDING_TERMS


def _success_on_training_states(
    policy: VLAPolicy, sims: Sequence[Simulation], config: PretrainConfig
) -> float:
    policy.eval()
    agent = PolicyAgent(policy, deterministic=True)
    rows = evaluate(agent, sims, num_episodes=config.num_check_episodes, states="train")
    policy.train()
    return sum(row.successes for row in rows) / sum(row.episodes for row in rows)


def _commands(suite: TaskSuite) -> list[str]:
    return [task.instruction for task in suite.tasks]


def _questions(suite: TaskSuite) -> list[str]:
    return [f"where is the {thing}" for thing in suite.things]


class BatchSampler:
    """Draws mixed batches of commands and questions from demonstrations."""

    def __init__(
        self,
        policy: VLAPolicy,
        demonstrations: Demonstrations,
        suite: TaskSuite,
        config: PretrainConfig,
    ) -> None:
        """Tokenise all sentences once, and look up the policy's things among the suite's."""
        self._data = demonstrations
        self._config = config
        self._rng = np.random.default_rng(config.seed)
        self._horizon = policy.config.action_horizon
        self._num_commands = len(_commands(suite))
        # A thing that the suite does not have is not there.
        self._columns = [
            suite.things.index(thing) if thing in suite.things else NO_THING
            for thing in policy.config.things
        ]
        self._token_ids, self._word_mask = policy.tokenizer.encode(
            _commands(suite) + _questions(suite)
        )

    def draw(self) -> SupervisedBatch:
        """Return the next batch, on the CPU."""
        data, rng = self._data, self._rng
        num = self._config.supervised.batch_size
        steps = rng.integers(len(data), size=num)
        has_grounding = data.has_grounding[steps]
        is_question = (rng.random(num) < self._config.question_fraction) & has_grounding
        is_there = data.object_visible[steps].any(axis=1)  # [B, things]
        draws = np.pad(rng.random(is_there.shape) * is_there, ((0, 0), (0, 1)))
        asked = np.argmax(draws, axis=1)  # padded: there may be no thing to choose from
        question = np.stack([asked, np.full(num, NO_THING)], axis=1)
        named = np.where(is_question[:, None], question, data.named[steps])
        sentence = torch.from_numpy(
            np.where(is_question, self._num_commands + asked, data.task[steps])
        )
        chunk = steps[:, None] + np.arange(self._horizon)
        end = data.episode_end[steps][:, None]
        rows = np.arange(num)[:, None]
        # One more column, the last, for NO_THING: it is never visible.
        uv = np.pad(data.object_uv[steps], ((0, 0), (0, 0), (0, 1), (0, 0)))
        visible = np.pad(data.object_visible[steps], ((0, 0), (0, 0), (0, 1)))
        return SupervisedBatch(
            observation=TokenizedObservation(
                images=torch.from_numpy(data.images[steps]),
                state=torch.from_numpy(data.state[steps]),
                token_ids=self._token_ids[sentence],
                word_mask=self._word_mask[sentence],
            ),
            action_chunk=torch.from_numpy(data.label[np.minimum(chunk, end - 1)]),
            action_mask=torch.from_numpy(chunk < end),
            has_action=torch.from_numpy(~is_question),
            named_uv=torch.from_numpy(uv[rows, :, named]),
            named_visible=torch.from_numpy(visible[rows, :, named]),
            object_uv=torch.from_numpy(uv[:, :, self._columns]),
            object_visible=torch.from_numpy(visible[:, :, self._columns]),
            has_grounding=torch.from_numpy(has_grounding),
        )
