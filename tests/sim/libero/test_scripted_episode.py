"""A scripted episode of native LIBERO, and what it is when its actions are played again."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.protocols import PROTOCOLS, Protocol
from vla_crl.sim.libero.scripted_episode import (
    Replay,
    ScriptedEpisode,
    play_expert,
    replay_in_original,
    replay_nudged,
)

NAME, TASK = "libero_goal", 7  # a knob that is turned on
TOO_SHORT = 3


class Original:
    """Stands still; done after a number of steps."""

    def __init__(self, qpos: np.ndarray, done_step: int) -> None:
        self.env, self.begun = self, []
        self.sim = SimpleNamespace(data=SimpleNamespace(qpos=qpos))
        self._qpos, self._left = qpos, done_step

    def begin(self, state_id: int, protocol: Protocol) -> None:
        self.begun.append((state_id, protocol))

    def step(self, action: np.ndarray) -> tuple[None, None, bool, None]:
        self._left -= 1
        return None, None, self._left == 0, None


@pytest.fixture
def episode() -> ScriptedEpisode:
    """Four steps, after which one joint of two is at 1, 2, 3 and 4 rad."""
    qpos = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
    return ScriptedEpisode(TASK, 5, np.zeros((4, 7)), qpos, done_step=4)


def replayed(episode: ScriptedEpisode, done_step: int) -> tuple[Original, Replay]:
    original = Original(np.array([0.0, 0.5]), done_step)
    return original, replay_in_original(episode, cast(OriginalTask, original), PROTOCOLS["own"])


def test_the_original_plays_the_actions_from_the_same_state(episode: ScriptedEpisode):
    original, replay = replayed(episode, done_step=4)
    assert original.begun == [(5, PROTOCOLS["own"])]
    assert replay.done_step == 4
    assert replay.dqpos.tolist() == [0.5, 1.5, 2.5, 3.5]


def test_an_original_that_is_done_earlier_is_stopped_there(episode: ScriptedEpisode):
    _, replay = replayed(episode, done_step=2)
    assert replay.done_step == 2
    assert replay.dqpos.tolist() == [0.5, 1.5]


def test_an_original_that_is_not_done_with_these_actions_has_no_step(episode: ScriptedEpisode):
    _, replay = replayed(episode, done_step=5)
    assert replay.done_step is None
    assert len(replay.dqpos) == 4


@pytest.mark.slow
def test_the_experts_episode_is_kept_and_a_nudge_hardly_changes_it(read_small, new_sim):
    sim = new_sim(read_small(NAME), 1, tasks=[TASK])
    episode = play_expert(sim, TASK, [3, 4])
    assert (episode.task, episode.state_id) == (TASK, 3)
    assert episode.done_step == len(episode.actions) == len(episode.qpos)
    assert episode.qpos.shape[1] == sim.baked(TASK).physics.nq
    replay = replay_nudged(episode, sim, np.random.default_rng(0))
    assert replay.done_step == episode.done_step
    assert len(replay.dqpos) == len(episode.qpos)
    assert 0.0 < replay.dqpos[0] < 1e-12


@pytest.mark.slow
def test_of_episodes_that_fail_the_first_is_kept_to_its_horizon(read_small, new_sim):
    suite = read_small(NAME)
    tasks = tuple(replace(task, horizon=TOO_SHORT) for task in suite.tasks)
    sim = new_sim(replace(suite, tasks=tasks), 1, tasks=[TASK])
    episode = play_expert(sim, TASK, [6, 7])
    assert (episode.state_id, episode.done_step) == (6, None)
    assert len(episode.actions) == TOO_SHORT
    assert replay_nudged(episode, sim, np.random.default_rng(0)).done_step is None
