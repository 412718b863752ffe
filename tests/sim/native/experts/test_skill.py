import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_crl.sim.native.experts.skill import (
    FUNNEL_TIP_M,
    FUNNEL_WIDTH_M,
    TOO_LOW_M,
    ramp,
    through_funnel,
)

TRAVEL_M = 0.1
GOAL = np.array([[0.02, -0.05, 0.01]])
coordinate = st.floats(-0.2, 0.2)
positions = st.tuples(coordinate, coordinate, st.floats(0.0, 0.2))


def target_of(*grip: float) -> np.ndarray:
    return through_funnel(np.array([grip]), GOAL, TRAVEL_M)[0]


def test_a_ramp_is_clipped_and_linear_between():
    assert ramp(np.array([0.0, 1.0, 2.0, 4.0]), 1.0, 3.0).tolist() == [0.0, 0.0, 0.5, 1.0]


def test_over_the_goal_the_grip_descends():
    x, y, _ = GOAL[0]
    assert np.allclose(target_of(x + 0.9 * FUNNEL_TIP_M, y, TRAVEL_M), GOAL[0])


def test_far_aside_it_travels_high():
    assert np.allclose(target_of(-0.1, 0.1, TRAVEL_M), [*GOAL[0, :2], TRAVEL_M])


def test_far_aside_and_low_it_only_rises():
    assert np.allclose(target_of(-0.1, 0.1, TRAVEL_M - TOO_LOW_M), [-0.1, 0.1, TRAVEL_M])


def test_half_way_up_the_funnel_it_is_half_as_high():
    x, y, z = GOAL[0]
    aside = FUNNEL_TIP_M + 0.5 * FUNNEL_WIDTH_M
    assert np.isclose(target_of(x + aside, y, TRAVEL_M)[2], z + 0.5 * (TRAVEL_M - z))


@given(positions, st.tuples(*3 * [st.floats(-1e-3, 1e-3)]))
def test_nearby_grips_get_nearby_targets(grip: tuple[float, ...], step: tuple[float, ...]):
    one, other = target_of(*grip), target_of(*np.add(grip, step))
    # d height / d aside = 0.09 / 0.025; d across / d height = 1 / TOO_LOW_M, over at most 0.4 m.
    steepest = (TRAVEL_M - GOAL[0, 2]) / FUNNEL_WIDTH_M
    limit = 1.0 + steepest + (1.0 + steepest) / TOO_LOW_M * 0.4
    assert np.linalg.norm(one - other) <= limit * np.linalg.norm(step) + 1e-12
