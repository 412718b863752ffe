"""Goals: parsing, predicates against MuJoCo or hand-made scenes, compositions by brute force."""

import itertools
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_crl.errors import ConfigError
from vla_crl.sim.native.goals import (
    PREDICATES,
    Articulation,
    Goal,
    compile_goals,
    parse_goal,
)
from vla_crl.sim.native.kernel.predicates import Poses, goal_reached

SCENE = """
<mujoco>
  <worldbody>
    <geom name="floor" type="box" size="2 2 .1" pos="0 0 -.1"/>
    <geom name="zero" type="plane" size="2 2 .1" contype="0" conaffinity="0"/>
    <site name="grip" pos="0 0 1"/>
    <body name="cube"><freejoint/><geom type="box" size=".02 .02 .02"/></body>
    <body name="block" pos=".3 0 0"><freejoint/><geom type="box" size=".03 .03 .02"/></body>
    <body name="ball" pos="0 .3 0"><freejoint/><geom type="sphere" size=".02"/></body>
    <body name="can" pos=".3 .3 0"><freejoint/><geom type="cylinder" size=".02 .03"/></body>
    <body name="egg" pos=".6 .3 0"><freejoint/><geom type="ellipsoid" size=".02 .03 .04"/></body>
    <body name="pill" pos=".9 .3 0"><freejoint/>
      <geom type="capsule" size=".01 .03" pos=".01 0 .02" euler="30 40 0"/>
    </body>
    <body name="bin" pos="0 -.3 .1" mocap="true">
      <geom type="box" size=".06 .05 .01"/>
      <site name="bin" type="box" size=".05 .04 .03" pos=".01 0 .04" euler="0 0 30"/>
    </body>
    <body name="drawer" pos="-.5 0 .1">
      <joint name="slide" type="slide" axis="1 0 0"/><geom type="box" size=".05 .05 .02"/>
    </body>
  </worldbody>
</mujoco>
"""
THINGS = ("cube", "block", "ball", "can", "egg", "pill", "bin", "drawer")
KNOWN = {"thing": THINGS, "region": ("bin",), "joint": ("drawer",)}
JOINT = Articulation(qpos_index=42, on_at=0.1, off_at=0.02)
Evaluate = Callable[..., bool]


class Bench:
    """A scene in which things can be put anywhere and goals be asked."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        assert self.model.joint("slide").qposadr[0] == JOINT.qpos_index
        self.bodies = {name: self.model.body(name).id for name in THINGS}
        mujoco.mj_forward(self.model, self.data)

    def put(self, thing: str, position: Any, rotation: Rotation | None = None) -> None:
        start = self.model.jnt_qposadr[self.model.body_jntadr[self.bodies[thing]]]
        x, y, z, w = (rotation or Rotation.identity()).as_quat()
        self.data.qpos[start : start + 7] = (*position, w, x, y, z)
        mujoco.mj_forward(self.model, self.data)

    def holds(self, *goal: Any, grip: Any = (0, 0, 1), joint: Articulation = JOINT) -> bool:
        parsed = parse_goal(list(goal), "test", KNOWN)
        goals = compile_goals([parsed], self.model, self.bodies, {"drawer": joint})
        data = self.data
        poses = Poses(
            data.xpos, data.site_xpos, data.site_xmat, data.geom_xpos, data.geom_xmat, data.qpos,
            np.array(grip, float),
        )  # fmt: skip
        return goal_reached(goals, 0, poses)


@pytest.fixture
def bench() -> Bench:
    return Bench()


SHARED = Bench()
"""For property tests, which may not ask for a new fixture in every example."""


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([], r'goal \[\] is not a list like \["on", "cube", "plate"\]'),
        ("in", "goal 'in' is not a list like"),
        ([["in"]], "is not a list like"),
        (["inn", "cube", "bin"], "unknown predicate 'inn'. Did you mean 'in'"),
        (["in", "cub", "bin"], "'in': unknown thing 'cub'. Did you mean 'cube'"),
        (["in", "cube", "bun"], "'in': unknown region 'bun'. Did you mean 'bin'"),
        (["open", "cube"], "'open': unknown joint 'cube'.* Known: drawer"),
        (["on", "cube"], "'on' has 1 arguments, expected 2: thing, thing"),
        (["not"], "'not' has 0 parts, expected one goal"),
        (["not", ["open", "drawer"], ["open", "drawer"]], "'not' has 2 parts, expected one goal"),
        (["and"], "'and' has 0 parts, expected at least one goal"),
        (["or", ["open", "cube"]], "task 't'.*unknown joint 'cube'"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_goal(written, "suite 's': task 't'", KNOWN)


def test_terms_come_in_the_order_in_which_they_are_written() -> None:
    goal = parse_goal(
        ["and", ["open", "drawer"], ["or", ["in", "cube", "bin"], ["not", ["released", "ball"]]]],
        "test",
        KNOWN,
    )
    names = [(term.name, *term.arguments) for term in goal.terms()]
    assert names == [("open", "drawer"), ("in", "cube", "bin"), ("released", "ball")]


@settings(max_examples=60, deadline=None)
@given(
    offset=st.tuples(*[st.floats(-0.08, 0.08)] * 3),
)
def test_in_is_the_point_in_the_turned_box(offset: tuple[float, float, float]) -> None:
    centre, size = np.array([0.01, -0.3, 0.14]), np.array([0.05, 0.04, 0.03])
    local = Rotation.from_euler("z", 30, degrees=True).inv().apply(offset)
    margin = np.abs(np.abs(local) - size).min()
    SHARED.put("cube", centre + offset)
    if margin > 1e-9:
        assert SHARED.holds("in", "cube", "bin") == bool(np.all(np.abs(local) <= size))


@settings(max_examples=40, deadline=None)
@given(
    thing=st.sampled_from(["cube", "ball", "can", "egg", "pill"]),
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
)
def test_on_measures_from_the_lowest_point_of_a_turned_thing(
    thing: str, turn: tuple[float, float, float]
) -> None:
    rotation = Rotation.from_rotvec(turn)
    SHARED.put(thing, (0.0, -0.3, 0.5), rotation)
    model, data = SHARED.model, SHARED.data
    geoms = int(model.body_geomadr[SHARED.bodies[thing]]), model.geom("zero").id
    height = mujoco.mj_geomDistance(model, data, *geoms, 1.0, None)
    gap = height - 0.11  # the top of the bin's floor
    for clearance, expected in [(0.003, True), (0.006, False)]:
        SHARED.put(thing, (0.0, -0.3, 0.5 - gap + clearance), rotation)
        assert SHARED.holds("on", thing, "bin") == expected
    SHARED.put(thing, (0.0, 0.3, 0.02))


def corners(half_size: tuple[float, float, float], position: Any, turn: Rotation) -> np.ndarray:
    """The corners of a turned box, [8, 3] m."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    return np.asarray(position) + turn.apply(signs * half_size)


