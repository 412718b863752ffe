"""Goals: predicates over the state of a world, composed with and, or, not.

A goal is written in prefix form as nested lists, the way planning languages do:

    goal = ["and", ["on", "red cube", "plate"], ["not", ["open", "drawer"]]]

It is checked against the suite once, compiled to a short postfix program of numbers, and evaluated
after every control step without leaving compiled code.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numba import njit

from vla_crl.errors import ConfigError, unknown_name

SINK_M = 0.025
"""On: how far the lowest point of the upper thing may lie below the highest point of the lower
one, such as the rim of a plate."""
HOVER_M = 0.004
"""On: how far it may lie above."""
LEAST_GAP_M = 0.035
"""Left of, behind ...: least distance of the origins along the direction."""
GREATEST_GAP_M = 0.13
"""Greatest distance along it."""
OFF_LINE_M = 0.04
"""Greatest distance across it; also of the middle of "between" from the line."""
SAME_HEIGHT_M = 0.015
"""Left of, between ...: difference of the lowest points of things that stand side by side."""
RELEASED_M = 0.04
"""Least distance of the grip from a thing that was let go."""


class Op(enum.IntEnum):
    """Steps of a compiled goal."""

    AND = 0
    OR = 1
    NOT = 2
    IN = 3
    ON = 4
    RELEASED = 5
    JOINT_ABOVE = 6
    JOINT_BELOW = 7
    BESIDE = 8
    BETWEEN = 9


@dataclass(frozen=True)
class Predicate:
    """What a predicate is called, takes and means."""

    arguments: tuple[str, ...]
    """Kinds of its arguments: "thing", "region" or "joint" (a thing that has one)."""
    meaning: str


DIRECTIONS = {
    "left_of": (0.0, -1.0),
    "right_of": (0.0, 1.0),
    "in_front_of": (1.0, 0.0),
    "behind": (-1.0, 0.0),
}
"""Horizontal unit vectors as the front camera sees them: it looks at the robot."""

PREDICATES = {
    "in": Predicate(("thing", "region"), "the thing's origin lies inside the region's box"),
    "on": Predicate(("thing", "thing"), "the first thing rests on the second"),
    "stacked": Predicate(("thing", "thing"), "on, and the gripper has let go"),
    "released": Predicate(("thing",), "the gripper is away from the thing"),
    "open": Predicate(("joint",), "the thing's joint is past on_at"),
    "turned_on": Predicate(("joint",), "the thing's joint is past on_at"),
    "pressed": Predicate(("joint",), "the thing's joint is past on_at"),
    "closed": Predicate(("joint",), "the thing's joint is back at off_at"),
    "turned_off": Predicate(("joint",), "the thing's joint is back at off_at"),
    **{
        name: Predicate(("thing", "thing"), "the first thing stands beside the second, there")
        for name in DIRECTIONS
    },
    "between": Predicate(
        ("thing", "thing", "thing"), "the first thing stands in the middle of the others"
    ),
}
COMPOSITIONS = {"and": Op.AND, "or": Op.OR, "not": Op.NOT}


@dataclass(frozen=True)
class Goal:
    """A predicate with its arguments' names, or a composition with its parts.

    Attributes:
        name: A key of `PREDICATES` or `COMPOSITIONS`.
        arguments: Names in the suite; empty for a composition.
        parts: Goals that are composed; empty for a predicate.
    """

    name: str
    arguments: tuple[str, ...] = ()
    parts: tuple["Goal", ...] = ()

    def terms(self) -> Iterator["Goal"]:
        """Yield the predicates in the order in which they are written."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.terms()


def parse_goal(written: Any, where: str, known: Mapping[str, Sequence[str]]) -> Goal:
    """Check a goal as it is written in a suite.

    Args:
        written: Nested lists of words.
        where: File and task, for errors.
        known: For each kind of argument the names that the suite has.

    Raises:
        ConfigError: An unknown word, or the wrong number of arguments.
    """
    if not isinstance(written, (list, tuple)) or not written or not isinstance(written[0], str):
        raise ConfigError(f'{where}: goal {written!r} is not a list like ["on", "cube", "plate"]')
    name, *arguments = written
    if name in COMPOSITIONS:
        if not arguments or (name == "not" and len(arguments) != 1):
            expected = "one goal" if name == "not" else "at least one goal"
            raise ConfigError(f"{where}: '{name}' has {len(arguments)} parts, expected {expected}")
        return Goal(name, parts=tuple(parse_goal(part, where, known) for part in arguments))
    if name not in PREDICATES:
        raise unknown_name(where, "predicate", name, (*PREDICATES, *COMPOSITIONS))
    kinds = PREDICATES[name].arguments
    if len(arguments) != len(kinds):
        raise ConfigError(
            f"{where}: '{name}' has {len(arguments)} arguments, expected {len(kinds)}: "
            f"{', '.join(kinds)}"
        )
    for kind, argument in zip(kinds, arguments, strict=True):
        if argument not in known[kind]:
            raise unknown_name(f"{where}: '{name}'", kind, str(argument), known[kind])
    return Goal(name, tuple(arguments))


