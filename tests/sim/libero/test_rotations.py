"""The published convention of the hand's rotation, by hand."""

import numpy as np
import pytest

from vla_crl.sim.libero.rotations import published_axis_angle

HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("quat_wxyz", "expected"),
    [
        ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((-1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),  # sin 0: nothing to divide by
        ((HALF, HALF, 0.0, 0.0), (np.pi / 2, 0.0, 0.0)),  # 2 acos(0.7071) = 90 degrees about x
        ((0.0, 1.0, 0.0, 0.0), (np.pi, 0.0, 0.0)),  # half a turn: the hand points down
        ((0.0, -1.0, 0.0, 0.0), (-np.pi, 0.0, 0.0)),  # the same rotation, by the other quaternion
        ((-HALF, 0.0, HALF, 0.0), (0.0, 3 * np.pi / 2, 0.0)),  # w < 0: 270 degrees, not -90
    ],
)
def test_golden_vectors(quat_wxyz, expected):
    found = published_axis_angle(np.array([quat_wxyz]))
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_across_the_antipode_the_vector_changes_smoothly():
    angles = np.linspace(np.pi - 0.1, np.pi + 0.1, 21)
    quats = np.stack([np.cos(angles / 2), np.sin(angles / 2), 0 * angles, 0 * angles], axis=1)
    found = published_axis_angle(quats)
    np.testing.assert_allclose(found[:, 0], angles, atol=1e-12)  # the shortest would jump to -pi


def test_it_is_robosuites_own_formula():
    transforms = pytest.importorskip("robosuite.utils.transform_utils")
    quats = np.random.default_rng(0).normal(size=(50, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    expected = [transforms.quat2axisangle(quat[[1, 2, 3, 0]]) for quat in quats]
    np.testing.assert_allclose(published_axis_angle(quats), expected, atol=1e-12)
