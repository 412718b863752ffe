"""Native LIBERO beside the original: the same positions, the same ends, the same goals."""

import numpy as np
import pytest

from vla_crl.sim.libero.verify import MAX_DIFFERENCE, NUM_STEPS, verify


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
    (row,) = verify(read_small(name), [task], seed=1)
    assert row.max_abs_dqpos <= MAX_DIFFERENCE
    assert row.max_abs_dstate <= MAX_DIFFERENCE
    assert (row.terms_equal, row.done_equal) == (row.terms, row.steps)
    assert row.steps == NUM_STEPS
    assert 0.05 * row.terms < row.terms_true < row.terms  # both answers were asked for
    assert row.is_equal


@pytest.mark.slow
def test_a_difference_is_found(read_small, monkeypatch):
    from vla_crl.sim.libero import libero_sim

    class Lazy(libero_sim.LiberoSim):
        def step_chunk(self, actions, slots=None):
            return super().step_chunk(0.999 * np.asarray(actions), slots)

    monkeypatch.setattr("vla_crl.sim.libero.verify.LiberoSim", Lazy)
    (row,) = verify(read_small("libero_goal"), [7])
    assert row.max_abs_dqpos > 1e-6
    assert not row.is_equal