class Goals(NamedTuple):
    """The compiled goals of all tasks.

    Attributes:
        programs: [tasks, L, 4] an Op and up to three ids: bodies, a site, an index into qpos.
        lengths: [tasks] used part of a program.
        numbers: [tasks, L, 2] the joint position of a threshold, or the direction of "beside".
        site_size: [sites, 3] half sizes, m.
        half_width: [bodies] of the body's own geoms at rest, the smaller of x and y, m.
        geoms: [bodies, 2] first and last + 1 of a body's geoms.
        geom_type: [geoms] mjtGeom.
        geom_size: [geoms, 3].
    """

    programs: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    site_size: np.ndarray
    half_width: np.ndarray
    geoms: np.ndarray
    geom_type: np.ndarray
    geom_size: np.ndarray


class Poses(NamedTuple):
    """What goals look at, of one world, as in mjData (world frame, m).

    Attributes:
        body_pos: [bodies, 3].
        site_pos: [sites, 3].
        site_mat: [sites, 9].
        geom_pos: [geoms, 3].
        geom_mat: [geoms, 9].
        qpos: [nq].
        grip: [3] of the grip site.
    """

    body_pos: np.ndarray
    site_pos: np.ndarray
    site_mat: np.ndarray
    geom_pos: np.ndarray
    geom_mat: np.ndarray
    qpos: np.ndarray
    grip: np.ndarray


class Articulation(NamedTuple):
    """A thing's joint: its index into qpos, and where it counts as on and off."""

    qpos_index: int
    on_at: float
    off_at: float


def compile_goals(
    goals: Sequence[Goal],
    model: mujoco.MjModel,
    bodies: Mapping[str, int],
    joints: Mapping[str, Articulation],
) -> Goals:
    """Turn goals into arrays.

    Args:
        goals: One a task, checked by `parse_goal`.
        model: The scene.
        bodies: Body id of each thing.
        joints: Of the things that have one.
    """
    programs = [list(_program(goal, model, bodies, joints)) for goal in goals]
    longest = max(len(program) for program in programs)
    ids, numbers = np.zeros((len(goals), longest, 4), np.int64), np.zeros((len(goals), longest, 2))
    for task, program in enumerate(programs):
        for k, (step, values) in enumerate(program):
            ids[task, k, : len(step)] = step
            numbers[task, k, : len(values)] = values
    first, count = model.body_geomadr, model.body_geomnum
    return Goals(
        programs=ids,
        lengths=np.array([len(program) for program in programs]),
        numbers=numbers,
        site_size=model.site_size.copy(),
        half_width=np.array([_half_width(model, body) for body in range(model.nbody)]),
        geoms=np.stack([first, first + count], axis=1).astype(np.int64),
        geom_type=model.geom_type.astype(np.int64),
        geom_size=np.array([_half_sizes(model, geom) for geom in range(model.ngeom)]),
    )