CUBE, BLOCK = (0.02, 0.02, 0.02), (0.03, 0.03, 0.02)
TURNS = st.tuples(*[st.floats(-3.1, 3.1)] * 3)


@settings(max_examples=80, deadline=None)
@given(
    offset=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05), st.floats(0.0, 0.08)),
    turn=TURNS,
    below=TURNS,
)
def test_on_is_the_gap_of_heights_and_the_distance_of_origins(
    offset: tuple[float, float, float],
    turn: tuple[float, float, float],
    below: tuple[float, float, float],
) -> None:
    upper, lower = Rotation.from_rotvec(turn), Rotation.from_rotvec(below)
    base = np.array([0.5, 0.5, 0.3])
    SHARED.put("block", base, lower)
    SHARED.put("cube", base + offset, upper)
    gap = corners(CUBE, base + offset, upper)[:, 2].min() - corners(BLOCK, base, lower)[:, 2].max()
    apart = np.hypot(*offset[:2])
    expected = -0.025 <= gap <= 0.004 and apart <= 0.03
    if min(abs(gap + 0.025), abs(gap - 0.004), abs(apart - 0.03)) > 1e-9:
        assert SHARED.holds("on", "cube", "block") == expected


@settings(max_examples=80, deadline=None)
@given(
    offset=st.tuples(st.floats(-0.15, 0.15), st.floats(-0.15, 0.15), st.floats(-0.03, 0.03)),
    turn=TURNS,
    direction=st.sampled_from(["left_of", "right_of", "in_front_of", "behind"]),
)
def test_beside_is_a_box_in_that_direction(
    offset: tuple[float, float, float], turn: tuple[float, float, float], direction: str
) -> None:
    rotation, base = Rotation.from_rotvec(turn), np.array([0.5, 0.5, 0.3])
    SHARED.put("block", base)
    SHARED.put("cube", base + offset, rotation)
    x, y, _ = offset
    along, across = {
        "left_of": (-y, x), "right_of": (y, x), "in_front_of": (x, y), "behind": (-x, y),
    }[direction]  # fmt: skip
    level = corners(CUBE, base + offset, rotation)[:, 2].min() - (base[2] - BLOCK[2])
    expected = 0.035 <= along <= 0.13 and abs(across) <= 0.04 and abs(level) <= 0.015
    margins = along - 0.035, along - 0.13, abs(across) - 0.04, abs(level) - 0.015
    if np.abs(margins).min() > 1e-9:
        assert SHARED.holds(direction, "cube", "block") == expected


