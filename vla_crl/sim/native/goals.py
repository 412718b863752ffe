"""Goals: predicates over the state of a world, composed with and, or, not.

A goal is written in prefix form as nested lists, the way planning languages do:

    goal = ["and", ["on", "red cube", "plate"], ["not", ["open", "drawer"]]]

It is checked against the suite once, compiled to a short postfix program of numbers, and evaluated
after every control step without leaving compiled code.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.native.kernel.predicates import Goals, Op


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
    "on": Predicate(("thing", "thing"), "the first thing is on the second, in the gripper or not"),
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
MIN_HORIZONTAL = 0.1
"""Length of the horizontal part of a unit vector that tells a direction."""
MAX_DEPTH = 31
"""Truth values that `goal_reached` keeps in one integer, which has 32 bits on a GPU."""
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

    @property
    def depth(self) -> int:
        """How many truth values its evaluation holds at once."""
        if not self.parts:
            return 2 if self.name == "stacked" else 1  # "stacked" is two predicates
        return max((number > 0) + part.depth for number, part in enumerate(self.parts))

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
        ConfigError: An unknown word, the wrong number of arguments, or too deeply nested.
    """
    if not isinstance(written, (list, tuple)) or not written or not isinstance(written[0], str):
        raise ConfigError(f'{where}: goal {written!r} is not a list like ["on", "cube", "plate"]')
    name, *arguments = written
    if name in COMPOSITIONS:
        if not arguments or (name == "not" and len(arguments) != 1):
            expected = "one goal" if name == "not" else "at least one goal"
            raise ConfigError(f"{where}: '{name}' has {len(arguments)} parts, expected {expected}")
        goal = Goal(name, parts=tuple(parse_goal(part, where, known) for part in arguments))
        if goal.depth > MAX_DEPTH:
            raise ConfigError(
                f"{where}: its goal needs {goal.depth} truth values at once, expected at most "
                f"{MAX_DEPTH}; put the parts of nested 'and' or 'or' into one list"
            )
        return goal
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
    if len(set(arguments)) < len(arguments):
        raise ConfigError(f"{where}: '{name}' relates a thing to itself: {', '.join(arguments)}")
    return Goal(name, tuple(arguments))


class Articulation(NamedTuple):
    """A thing's joint: its index into qpos, and where it counts as on and off."""

    qpos_index: int
    on_at: float
    off_at: float


def compile_goals(
    goals: Sequence[Goal | None],
    model: mujoco.MjModel,
    bodies: Mapping[str, int],
    joints: Mapping[str, Articulation],
) -> Goals:
    """Turn goals into arrays.

    Args:
        goals: One a task, checked by `parse_goal`; None for tasks of other scenes.
        model: The scene.
        bodies: Body id of each thing.
        joints: Of the things that have one.
    """
    programs = [list(_program(goal, model, bodies, joints)) if goal else [] for goal in goals]
    longest = max(len(program) for program in programs)
    ids, numbers = np.zeros((len(goals), longest, 4), np.int64), np.zeros((len(goals), longest, 2))
    for task, program in enumerate(programs):
        for k, (step, values) in enumerate(program):
            ids[task, k, : len(step)] = step
            numbers[task, k, : len(values)] = values
    first, count = model.body_geomadr, model.body_geomnum
    at_rest = mujoco.MjData(model)
    mujoco.mj_kinematics(model, at_rest)
    turns = at_rest.xmat.reshape(-1, 3, 3)
    return Goals(
        programs=ids,
        lengths=np.array([len(program) for program in programs]),
        numbers=numbers,
        site_size=model.site_size.copy(),
        half_width=np.array([_half_width(model, *item) for item in enumerate(turns)]),
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


def _half_width(model: mujoco.MjModel, body: int, turn: np.ndarray) -> float:
    """Return the smallest horizontal half extent of a body's box, oriented as `turn` [3, 3].

    The box encloses the body's own geoms and has the body's axes. It is looked at along the
    horizontal parts of these axes and across them: however it stands, its sides are among them.
    """
    start = model.body_geomadr[body]
    corners = []
    for geom in range(start, start + model.body_geomnum[body]):
        centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        middle = model.geom_pos[geom] + rotation.reshape(3, 3) @ centre
        reach = np.abs(rotation.reshape(3, 3)) @ half
        corners += [middle - reach, middle + reach]
    if not corners:
        return 0.0
    half = (np.max(corners, axis=0) - np.min(corners, axis=0)) / 2
    extents = []
    for x, y, _ in turn.T:
        if (length := np.hypot(x, y)) > MIN_HORIZONTAL:
            sides = np.array([[x, y], [-y, x]]) / length
            extents += (np.abs(sides @ turn[:2]) @ half).tolist()
    return min(extents)


def _half_sizes(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """Return sizes that `support` understands; of a mesh those of its bounding box."""
    is_mesh = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    return (model.geom_aabb[geom, 3:] if is_mesh else model.geom_size[geom]).copy()
