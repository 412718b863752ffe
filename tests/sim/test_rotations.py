import mujoco
import numpy as np
import pytest

from vla_crl.sim.native.kernel.kinematics import rotation_about
from vla_crl.sim.native.layout import GRIP_DOWN
from vla_crl.sim.rotations import axis_angle_from_matrix


def matrix_of(axis_angle: np.ndarray) -> np.ndarray:
    matrix = np.empty((3, 3))
    rotation_about(np.asarray(axis_angle, dtype=np.float64), matrix)
    return matrix


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(3), [0.0, 0.0, 0.0]),
        (np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), [0.0, 0.0, np.pi / 2]),
        (np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), np.full(3, 2 * np.pi / 3 / np.sqrt(3))),
        (GRIP_DOWN, [np.pi, 0.0, 0.0]),
        (np.diag([-1.0, 1, -1]), [0.0, np.pi, 0.0]),
        (np.diag([-1.0, -1, 1]), [0.0, 0.0, np.pi]),
    ],
)
def test_known_rotations_give_known_vectors(matrix: np.ndarray, expected: list[float]):
    assert np.allclose(axis_angle_from_matrix(matrix), expected, atol=1e-12)


def test_the_vector_describes_the_same_rotation_as_mujocos_quaternion():
    rng, matrix, velocity = np.random.default_rng(0), np.empty(9), np.empty(3)
    quats = rng.normal(size=(200, 4))
    for quat in quats / np.linalg.norm(quats, axis=1, keepdims=True):
        mujoco.mju_quat2Mat(matrix, quat)
        vector = axis_angle_from_matrix(matrix.reshape(3, 3))
        assert np.allclose(matrix_of(vector).ravel(), matrix, atol=1e-9)
        back = np.empty(4)
        mujoco.mju_mat2Quat(back, matrix)
        mujoco.mju_quat2Vel(velocity, back, 1.0)
        if np.argmax(np.abs(back)) == 0:  # the real part is largest: both choose the short way
            assert np.allclose(vector, velocity, atol=1e-9)


def test_a_gripper_that_points_down_lies_inside_the_chart():
    for axis in np.eye(3):
        angles = np.linspace(-0.5, 0.5, 101)
        tilted = np.stack([matrix_of(angle * axis) @ GRIP_DOWN for angle in angles])
        steps = np.diff(axis_angle_from_matrix(tilted), axis=0)
        assert np.abs(steps).max() < 0.02  # 0.01 rad a step, at most pi / 2 times as much
    beyond = axis_angle_from_matrix(matrix_of(np.array([0.1, 0.0, 0.0])) @ GRIP_DOWN)
    assert np.allclose(beyond, [np.pi + 0.1, 0.0, 0.0])


def test_batches_of_any_shape_are_converted_row_by_row():
    matrices = np.stack([matrix_of(v) for v in np.random.default_rng(1).normal(size=(6, 3))])
    rows = np.stack([axis_angle_from_matrix(matrix) for matrix in matrices])
    assert np.array_equal(axis_angle_from_matrix(matrices), rows)
    assert np.array_equal(
        axis_angle_from_matrix(matrices.reshape(2, 3, 3, 3)), rows.reshape(2, 3, 3)
    )
