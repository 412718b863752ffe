"""An episode of the scripted expert, and its actions once more: in original LIBERO, and here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from vla_crl.sim.libero.experts import LiberoExpert
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.protocols import Protocol

NUDGE = 1e-15
"""Relative change of joint positions that is no more than a rounding or two."""


@dataclass(frozen=True, eq=False)
class ScriptedEpisode:
    """An episode as the expert has played it in native LIBERO.

    Attributes:
        task: Its index in the suite.
        state_id: Which of the official initial states it began from.
        actions: [T, 7] what was executed.
        qpos: [T, nq] joint positions (m, rad) after each action.
        done_step: T if it succeeded, None if it did not within the horizon.
    """

    task: int
    state_id: int
    actions: np.ndarray
    qpos: np.ndarray
    done_step: int | None


@dataclass(frozen=True, eq=False)
class Replay:
    """The actions of an episode once more.

    Attributes:
        dqpos: [R] greatest difference of a joint position (m, rad) from the episode after each of
            its actions, up to the one that ends this replay.
        done_step: R if it succeeded, None if it did not with these actions.
    """

    dqpos: np.ndarray
    done_step: int | None


def play_expert(sim: LiberoSim, task: int, state_ids: Sequence[int]) -> ScriptedEpisode:
    """Let the expert play in slot 0, from one official initial state after another.

    Every task has an expert that acts: a goal that it does not reach ends at the horizon.

    Args:
        sim: Where.
        task: Its index in the suite.
        state_ids: Of the official initial states.

    Returns:
        The first episode that succeeds, or else that from the first state.
    """
    episodes = []
    for state_id in state_ids:
        expert, slots = LiberoExpert(sim), np.array([0])
        _begin(sim, task, state_id)
        actions, qpos, done_step = _run(sim, (expert.act(slots)[0] for _ in repeat(None)))
        episodes.append(ScriptedEpisode(task, state_id, actions, qpos, done_step))
        if done_step is not None:
            return episodes[-1]
    return episodes[0]


def replay_in_original(
    episode: ScriptedEpisode, original: OriginalTask, protocol: Protocol
) -> Replay:
    """Play an episode's actions in original LIBERO, from the same state.

    Args:
        episode: What was played in native LIBERO.
        original: Its task.
        protocol: How the episode was begun.
    """
    original.begin(episode.state_id, protocol)
    dqpos: list[float] = []
    for action, qpos in zip(episode.actions, episode.qpos, strict=True):
        done = original.env.step(action)[2]
        dqpos.append(np.abs(original.env.sim.data.qpos - qpos).max())
        if done:
            return Replay(np.array(dqpos), len(dqpos))
    return Replay(np.array(dqpos), None)


def replay_nudged(episode: ScriptedEpisode, sim: LiberoSim, rng: np.random.Generator) -> Replay:
    """Play an episode's actions where it was played, from joint positions that are a `NUDGE` off.

    Contacts let this grow: two simulations that differ in roundings come as far apart.

    Args:
        episode: What was played in `sim`.
        sim: Its slot 0 is used.
        rng: Of the nudge.
    """
    _begin(sim, episode.task, episode.state_id)
    states, nq = sim.get_states(), episode.qpos.shape[1]
    states["physics"][0, 1 : 1 + nq] *= 1.0 + NUDGE * rng.normal(size=nq)
    sim.set_states(states)
    _, qpos, done_step = _run(sim, episode.actions)
    return Replay(np.abs(qpos - episode.qpos[: len(qpos)]).max(axis=1), done_step)


def _begin(sim: LiberoSim, task: int, state_id: int) -> None:
    sim.reset([0], tasks=[task], state_ids=[sim.suite.test_ids[state_id]])


def _run(
    sim: LiberoSim, actions: Iterable[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Act in slot 0 until the episode ends; return actions [T, 7], qpos [T, nq] and done step."""
    nq, taken, qpos, done_step = sim.baked_in(0).physics.nq, [], [], None
    for action in actions:
        result = sim.step_chunk(action[None, None])
        taken.append(action)
        qpos.append(sim.slots.physics[0, 1 : 1 + nq].copy())
        if result.success[0]:
            done_step = len(taken)
        if result.terminated[0] or result.truncated[0]:
            break
    return np.array(taken), np.array(qpos), done_step