@settings(max_examples=80, deadline=None)
@given(
    place=st.tuples(st.floats(-0.05, 0.25), st.floats(-0.1, 0.1)),
    heading=st.floats(-3.1, 3.1),
)
def test_between_is_a_box_about_the_middle_of_the_line(
    place: tuple[float, float], heading: float
) -> None:
    turn = Rotation.from_euler("z", heading)
    for name, point in (("block", (0.0, 0.0)), ("ball", (0.2, 0.0)), ("cube", place)):
        SHARED.put(name, turn.apply((*point, 0.02)))
    expected = abs(place[0] - 0.1) <= 0.05 and abs(place[1]) <= 0.04
    if min(abs(abs(place[0] - 0.1) - 0.05), abs(abs(place[1]) - 0.04)) > 1e-9:
        assert SHARED.holds("between", "cube", "block", "ball") == expected


def test_nothing_is_between_two_things_in_one_place(bench: Bench) -> None:
    for thing in ("block", "ball", "cube"):
        bench.put(thing, (0.1, 0.0, 0.02))
    assert not bench.holds("between", "cube", "block", "ball")


def test_goals_hold_as_many_truth_values_as_fit(bench: Bench) -> None:
    def nested(depth: int, innermost: list[Any]) -> list[Any]:
        goal: list[Any] = innermost
        for _ in range(depth):
            goal = ["and", ["not", ["open", "drawer"]], goal]
        return goal

    assert bench.holds(*nested(30, ["not", ["open", "drawer"]]))
    assert not bench.holds(*nested(30, ["open", "drawer"]))
    with pytest.raises(
        ConfigError, match="its goal needs 32 truth values at once, expected at most"
    ):
        bench.holds(*nested(31, ["open", "drawer"]))


@pytest.mark.parametrize(
    ("size", "turn"),
    [
        (".045 .05 .012", "0 0 0"),
        (".045 .05 .012", "35 0 0"),
        (".012 .045 .05", "0 90 0"),
        (".045 .012 .05", "0 0 90"),
        (".012 .045 .05", "-70 90 0"),
    ],
)
def test_a_slab_is_as_wide_as_it_lies_however_it_is_written(size: str, turn: str) -> None:
    model = mujoco.MjModel.from_xml_string(
        f'''<mujoco><compiler eulerseq="zyx"/><worldbody><body name="slab" euler="{turn}">
        <freejoint/><geom type="box" size="{size}"/></body></worldbody></mujoco>'''
    )
    goal = parse_goal(["released", "slab"], "test", {"thing": ("slab",)})
    goals = compile_goals([goal], model, {"slab": 1}, {})
    assert goals.half_width[1] == pytest.approx(0.045)


def test_on_is_what_a_thing_does_that_fell_on_another(bench: Bench) -> None:
    bench.put("block", (0.0, 0.0, 0.02))
    bench.put("cube", (0.005, 0.01, 0.07))
    assert not bench.holds("on", "cube", "block")  # 1 cm above it
    for _ in range(500):
        mujoco.mj_step(bench.model, bench.data)
    assert bench.holds("on", "cube", "block")
    assert not bench.holds("on", "block", "cube")
    bench.put("cube", (0.055, 0.0, 0.06))  # at the same height, beside the block
    assert not bench.holds("on", "cube", "block")


def test_on_a_plate_with_a_rim_allows_to_sink_in(bench: Bench) -> None:
    bench.put("block", (0.0, 0.0, 0.02))
    bench.put("ball", (0.0, 0.0, 0.04))  # its lowest point 2 cm below the block's top
    assert bench.holds("on", "ball", "block")
    bench.put("ball", (0.0, 0.0, 0.034))
    assert not bench.holds("on", "ball", "block")


def test_stacked_is_on_with_the_gripper_away(bench: Bench) -> None:
    bench.put("block", (0.0, 0.0, 0.02))
    bench.put("cube", (0.0, 0.0, 0.06))
    assert bench.holds("released", "cube", grip=(0, 0, 0.101))
    assert not bench.holds("released", "cube", grip=(0, 0, 0.099))
    assert bench.holds("stacked", "cube", "block", grip=(0, 0, 0.101))
    assert not bench.holds("stacked", "cube", "block", grip=(0, 0, 0.099))
    bench.put("cube", (0.0, 0.0, 0.08))
    assert not bench.holds("stacked", "cube", "block", grip=(0, 0, 0.2))