def _program(
    goal: Goal,
    model: mujoco.MjModel,
    bodies: Mapping[str, int],
    joints: Mapping[str, Articulation],
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield the steps of a goal in postfix order."""
    for number, part in enumerate(goal.parts):
        yield from _program(part, model, bodies, joints)
        if number:
            yield (COMPOSITIONS[goal.name],), ()
    if goal.name == "not":
        yield (Op.NOT,), ()
    if goal.parts:
        return
    names = goal.arguments
    match goal.name:
        case "in":
            yield (Op.IN, bodies[names[0]], model.site(names[1]).id), ()
        case "on" | "stacked":
            yield (Op.ON, bodies[names[0]], bodies[names[1]]), ()
            if goal.name == "stacked":
                yield (Op.RELEASED, bodies[names[0]]), ()
                yield (Op.AND,), ()
        case "released":
            yield (Op.RELEASED, bodies[names[0]]), ()
        case "between":
            yield (Op.BETWEEN, *(bodies[name] for name in names)), ()
        case "open" | "turned_on" | "pressed" | "closed" | "turned_off":
            joint = joints[names[0]]
            is_on = goal.name in {"open", "turned_on", "pressed"}
            is_above = (joint.on_at > joint.off_at) == is_on
            op = Op.JOINT_ABOVE if is_above else Op.JOINT_BELOW
            yield (op, joint.qpos_index), (joint.on_at if is_on else joint.off_at,)
        case _:
            yield (Op.BESIDE, bodies[names[0]], bodies[names[1]]), DIRECTIONS[goal.name]


def _half_width(model: mujoco.MjModel, body: int) -> float:
    """Return the smaller horizontal half extent of a body's own geoms, in its own frame."""
    start = model.body_geomadr[body]
    geoms = range(start, start + model.body_geomnum[body])
    corners = []
    for geom in geoms:
        centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        turn = rotation.reshape(3, 3)
        middle, reach = model.geom_pos[geom] + turn @ centre, np.abs(turn) @ half
        corners += [middle - reach, middle + reach]
    if not corners:
        return 0.0
    return float(np.min((np.max(corners, axis=0) - np.min(corners, axis=0))[:2]) / 2)


def _half_sizes(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """Return sizes that `_support` understands; of a mesh those of its bounding box."""
    is_mesh = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    return (model.geom_aabb[geom, 3:] if is_mesh else model.geom_size[geom]).copy()


SPHERE = int(mujoco.mjtGeom.mjGEOM_SPHERE)
CAPSULE = int(mujoco.mjtGeom.mjGEOM_CAPSULE)
ELLIPSOID = int(mujoco.mjtGeom.mjGEOM_ELLIPSOID)
CYLINDER = int(mujoco.mjtGeom.mjGEOM_CYLINDER)
AND, OR, NOT, IN, ON = int(Op.AND), int(Op.OR), int(Op.NOT), int(Op.IN), int(Op.ON)
RELEASED, BESIDE, BETWEEN = int(Op.RELEASED), int(Op.BESIDE), int(Op.BETWEEN)
JOINT_ABOVE = int(Op.JOINT_ABOVE)


@njit(nogil=True)
def goal_reached(goals, task, poses):
    """Run the program of a task; truth values are pushed onto the bits of one integer.

    Args:
        goals: `Goals`.
        task: Index.
        poses: `Poses`.

    Returns:
        Whether the goal holds.
    """
    stack = 0
    for k in range(goals.lengths[task]):
        op, a, b, c = goals.programs[task, k]
        if op == NOT:
            stack ^= 1
        elif op == AND:
            stack = (stack >> 1) & (stack | ~1)
        elif op == OR:
            stack = (stack >> 1) | (stack & 1)
        else:
            holds = _predicate(goals, op, a, b, c, goals.numbers[task, k], poses)
            stack = (stack << 1) | (1 if holds else 0)
    return stack & 1 == 1


@njit(nogil=True)
def _predicate(goals, op, a, b, c, numbers, poses):
    position = poses.body_pos
    if op == IN:
        return _is_in(position[a], poses.site_pos[b], poses.site_mat[b], goals.site_size[b])
    if op == ON:
        gap = _extent(goals, a, poses, -1.0) - _extent(goals, b, poses, 1.0)
        apart = np.hypot(position[a, 0] - position[b, 0], position[a, 1] - position[b, 1])
        return -SINK_M <= gap <= HOVER_M and apart <= goals.half_width[b]
    if op == RELEASED:
        x, y, z = position[a] - poses.grip
        return x * x + y * y + z * z >= RELEASED_M**2
    if op == BESIDE:
        dx, dy = position[a, 0] - position[b, 0], position[a, 1] - position[b, 1]
        along, across = dx * numbers[0] + dy * numbers[1], dx * numbers[1] - dy * numbers[0]
        is_near = LEAST_GAP_M <= along <= GREATEST_GAP_M and abs(across) <= OFF_LINE_M
        return is_near and _stand_level(goals, a, b, poses)
    if op == BETWEEN:
        dx, dy = position[c, 0] - position[b, 0], position[c, 1] - position[b, 1]
        x, y = position[a, 0] - position[b, 0], position[a, 1] - position[b, 1]
        length = np.hypot(dx, dy)
        along, across = (x * dx + y * dy) / length, (x * dy - y * dx) / length
        in_middle = abs(along - length / 2) <= length / 4 and abs(across) <= OFF_LINE_M
        return in_middle and _stand_level(goals, a, b, poses)
    if op == JOINT_ABOVE:
        return poses.qpos[a] >= numbers[0]
    return poses.qpos[a] <= numbers[0]


@njit(nogil=True)
def _is_in(point, centre, axes, half_size):
    for axis in range(3):  # |R' (p - c)| <= size, per axis
        distance = 0.0
        for i in range(3):
            distance += axes[3 * i + axis] * (point[i] - centre[i])
        if abs(distance) > half_size[axis]:
            return False
    return True


@njit(nogil=True)
def _stand_level(goals, a, b, poses):
    difference = _extent(goals, a, poses, -1.0) - _extent(goals, b, poses, -1.0)
    return abs(difference) <= SAME_HEIGHT_M


@njit(nogil=True)
def _extent(goals, body, poses, sign):
    """Return the height (m) of a body's highest (sign 1) or lowest (sign -1) point."""
    best = -np.inf
    for geom in range(goals.geoms[body, 0], goals.geoms[body, 1]):
        reach = _support(goals.geom_type[geom], goals.geom_size[geom], poses.geom_mat[geom])
        best = max(best, sign * poses.geom_pos[geom, 2] + reach)
    return sign * best


@njit(nogil=True)
def _support(kind, size, axes):
    """Return how far a geom reaches up (and down) from its centre; axes[6:9] is its third row."""
    x, y, z = abs(axes[6]), abs(axes[7]), abs(axes[8])
    if kind == SPHERE:
        return size[0]
    if kind == CAPSULE:
        return size[0] + size[1] * z
    if kind == CYLINDER:
        return size[0] * np.sqrt(max(1.0 - z * z, 0.0)) + size[1] * z
    if kind == ELLIPSOID:
        return np.sqrt((size[0] * x) ** 2 + (size[1] * y) ** 2 + (size[2] * z) ** 2)
    return size[0] * x + size[1] * y + size[2] * z
