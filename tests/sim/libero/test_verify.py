"""Native LIBERO beside the original: the same positions, the same ends, the same goals."""

from dataclasses import replace

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.verify import NUM_STEPS, Row, compare, table, verify
from vla_crl.sim.verification import MAX_DIFFERENCE

ROW = Row(
    suite="libero_goal", task="turn_on_the_stove", max_abs_dqpos=1e-15, max_abs_dobserved=2e-15,
    num_steps=20, num_same_end=20, num_terms=40, num_true=13, num_agreed=40, state_id=3,
    num_replayed=71, done_step=71, original_done_step=71, episode_dqpos=3e-8, last_dqpos=1e-8,
    nudged_dqpos=4e-8,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("libero_spatial", 4),  # a drawer that is open at first; a bowl in it
        ("libero_goal", 7),  # a knob that is turned on
        ("libero_10", 3),  # in a drawer, and close it
        ("libero_object_swap", 0),
    ],
)
def test_a_task_is_equal_to_the_original(read_small, name, task):
    row = compare(read_small(name), task, seed=1)
    assert max(row.max_abs_dqpos, row.max_abs_dobserved) <= MAX_DIFFERENCE
    assert (row.num_agreed, row.num_same_end) == (row.num_terms, row.num_steps)
    assert row.num_steps == NUM_STEPS
    assert 0.05 * row.num_terms < row.num_true < row.num_terms  # both answers were asked for
    assert row.done_step == row.original_done_step == row.num_replayed  # the expert solves it
    assert 0.0 < row.last_dqpos <= row.episode_dqpos
    assert row.agrees
    assert f"| `{row.task}` |" in table([row])


@pytest.mark.slow
def test_a_difference_is_found(read_small, monkeypatch):
    from vla_crl.sim.libero import libero_sim

    class Lazy(libero_sim.LiberoSim):
        def step_chunk(self, actions, slots=None):
            return super().step_chunk(0.999 * np.asarray(actions), slots)

    monkeypatch.setattr("vla_crl.sim.libero.verify.LiberoSim", Lazy)
    row = compare(read_small("libero_goal"), 7, seed=0)
    assert row.max_abs_dqpos > 1e-6
    assert row.episode_dqpos > 100 * row.nudged_dqpos
    assert not row.agrees


@pytest.mark.parametrize(
    ("ours", "theirs", "agrees", "shown"),
    [
        (71, 71, True, "71 = 71"),
        (None, None, True, "none = none"),
        (71, 70, False, "71 != 70"),
        (71, None, False, "71 != none"),
        (None, 70, False, "none != 70"),
    ],
)
def test_a_scripted_episode_is_done_in_the_same_step_or_never(ours, theirs, agrees, shown):
    row = replace(ROW, done_step=ours, original_done_step=theirs)
    assert row.agrees == agrees
    header, _, line = table([row]).splitlines()
    assert f"| 40 of 40 | 13 | {shown} | 71 | 3.0e-08 | 1.0e-08 | 4.0e-08 |" in line
    assert header.count("|") == line.count("|")


def test_how_far_positions_stray_in_a_scripted_episode_is_told_not_judged():
    assert replace(ROW, episode_dqpos=0.1).agrees
    assert not replace(ROW, max_abs_dqpos=0.1).agrees


def test_more_tasks_than_there_are_cannot_be_verified(libero_cache):
    with pytest.raises(ConfigError, match="verify libero: 131 tasks, expected 1 to 130"):
        verify(131)