# The camera in front looks at the robot: its right is +y, towards it is +x.
@pytest.mark.parametrize(
    ("offset", "direction"),
    [
        ((0.0, -0.08), "left_of"),
        ((0.0, 0.08), "right_of"),
        ((0.08, 0.0), "in_front_of"),
        ((-0.08, 0.0), "behind"),
        ((0.039, -0.08), "left_of"),
        ((0.041, -0.08), None),  # too far off the line
        ((0.0, -0.034), None),  # too near
        ((0.0, -0.131), None),  # too far
    ],
)
def test_beside_is_seen_from_the_front(
    bench: Bench, offset: tuple[float, float], direction: str | None
) -> None:
    bench.put("block", (0.1, 0.0, 0.02))
    bench.put("cube", (0.1 + offset[0], offset[1], 0.02))
    for name in ("left_of", "right_of", "in_front_of", "behind"):
        assert bench.holds(name, "cube", "block") == (name == direction)
    bench.put("cube", (0.1 + offset[0], offset[1], 0.04))  # lifted by 2 cm
    assert not any(
        bench.holds(name, "cube", "block")
        for name in ("left_of", "right_of", "in_front_of", "behind")
    )


@settings(max_examples=40, deadline=None)
@given(offset=st.tuples(*[st.floats(-0.2, 0.2)] * 2))
def test_opposite_directions_mirror_each_other(offset: tuple[float, float]) -> None:
    SHARED.put("block", (0.1, 0.0, 0.02))
    SHARED.put("cube", (0.1 + offset[0], offset[1], 0.02))
    for one, other in (("left_of", "right_of"), ("behind", "in_front_of")):
        assert SHARED.holds(one, "cube", "block") == SHARED.holds(other, "block", "cube")


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ((0.1, 0.0), True),
        ((0.06, 0.0), True),  # the line is 0.2 m long: within 5 cm of its middle
        ((0.04, 0.0), False),
        ((0.1, 0.039), True),
        ((0.1, -0.041), False),
    ],
)
def test_between_is_near_the_middle_of_the_line(
    bench: Bench, position: tuple[float, float], expected: bool
) -> None:
    bench.put("block", (0.0, 0.0, 0.02))
    bench.put("ball", (0.2, 0.0, 0.02))
    bench.put("cube", (*position, 0.02))
    assert bench.holds("between", "cube", "block", "ball") == expected
    assert bench.holds("between", "cube", "ball", "block") == expected


@pytest.mark.parametrize("name", ["open", "turned_on", "pressed"])
def test_a_joint_is_on_past_one_threshold_and_off_past_the_other(bench: Bench, name: str) -> None:
    for position, is_on, is_off in [(0.0, False, True), (0.05, False, False), (0.11, True, False)]:
        bench.data.qpos[JOINT.qpos_index] = position
        assert bench.holds(name, "drawer") == is_on
        assert bench.holds("closed", "drawer") == bench.holds("turned_off", "drawer") == is_off


def test_a_joint_may_be_on_at_its_low_end(bench: Bench) -> None:
    pushed = Articulation(JOINT.qpos_index, on_at=-0.1, off_at=-0.02)
    for position, is_on, is_off in [(0.0, False, True), (-0.05, False, False), (-0.1, True, False)]:
        bench.data.qpos[JOINT.qpos_index] = position
        assert bench.holds("pressed", "drawer", joint=pushed) == is_on
        assert bench.holds("closed", "drawer", joint=pushed) == is_off


def goals(leaves: list[list[Any]]) -> st.SearchStrategy[list[Any]]:
    return st.recursive(
        st.sampled_from(leaves),
        lambda parts: st.one_of(
            st.lists(parts, min_size=1, max_size=3).map(lambda found: ["and", *found]),
            st.lists(parts, min_size=1, max_size=3).map(lambda found: ["or", *found]),
            parts.map(lambda part: ["not", part]),
        ),
        max_leaves=8,
    )


def truth(goal: list[Any], values: dict[str, bool]) -> bool:
    name, *parts = goal
    if name == "and":
        return all(truth(part, values) for part in parts)
    if name == "or":
        return any(truth(part, values) for part in parts)
    return not truth(parts[0], values) if name == "not" else values[name]


@settings(max_examples=100, deadline=None)
@given(
    goal=goals([["open", "drawer"], ["closed", "drawer"], ["released", "cube"]]),
    position=st.sampled_from([0.0, 0.05, 0.2]),
    is_released=st.booleans(),
)
def test_compositions_are_those_of_logic(
    goal: list[Any], position: float, is_released: bool
) -> None:
    SHARED.put("cube", (0.0, 0.0, 0.02))
    SHARED.data.qpos[JOINT.qpos_index] = position
    values = {"open": position == 0.2, "closed": position == 0.0, "released": is_released}
    grip = (0.0, 0.0, 0.1 if is_released else 0.03)
    assert SHARED.holds(*goal, grip=grip) == truth(goal, values)


def test_every_predicate_says_what_it_means() -> None:
    assert all(predicate.meaning for predicate in PREDICATES.values())
    assert Goal("open", ("drawer",)) == parse_goal(["open", "drawer"], "test", KNOWN)
