from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from vla_crl.sim.native.kernel.kinematics import (
    Chain,
    forward,
    inverse,
    multiply,
    rotation_about,
)
from vla_crl.sim.native.layout import GRIP_DOWN
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.stepped import solve_positive_definite


@pytest.fixture(scope="module")
def chain(scene: Scene) -> Chain:
    return scene.chain


def pose_of(chain: Chain, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    position, rotation, jacobian = np.empty(3), np.empty((3, 3)), np.empty((6, len(joints)))
    forward(chain, joints, position, rotation, jacobian)
    return position, rotation, jacobian


def check_forward(scene: Scene) -> None:
    """Compare pose and Jacobian of the grip with MuJoCo's in many postures."""
    model, data, chain = scene.model, mujoco.MjData(scene.model), scene.chain
    names = scene.config.arm.joints
    qpos = [model.joint(name).qposadr[0] for name in names]
    dofs = [model.joint(name).dofadr[0] for name in names]
    site = model.site(scene.config.arm.grip_site).id
    linear, angular = np.empty((2, 3, model.nv))
    for joints in np.random.default_rng(0).uniform(chain.low_rad, chain.high_rad, (50, 7)):
        data.qpos[qpos] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, linear, angular, site)
        position, rotation, jacobian = pose_of(chain, joints)
        assert np.allclose(position, data.site_xpos[site], atol=1e-12)
        assert np.allclose(rotation.ravel(), data.site_xmat[site], atol=1e-12)
        assert np.allclose(jacobian[:3], linear[:, dofs], atol=1e-12)
        assert np.allclose(jacobian[3:], angular[:, dofs], atol=1e-12)


def test_forward_agrees_with_mujoco_in_pose_and_jacobian(scene: Scene):
    check_forward(scene)


def test_a_joint_may_be_anywhere_in_its_body_and_have_a_reference(
    load_changed: Callable[..., Suite],
):
    joint = '<joint class="arm" name="joint4" '
    suite = load_changed(joint, joint + 'pos=".03 -.02 .01" ref="-.4" ', "../robots/arm7.xml")
    assert suite.scenes[0].model.joint("joint4").qpos0[0] == -0.4
    check_forward(suite.scenes[0])


def test_inverse_reaches_the_whole_workspace(scene: Scene, chain: Chain):
    arm = scene.config.arm
    targets = np.random.default_rng(1).uniform(arm.workspace_low_m, arm.workspace_high_m, (50, 3))
    for target in targets:
        joints = chain.rest_rad.copy()
        inverse(chain, joints, target, GRIP_DOWN, 60)
        position, rotation, _ = pose_of(chain, joints)
        # The posture task pulls a little even at the goal.
        assert np.linalg.norm(position - target) < 1e-3
        assert np.abs(rotation - GRIP_DOWN).max() < 5e-3
        assert np.all((joints >= chain.low_rad) & (joints <= chain.high_rad))


def test_two_iterations_follow_a_path(chain: Chain):
    joints, target = chain.rest_rad.copy(), pose_of(chain, chain.rest_rad)[0]
    for _ in range(10):
        target += [0.005, 0.005, -0.005]
        inverse(chain, joints, target, GRIP_DOWN, 2)
        assert np.linalg.norm(pose_of(chain, joints)[0] - target) < 1e-3


def test_inverse_stays_within_joint_limits_when_the_target_is_out_of_reach(chain: Chain):
    joints = chain.rest_rad.copy()
    inverse(chain, joints, np.array([3.0, 0.0, 0.5]), GRIP_DOWN, 60)
    assert np.all((joints >= chain.low_rad) & (joints <= chain.high_rad))


def test_the_linear_solver_agrees_with_numpy():
    rng = np.random.default_rng(2)
    for size in (1, 3, 6):
        root, right = rng.normal(size=(size, size)), rng.normal(size=size)
        matrix = root @ root.T + 0.1 * np.eye(size)
        expected = np.linalg.solve(matrix, right)
        solve_positive_definite(matrix, right)
        assert np.allclose(right, expected, rtol=1e-9)


def test_rotation_about_agrees_with_mujoco():
    quat, expected, rotation = np.empty(4), np.empty(9), np.empty((3, 3))
    for vector in [*np.random.default_rng(3).normal(size=(20, 3)), np.zeros(3)]:
        angle = np.linalg.norm(vector)
        mujoco.mju_axisAngle2Quat(quat, vector / max(angle, 1e-12), angle)
        mujoco.mju_quat2Mat(expected, quat)
        rotation_about(vector, rotation)
        assert np.allclose(rotation.ravel(), expected, atol=1e-12)


def test_multiply_is_the_matrix_product():
    a, b = np.random.default_rng(4).normal(size=(2, 3, 3))
    product = np.empty((3, 3))
    multiply(a, b, product)
    assert np.allclose(product, a @ b, rtol=1e-14)
