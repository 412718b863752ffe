"""What each of Meta-World's tasks observes of its things, and when it is done.

Every entry restates `_get_pos_objects`, `_get_quat_objects` and the `success` of `evaluate_state`
in the file of `metaworld/envs` that is named beside it, metaworld 3.0.0;
`vla_crl.sim.metaworld.verify` compares all of them with the package.
"""

from dataclasses import dataclass
from math import nextafter, pi

from vla_crl.sim.metaworld.kernel import slots as kernel

XYZ, XY = (1.0, 1.0, 1.0), (1.0, 1.0, 0.0)
X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
"""Axes along which a distance counts."""


@dataclass(frozen=True)
class Point:
    """A place; see `kernel.slots.Points`."""

    source: int
    name: str = ""
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    joint: str = ""


@dataclass(frozen=True)
class Turn:
    """An orientation; see `kernel.slots.Turns`."""

    source: int
    name: str = ""


@dataclass(frozen=True)
class Success:
    """When a task is done; see `kernel.success`."""

    kind: int
    points: tuple[Point, ...]
    limit: float = 0.0
    scale: tuple[float, float, float] = XYZ
    height_m: float | None = None


@dataclass(frozen=True)
class Rule:
    """One task.

    Attributes:
        objects: What is observed, one or two things.
        turns: Their orientations.
        success: When it is done.
    """

    objects: tuple[Point, ...]
    turns: tuple[Turn, ...]
    success: Success


