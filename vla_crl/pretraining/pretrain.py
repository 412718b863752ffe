"""Supervised pretraining of a policy on demonstrations and grounding questions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from vla_crl.algos.supervised import SupervisedConfig, SupervisedLearner
from vla_crl.catalog import list_policies, policy_path
from vla_crl.contracts import check_fits
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.files.writing import keep, write_atomically
from vla_crl.hardware import hardware_name
from vla_crl.models.checkpoint import build_policy, load_policy, save_policy
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.token_heads import GROUNDING_TERMS, LOSS_TERMS
from vla_crl.models.vocabulary import make_readable
from vla_crl.models.weights import weights_fingerprint
from vla_crl.pretraining.batches import BatchSampler, questions
from vla_crl.pretraining.card import card_markdown
from vla_crl.pretraining.recipe import EXPERT, PretrainConfig
from vla_crl.progress import console, track
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.demonstrations import Demonstrations, collect_demonstrations
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.sim.backends import find_suite
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite

NUM_EVAL_ENVS = 128
"""Environments stepped together where success is measured."""
FAR_STD = 20.0
"""Standard deviations from the mean beyond which a state is unlike those of a checkpoint."""


def pretrain(config: PretrainConfig, output: Path, *, recipe: str) -> dict[str, Any]:
    """Collect or read demonstrations, train the policy, evaluate it and write a checkpoint.

    Args:
        config: The recipe.
        output: Checkpoint directory, must not exist.
        recipe: The recipe with its flags, as on the command line, for the card.

    Returns:
        The card.

    Raises:
        CheckpointError: The checkpoint to go on from is damaged, or holds adapters.
        ConfigError: `output` exists, or the recipe does not fit the suite, the policy or the data.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; remove it or give another --output")
    config.compute.prepare()
    suite = find_suite(config.suite)
    torch.manual_seed(config.seed)
    policy, origin = _begin(config, suite)
    _check_before_work(config, policy, suite)
    started = perf_counter()
    recorded = _read(config, suite, policy.config.image_size)
    card = {"suite": suite.name, **origin, "new_words": _make_readable(policy, suite, recorded)}
    reading_s = perf_counter() - started
    sims = simulate_lanes(
        suite, NUM_EVAL_ENVS, image_size=policy.config.image_size, compute=config.compute
    )
    try:
        started = perf_counter() - reading_s  # worlds are not a part of what it takes
        data = _complete(config, suite, policy.config.image_size, recorded)
        num_updates = _train(config, policy, data, sims)
        card |= {
            "demonstrations": {name: found.num_episodes for name, found in data.items()},
            "data_weights": list(config.data_weights),
            "samples": num_updates * config.supervised.batch_size,
            "wall_s": round(perf_counter() - started, 1),
            "num_parameters": sum(p.numel() for p in policy.parameters()),
            "seed": config.seed,
            "hardware": hardware_name(),
            "recipe": recipe,
            "episodes_per_task": config.num_eval_episodes,
        }
        # Before the evaluation, which may be interrupted.
        keep(output, lambda folder: save_policy(policy, folder, card))
        rows = evaluate(
            PolicyAgent(policy, deterministic=True), sims, num_episodes=config.num_eval_episodes
        )
    finally:
        close_lanes(sims)
    success = {row.task: row.successes / row.episodes for row in rows}
    card |= {
        "success_on_test_ids": success,
        "mean_success": float(np.mean(list(success.values()))),
    }
    save_policy(policy, output, card)
    write_atomically(output / "README.md", card_markdown(card))
    return card


def _begin(config: PretrainConfig, suite: TaskSuite) -> tuple[VLAPolicy, dict[str, Any]]:
    """Return the policy as it begins, and what its card says of that."""
    on = config.compute
    if _goes_on(config):
        policy = load_policy(config.policy, device=on.device, dtype=on.dtype, is_trained=True)
        policy.config = replace(policy.config, pictures=suite.pictures)
        weights = weights_fingerprint(policy)
        console.print(f"goes on from '{config.policy}' (weights {weights})", soft_wrap=True)
        norm_stats = "data" if config.renormalize else "checkpoint"
        return policy, _origin(config, weights, norm_stats)
    if config.renormalize:
        raise ConfigError(
            f"renormalize is for going on from a checkpoint, but policy '{config.policy}' is a "
            "preset, whose statistics are always those of data; leave it out"
        )
    policy = build_policy(
        config.policy,
        embodiment=suite.embodiment,
        things=suite.things,
        pictures=suite.pictures,
        device=on.device,
        dtype=on.dtype,
    )
    if (folder := policy_path(config.policy).with_suffix("")).is_dir():
        console.print(
            f"policy '{config.policy}' begins with random weights; to go on from those that it "
            f"has, name their folder: --policy {folder}",
            soft_wrap=True,
        )
    return policy, _origin(config, "random", "data")


def _goes_on(config: PretrainConfig) -> bool:
    return config.policy not in list_policies() and Path(config.policy).is_dir()


def _origin(config: PretrainConfig, weights: str, norm_stats: str) -> dict[str, str]:
    return {"policy": config.policy, "initial_weights": weights, "norm_stats": norm_stats}


