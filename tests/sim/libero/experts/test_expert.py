"""The expert solves LIBERO's tasks, and tells what it is at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_crl.sim.backends import expert_of
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.simulation import NO_THING

pytestmark = pytest.mark.slow  # each bakes a task


def _play(sim: Any, task: int, states: list[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which episodes succeed [B], and what was named in the end [2]."""
    slots, expert = np.arange(len(states)), expert_of(sim)
    sim.reset(slots, tasks=np.full(len(states), task), state_ids=states)
    success, running = np.zeros(len(states), bool), slots
    named = expert.named(slots)[0]
    for _ in range(steps):
        named = expert.named(running)[0]
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
        if not len(running):
            break
    return success, named


CASES = [
    ("libero_object", "pick_up_the_alphabet_soup_and_place_it_in_the_basket", 120),
    ("libero_goal", "open_the_top_drawer_and_put_the_bowl_inside", 300),
    ("libero_goal", "turn_on_the_stove", 120),
]


@pytest.mark.parametrize(("name", "task", "steps"), CASES)
def test_it_picks_opens_and_turns(
    read_small: Callable[[str], LiberoSuite],
    new_sim: Callable[..., Any],
    name: str,
    task: str,
    steps: int,
) -> None:
    suite = read_small(name)
    index, states = suite.task_index(task), [*suite.train_ids[:1], *suite.test_ids[:1]]
    success, named = _play(new_sim(suite, 2), index, states, steps)
    assert success.all()
    assert named[0] != NO_THING
    thing = suite.things[named[0]]
    assert {"stove": "stove", "soup": "soup"}.get(thing.split()[-1], "bowl") in thing
    if "stove" in task:
        assert named[1] == NO_THING
    else:
        assert suite.things[named[1]].split()[-1] in ("basket", "cabinet")
