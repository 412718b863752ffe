"""The robot is commanded by position servos; what else moves its joints is left alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite

Loader = Callable[..., Suite]
ROBOT = "../robots/arm7.xml"
SERVO = '<position name="joint1" joint="joint1" kp="2000" kv="60" forcerange="-30 30"/>'
END = "</mujocoinclude>"


def positions_after(suite: Suite, new_sim: Callable[..., Any]) -> np.ndarray:
    """Return the joints' angles after some steps in which the arm is commanded to move."""
    sim = new_sim(1, suite=suite, image_size=8)
    sim.reset([0], tasks=[0], state_ids=[0])
    sim.step_chunk(np.tile([0.5, 0.5, 0.5, 0.0, 0.0, 0.5, -1.0], (1, 5, 1)))
    return sim._slots.poses.qpos[0, suite.scenes[0].qpos_index(["joint1", "joint4", "joint7"])]


@pytest.mark.parametrize(
    "other",
    [
        '<tendon><fixed name="t"><joint joint="joint7" coef="1"/></fixed></tendon>'
        '<actuator><motor name="m" tendon="t"/></actuator>',
        '<actuator><motor name="m" site="grip"/></actuator>',
        '<actuator><motor name="m" joint="joint1"/></actuator>',
        '<actuator><muscle name="m" joint="joint1" lengthrange="0 1" force="0"/></actuator>',
    ],
    ids=["of a tendon", "of a site", "of the same joint", "with an activation"],
)
def test_an_actuator_beside_the_servos_keeps_a_control_of_zero(
    load_changed: Loader, new_sim: Callable[..., Any], other: str
):
    expected = positions_after(load_suite("tabletop_object"), new_sim)
    suite = load_changed(END, other + END, ROBOT)
    assert constants_of(suite, 0).arm_actuators.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.allclose(positions_after(suite, new_sim), expected, atol=1e-9)


def test_a_damper_beside_the_servo_is_no_servo(load_changed: Loader):
    damper = '<velocity name="damper" joint="joint1" kv="10"/>'
    suite = load_changed(SERVO, damper + SERVO, ROBOT)
    model, constants = suite.scenes[0].model, constants_of(suite, 0)
    assert model.actuator(constants.arm_actuators[0]).name == "joint1"
    assert model.actuator(constants.finger_actuators[1]).name == "finger2"


@pytest.mark.parametrize(
    ("servo", "fault"),
    [
        ('<motor name="m" joint="joint1"/>', r"actuator 'm' \(id 0\) is no position servo"),
        ('<velocity name="m" joint="joint1" kv="10"/>', "'m' .* is no position servo"),
        ('<position name="m" joint="joint1" kp="9" gear="10"/>', "'m' .* has gear 10, not 1"),
        ('<position name="m" joint="joint1" kp="9" timeconst=".1"/>', "'m' .* at once .timeconst"),
        ('<intvelocity name="m" joint="joint1" kp="9" actrange="-1 1"/>', "'m' .* does not follow"),
        (
            '<general name="m" joint="joint1" gainprm="9" biastype="affine" biasprm="1 -9 0"/>',
            "no po",
        ),
        (
            '<general name="m" joint="joint1" gainprm="9" biastype="affine" biasprm="0 -8 0"/>',
            "no po",
        ),
        (
            '<position name="m" joint="joint1" kp="9" delay=".01" nsample="3"/>',
            "'m' .* with a delay",
        ),
        (SERVO + '<position name="m" joint="joint1" kp="9"/>', "held by .*'joint1'.* and .*'m' "),
        ('<position name="m" site="grip" kp="9"/>', "joint 'joint1' has no actuator that moves it"),
    ],
)
def test_a_joint_of_the_robot_needs_a_servo_of_its_own(
    load_changed: Loader, servo: str, fault: str
):
    with pytest.raises(ConfigError, match=f"suite.toml: arm: joint 'joint1'.*{fault}|{fault}"):
        load_changed(SERVO, servo, ROBOT)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            'integrator="implicitfast"',
            'integrator="implicitfast" actuatorgroupdisable="0"',
            "'joint1' .* is in group 0, which actuatorgroupdisable switches off",
        ),
        (
            "<flag ",
            '<flag actuation="disable" ',
            "'joint1' .* is switched off by the option's flag",
        ),
    ],
)
def test_a_servo_is_switched_on(load_changed: Loader, old: str, new: str, fault: str):
    with pytest.raises(ConfigError, match=fault):
        load_changed(old, new, "scene.xml")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            SERVO,
            SERVO.replace(' kp="', ' ctrlrange="-.5 2.9" kp="'),
            r"joint 'joint1' is to go from -2.8973 to 2.8973, but the ctrlrange of actuator "
            r"'joint1' \(id 0\) is -0.5 to 2.9; leave it out",
        ),
        (
            'joint="finger_joint1" kp',
            'joint="finger_joint1" ctrlrange="0 .03" kp',
            "joint 'finger_joint1' is to go from 0 to 0.04, but .* 'finger1' .* is 0 to 0.03",
        ),
    ],
)
def test_a_servo_may_be_told_to_go_wherever_its_joint_is_to_go(
    load_changed: Loader, old: str, new: str, fault: str
):
    with pytest.raises(ConfigError, match=fault):
        load_changed(old, new, ROBOT)


def test_a_servo_may_have_the_range_of_its_joint_rounded(load_changed: Loader):
    rounded = SERVO.replace(' kp="', ' ctrlrange="-2.897 2.897" kp="')
    assert load_changed(SERVO, rounded, ROBOT).scenes