def _body(name: str, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Point:
    return Point(kernel.BODY, name, (x, y, z))


def _site(name: str, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Point:
    return Point(kernel.SITE, name, (x, y, z))


def _geom(name: str) -> Point:
    return Point(kernel.GEOM, name)


def _joint(name: str, offset_rad: float = 0.0) -> Point:
    return Point(kernel.JOINT, joint=name, offset_m=(offset_rad, 0.0, 0.0))


def _quat(body: str) -> Turn:
    return Turn(kernel.BODY_QUAT, body)


def _matrix(geom: str) -> Turn:
    return Turn(kernel.GEOM_MATRIX, geom)


def _rule(thing: Point, turn: Turn, success: Success) -> Rule:
    return Rule((thing,), (turn,), success)


def _near(
    thing: Point, turn: Turn, limit_m: float, axes: tuple[float, float, float] = XYZ,
    *, height_m: float | None = None, measured: Point | None = None,
) -> Rule:  # fmt: skip
    """Return the rule of a task that is done when the thing, or another point, is at the goal."""
    point = measured or thing
    return _rule(thing, turn, Success(kernel.NEAR, (point,), limit_m, axes, height_m))


TIPS = Point(kernel.TIPS)
NO_TURN = Turn(kernel.NOTHING)
BUTTON_TOP, BUTTON_FRONT = _body("button", z=0.193), _body("button", y=-0.193)
HANDLE, DRAWER_FRONT = _site("handleStart"), -0.16
STICK_TURNS = (Turn(kernel.BODY_MATRIX, "stick"), NO_TURN)

RULES = {
    # sawyer_assembly_peg_v3.py
    "assembly-v3": _rule(
        _site("RoundNut-8"), _quat("RoundNut"), Success(kernel.THREADED, (_site("RoundNut"),))
    ),
    # sawyer_basketball_v3.py
    "basketball-v3": _near(
        _body("bsktball"), _quat("bsktball"), 0.08, (1.0, 1.0, 2.0), height_m=0.3
    ),
    # sawyer_bin_picking_v3.py
    "bin-picking-v3": _near(_body("obj"), _quat("obj"), 0.05),
    # sawyer_box_close_v3.py: less than, not at most
    "box-close-v3": _near(_body("top_link"), _quat("top_link"), nextafter(0.08, 0.0)),
    # sawyer_button_press_topdown_v3.py
    "button-press-topdown-v3": _near(BUTTON_TOP, _quat("button"), 0.024, Z),
    # sawyer_button_press_topdown_wall_v3.py
    "button-press-topdown-wall-v3": _near(BUTTON_TOP, _quat("button"), 0.024, Z),
    # sawyer_button_press_v3.py
    "button-press-v3": _near(BUTTON_FRONT, _quat("button"), 0.02, Y),
    # sawyer_button_press_wall_v3.py
    "button-press-wall-v3": _near(BUTTON_FRONT, _quat("button"), 0.03, Y),
    # sawyer_coffee_button_v3.py
    "coffee-button-v3": _near(_site("buttonStart"), Turn(kernel.IDENTITY), 0.02, Y),
    # sawyer_coffee_pull_v3.py
    "coffee-pull-v3": _near(_body("obj"), _matrix("mug"), 0.07),
    # sawyer_coffee_push_v3.py
    "coffee-push-v3": _near(_body("obj"), _matrix("mug"), 0.07),
    # sawyer_dial_turn_v3.py
    "dial-turn-v3": _near(
        Point(kernel.DIAL, "dial", joint="knob_Joint_1"), _quat("dial"), 0.07
    ),
    # sawyer_disassemble_peg_v3.py
    "disassemble-v3": _rule(
        _site("RoundNut-8"), _quat("RoundNut"), Success(kernel.ABOVE, (_site("RoundNut-8"),))
    ),
    # sawyer_door_close_v3.py
    "door-close-v3": _near(_geom("handle"), _matrix("handle"), 0.08),
    # sawyer_door_lock_v3.py
    "door-lock-v3": _near(_site("lockStartLock"), _quat("door_link"), 0.02, Z),
    # sawyer_door_v3.py
    "door-open-v3": _near(_geom("handle"), _matrix("handle"), 0.08, X),
    # sawyer_door_unlock_v3.py
    "door-unlock-v3": _near(_site("lockStartUnlock"), _quat("door_link"), 0.02, X),
    # sawyer_drawer_close_v3.py
    "drawer-close-v3": _near(
        _body("drawer_link", y=DRAWER_FRONT, z=0.05), NO_TURN, 0.05 + 0.015
    ),
    # sawyer_drawer_open_v3.py
    "drawer-open-v3": _near(_body("drawer_link", y=DRAWER_FRONT), _quat("drawer_link"), 0.03),
    # sawyer_faucet_close_v3.py
    "faucet-close-v3": _near(_site("handleStartClose", z=-0.01), _quat("faucetBase"), 0.07),
    # sawyer_faucet_open_v3.py: its reward shifts the handle
    "faucet-open-v3": _near(
        _site("handleStartOpen", z=-0.01), _quat("faucetBase"), 0.07,
        measured=_site("handleStartOpen", x=-0.04, z=-0.01 + 0.03),
    ),
    # sawyer_hammer_v3.py
    "hammer-v3": Rule(
        (_body("hammer"), _body("nail_link")),
        (_quat("hammer"), _quat("nail_link")),
        Success(kernel.BEYOND, (_joint("NailSlideJoint"),), 0.09),
    ),
    # sawyer_hand_insert_v3.py
    "hand-insert-v3": _near(_body("obj"), _quat("obj"), 0.05),
    # sawyer_handle_press_side_v3.py
    "handle-press-side-v3": _near(HANDLE, NO_TURN, 0.02, Z),
    # sawyer_handle_press_v3.py
    "handle-press-v3": _near(HANDLE, NO_TURN, 0.02, Z),
    # sawyer_handle_pull_side_v3.py
    "handle-pull-side-v3": _near(_site("handleCenter"), NO_TURN, 0.08),
    # sawyer_handle_pull_v3.py
    "handle-pull-v3": _near(_site("handleRight"), NO_TURN, 0.05, Z),
    # sawyer_lever_pull_v3.py: a quarter turn, downwards in its joint
    "lever-pull-v3": _rule(
        _site("leverStart"), _matrix("objGeom"),
        Success(kernel.ANGLE, (_joint("LeverAxis", pi / 2.0),), pi / 24),
    ),
    # sawyer_peg_insertion_side_v3.py
    "peg-insert-side-v3": _near(
        _site("pegGrasp"), Turn(kernel.SITE_MATRIX, "pegGrasp"), 0.07, (1.0, 2.0, 2.0),
        measured=_site("pegHead"),
    ),
    # sawyer_peg_unplug_side_v3.py
    "peg-unplug-side-v3": _near(_site("pegEnd"), _quat("plug1"), 0.07),
    # sawyer_pick_out_of_hole_v3.py
    "pick-out-of-hole-v3": _near(_body("obj"), _quat("obj"), 0.07),
    # sawyer_pick_place_v3.py
    "pick-place-v3": _near(_body("obj"), _matrix("objGeom"), 0.07),
    # sawyer_pick_place_wall_v3.py
    "pick-place-wall-v3": _near(_geom("objGeom"), _matrix("objGeom"), 0.07),
    # sawyer_plate_slide_v3.py
    "plate-slide-v3": _near(_geom("puck"), _matrix("puck"), 0.07),
    # sawyer_plate_slide_back_v3.py
    "plate-slide-back-v3": _near(_geom("puck"), _matrix("puck"), 0.07),
    # sawyer_plate_slide_back_side_v3.py
    "plate-slide-back-side-v3": _near(_geom("puck"), _matrix("puck"), 0.07),
    # sawyer_plate_slide_side_v3.py
    "plate-slide-side-v3": _near(_geom("puck"), _matrix("puck"), 0.07),
    # sawyer_push_v3.py
    "push-v3": _near(_body("obj"), _matrix("objGeom"), 0.05),
    # sawyer_push_back_v3.py
    "push-back-v3": _near(_geom("objGeom"), _matrix("objGeom"), 0.07),
    # sawyer_push_wall_v3.py
    "push-wall-v3": _near(_geom("objGeom"), _matrix("objGeom"), 0.07),
    # sawyer_reach_v3.py
    "reach-v3": _near(_body("obj"), _matrix("objGeom"), 0.05, measured=TIPS),
    # sawyer_reach_wall_v3.py
    "reach-wall-v3": _near(_body("obj"), _matrix("objGeom"), 0.05, measured=TIPS),
    # sawyer_shelf_place_v3.py
    "shelf-place-v3": _near(_body("obj"), _matrix("objGeom"), 0.07),
    # sawyer_soccer_v3.py
    "soccer-v3": _near(_body("soccer_ball"), Turn(kernel.BODY_MATRIX, "soccer_ball"), 0.07),
    # sawyer_stick_pull_v3.py
    "stick-pull-v3": Rule(
        (_body("stick"), _site("insertion")),
        STICK_TURNS,
        Success(kernel.HOOKED, (_site("insertion"), _site("stick_end")), 0.12),
    ),
    # sawyer_stick_push_v3.py
    "stick-push-v3": Rule(
        (_body("stick"), _site("insertion", y=0.09)),
        STICK_TURNS,
        Success(kernel.HELD, (_site("insertion", y=0.09),), 0.12),
    ),
    # sawyer_sweep_v3.py
    "sweep-v3": _near(_body("obj"), _quat("obj"), 0.05),
    # sawyer_sweep_into_goal_v3.py
    "sweep-into-v3": _near(_body("obj"), _matrix("objGeom"), 0.05, XY),
    # sawyer_window_close_v3.py
    "window-close-v3": _near(_site("handleCloseStart"), NO_TURN, 0.05, X),
    # sawyer_window_open_v3.py
    "window-open-v3": _near(_site("handleOpenStart"), NO_TURN, 0.05, X),
}  # fmt: skip
"""By the task's name in Meta-World."""
