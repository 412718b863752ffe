"""What a task of Meta-World looks like to the kernel and to the scripted policies."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.metaworld.initial_states import drawn_env
from vla_crl.sim.metaworld.kernel import slots as kernel
from vla_crl.sim.metaworld.models import simulated_model
from vla_crl.sim.metaworld.rules import RULES, Point, Turn
from vla_crl.sim.threads import made_once

SIDES = ("right", "left")
_OBJECTS = {
    kernel.BODY: mujoco.mjtObj.mjOBJ_BODY,
    kernel.DIAL: mujoco.mjtObj.mjOBJ_BODY,
    kernel.SITE: mujoco.mjtObj.mjOBJ_SITE,
    kernel.GEOM: mujoco.mjtObj.mjOBJ_GEOM,
}
_TURNED = {
    kernel.BODY_QUAT: mujoco.mjtObj.mjOBJ_BODY,
    kernel.BODY_MATRIX: mujoco.mjtObj.mjOBJ_BODY,
    kernel.SITE_MATRIX: mujoco.mjtObj.mjOBJ_SITE,
    kernel.GEOM_MATRIX: mujoco.mjtObj.mjOBJ_GEOM,
}
NOT_THERE = -1
"""Id of what a point, a turn or a task does without."""


class ObservationRange(NamedTuple):
    """[39] between which Meta-World clips observations, those of the first moment excepted."""

    low: np.ndarray
    high: np.ndarray


@made_once
def constants_of(task: str, horizon: int) -> kernel.TaskConstants:
    """Collect a task's constants; all simulations share them.

    Args:
        task: Its name in Meta-World.
        horizon: Control steps in an episode.
    """
    model, rule, env = simulated_model(task), RULES[task], drawn_env(task, 0)
    success = rule.success
    held = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "objGeom")
    return kernel.TaskConstants(
        sizes=kernel.Sizes(*(int(getattr(model, name)) for name in kernel.Sizes._fields)),
        num_substeps=int(env.frame_skip),
        horizon=horizon,
        action_scale=float(env.action_scale),
        mocap_low=np.array(env.mocap_low, float),
        mocap_high=np.array(env.mocap_high, float),
        hand=model.body("hand").id,
        claws=np.array([model.body(f"{side}claw").id for side in SIDES]),
        tips=np.array([model.site(f"{side}EndEffector").id for side in SIDES]),
        pads=np.array([model.geom(f"{side}pad_geom").id for side in SIDES]),
        held=held,
        objects=_points(model, rule.objects),
        turns=_turns(model, rule.turns),
        success=kernel.Success(
            kind=success.kind,
            points=_points(model, success.points),
            scale=np.array(success.scale),
            limit=success.limit,
            height=np.nan if success.height_m is None else success.height_m,
        ),
    )


@made_once
def observation_range(task: str) -> ObservationRange:
    """Return the range of a task's observations."""
    space = drawn_env(task, 0).sawyer_observation_space
    return ObservationRange(space.low, space.high)


def _points(model: mujoco.MjModel, points: Sequence[Point]) -> kernel.Points:
    return kernel.Points(
        source=np.array([point.source for point in points]),
        part=np.array([_id(model, _OBJECTS, point.source, point.name) for point in points]),
        joint=np.array([_qpos(model, point.joint) for point in points]),
        offset=np.array([point.offset_m for point in points]),
    )


def _turns(model: mujoco.MjModel, turns: Sequence[Turn]) -> kernel.Turns:
    return kernel.Turns(
        source=np.array([turn.source for turn in turns]),
        part=np.array([_id(model, _TURNED, turn.source, turn.name) for turn in turns]),
    )


def _id(model: mujoco.MjModel, kinds: dict[int, mujoco.mjtObj], source: int, name: str) -> int:
    if source not in kinds:
        return NOT_THERE
    part = mujoco.mj_name2id(model, kinds[source], name)
    assert part != NOT_THERE, name
    return part


def _qpos(model: mujoco.MjModel, joint: str) -> int:
    return int(model.joint(joint).qposadr[0]) if joint else NOT_THERE
