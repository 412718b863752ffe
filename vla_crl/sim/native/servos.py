"""Which actuators of a scene command the robot: one position servo on each of its joints."""

from collections.abc import Sequence

import mujoco
import numpy as np

from vla_crl.errors import ConfigError

ON_JOINTS = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
"""Transmissions that move a joint by itself; to hinges and slides they are the same."""


def servos_of(model: mujoco.MjModel, joints: Sequence[str], where: str) -> np.ndarray:
    """Return [J] the actuator of each joint whose control is the joint's target, in rad or m.

    Its force is kp (control - q) - kv v. Whatever else moves the joint besides, such as a motor or
    a damper, keeps a control of 0, like all other actuators of the scene.

    Args:
        model: The scene.
        joints: [J] names of hinges and slides.
        where: Of the error message.

    Raises:
        ConfigError: A joint has no such actuator, or more than one.
    """
    return np.array([_servo_of(model, joint, where) for joint in joints])


def _servo_of(model: mujoco.MjModel, joint: str, where: str) -> int:
    index = model.joint(joint).id
    movers = [
        actuator
        for actuator in range(model.nu)
        if model.actuator_trntype[actuator] in ON_JOINTS
        and model.actuator_trnid[actuator, 0] == index
    ]
    if not movers:
        raise ConfigError(f"{where}: joint '{joint}' has no actuator that moves it")
    holders = [actuator for actuator in movers if _holds(model, actuator)]
    if len(holders) > 1:
        names = " and ".join(_called(model, actuator) for actuator in holders)
        raise ConfigError(f"{where}: joint '{joint}' is held by {names}, expected one of them")
    (chosen,) = holders or movers[:1]
    if fault := _fault(model, chosen):
        raise ConfigError(
            f"{where}: joint '{joint}': {_called(model, chosen)} {fault}; expected a <position> "
            "whose control is where the joint is to be"
        )
    return chosen


def _called(model: mujoco.MjModel, actuator: int) -> str:
    return f"actuator '{model.actuator(actuator).name}' (id {actuator})"


def _holds(model: mujoco.MjModel, actuator: int) -> bool:
    """Tell whether an actuator pulls its joint somewhere, whatever its control."""
    is_affine = model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE
    return bool(is_affine and model.actuator_biasprm[actuator, 1])


def _fault(model: mujoco.MjModel, actuator: int) -> str | None:
    """Say why an actuator's control is not where its joint is to be; None if it is."""
    gain, bias = model.actuator_gainprm[actuator], model.actuator_biasprm[actuator]
    is_fixed = model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
    pulls = is_fixed and _holds(model, actuator) and gain[0] > 0
    if not pulls or bias[0] or bias[1] != -gain[0]:
        return "is no position servo"
    if (gear := model.actuator_gear[actuator, 0]) != 1:
        return f"has gear {gear:g}, not 1"
    if model.actuator_dyntype[actuator] != mujoco.mjtDyn.mjDYN_NONE:
        return "does not follow its control at once (timeconst or dyntype)"
    if model.actuator_history[actuator, 0]:
        return "acts with a delay"
    if model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_ACTUATION):
        return "is switched off by the option's flag actuation"
    group = int(model.actuator_group[actuator])
    if 0 <= group < 31 and model.opt.disableactuator >> group & 1:
        return f"is in group {group}, which actuatorgroupdisable switches off"
    return None