def _read(config: PretrainConfig, suite: TaskSuite, pixels: int) -> dict[str, Demonstrations]:
    """Read what is recorded already."""
    num_threads = config.compute.num_sim_threads
    return {
        name: read_demonstrations(
            Path(name), config.dataset, suite, pixels=pixels, num_threads=num_threads
        )
        for name in config.data
        if name != EXPERT
    }


def _complete(
    config: PretrainConfig, suite: TaskSuite, pixels: int, recorded: dict[str, Demonstrations]
) -> dict[str, Demonstrations]:
    """Return all of `data` in its order: what is recorded, and what the expert does now."""
    if EXPERT in config.data:
        recorded[EXPERT] = collect_demonstrations(
            suite,
            config.num_episodes,
            seed=config.seed,
            perturbation=config.perturbation,
            variation=config.variation,
            image_size=pixels,
            num_threads=config.compute.num_sim_threads,
        )
    return {name: recorded[name] for name in config.data}


def _make_readable(
    policy: VLAPolicy, suite: TaskSuite, recorded: Mapping[str, Demonstrations]
) -> list[str]:
    """Let the policy read all that is said; return the words that are new to it."""
    said = [task.instruction for task in suite.tasks] + questions(suite.things)
    for demonstrations in recorded.values():
        said += [*demonstrations.instructions, *questions(demonstrations.things)]
    things = dict.fromkeys([*suite.things, *(t for d in recorded.values() for t in d.things)])
    if left_out := [thing for thing in things if thing not in policy.config.things]:
        console.print(
            f"the policy knows other things: without grounding labels remain {', '.join(left_out)}",
            soft_wrap=True,
        )
    max_words = policy.config.max_words
    words = make_readable(policy, said)
    if words:
        console.print(f"new words of the policy: {', '.join(words)}", soft_wrap=True)
    if policy.config.max_words > max_words:
        console.print(
            f"the longest sentence of the policy has {policy.config.max_words} words now instead "
            f"of {max_words}"
        )
    return list(words)


def _train(
    config: PretrainConfig,
    policy: VLAPolicy,
    data: Mapping[str, Demonstrations],
    sims: Sequence[Simulation],
) -> int:
    """Normalise and train; return the number of updates."""
    states = np.concatenate([found.state for found in data.values()])
    actions = np.concatenate([found.label for found in data.values()])
    if config.renormalize or not _goes_on(config):
        policy.norm_stats.set(states, actions)
    else:
        _tell_unusual(policy, states)
    return train_supervised(policy, list(data.values()), sims, config)


def _tell_unusual(policy: VLAPolicy, states: np.ndarray) -> None:
    """Tell of states that the statistics of a checkpoint make very large."""
    stats = policy.norm_stats
    mean, std = stats.state_mean.cpu().numpy(), stats.state_std.cpu().numpy()
    distance = np.abs((states - mean) / std).max(axis=0)
    far = [
        f"{name} ({number:.0f})"
        for name, number in zip(policy.embodiment.state, distance, strict=True)
        if number > FAR_STD
    ]
    if far:
        console.print(
            "beyond what the checkpoint was normalised for, by so many standard deviations, are "
            f"{', '.join(far)}; --renormalize takes new statistics",
            soft_wrap=True,
        )


def _check_before_work(config: PretrainConfig, policy: VLAPolicy, suite: TaskSuite) -> None:
    """Refuse what would fail only after the demonstrations or after the training."""
    check_fits(
        policy.embodiment, suite.embodiment, f"policy '{config.policy}' for suite '{suite.name}'"
    )
    suite.require_states(num_eval_episodes=config.num_eval_episodes)
    if config.target_success is not None and config.num_check_episodes > len(suite.train_ids):
        raise ConfigError(
            f"num_check_episodes is {config.num_check_episodes}, but suite '{suite.name}' has "
            f"{len(suite.train_ids)} training states"
        )
    for term in config.supervised.loss_weights:
        if term not in LOSS_TERMS:
            raise unknown_name("supervised.loss_weights", "loss term", term, LOSS_TERMS)


def train_supervised(
    policy: VLAPolicy,
    demonstrations: Sequence[Demonstrations],
    sims: Sequence[Simulation],
    config: PretrainConfig,
) -> int:
    """Run the updates of the recipe, printing the mean losses twenty times.

    Args:
        policy: To be trained.
        demonstrations: What it learns from, mixed as the recipe's `data_weights` say.
        sims: Where its success is measured, if the recipe has a `target_success`.
        config: The recipe.

    Returns:
        The number of updates; fewer than the recipe's where `target_success` was reached.
    """
    settings = config.supervised
    learner = SupervisedLearner(policy, settings)
    sampler = BatchSampler(
        policy,
        demonstrations,
        batch_size=settings.batch_size,
        question_fraction=config.question_fraction,
        weights=config.data_weights,
        seed=config.seed,
    )
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


def _terms(demonstrations: Sequence[Demonstrations], settings: SupervisedConfig) -> frozenset[str]:
    """Return the losses for which the demonstrations have labels."""
    terms = frozenset(settings.loss_weights)
    if any(found.has_grounding.any() for found in demonstrations) or not terms & GROUNDING_TERMS:
        return terms
    left_out = ", ".join(sorted(terms & GROUNDING_TERMS))
    if terms <= GROUNDING_TERMS:
        raise ConfigError(
            f"supervised.loss_weights names {left_out}, but the demonstrations do not say where "
            "things are; name imitation or action_tokens"
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
