"""Native LIBERO beside the original: the same positions, the same ends, the same goals."""

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.verify import NUM_STEPS, compare, table, verify
from vla_crl.sim.verification import MAX_DIFFERENCE


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
    assert not row.agrees


def test_more_tasks_than_there_are_cannot_be_verified(libero_cache):
    with pytest.raises(ConfigError, match="verify libero: 131 tasks, expected 1 to 130"):
        verify(131)
