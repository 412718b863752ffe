from collections.abc import Callable

import mujoco
import pytest

from vla_crl.catalog import catalog_dir, list_suites, suite_path
from vla_crl.config import read_toml
from vla_crl.errors import ConfigError
from vla_crl.sim.native.suite import Suite, load_suite

Loader = Callable[..., Suite]


OURS = [
    name for name in list_suites() if "backend" not in read_toml(suite_path(name) / "suite.toml")
]
"""Suites of the project's own simulation."""


@pytest.mark.parametrize("name", OURS)
def test_every_suite_splits_tasks_that_differ(name: str):
    suite = load_suite(name)
    train, heldout = suite.tasks_of("train"), suite.tasks_of("heldout")
    expected = (30, 10) if name == "tabletop_30" else (5, 5)
    assert (len(train), len(heldout)) == expected
    assert len(suite.tasks) == sum(expected)
    differences = {(task.instruction, task.scene, task.variation) for task in suite.tasks}
    assert len(differences) == len(suite.tasks)


def test_every_instruction_names_the_thing_and_the_region_of_its_goal(suite: Suite):
    for task in suite.tasks:
        thing, region = task.goal.arguments
        assert task.instruction == f"pick up the {thing} and place it in the {region}"
        assert len({task.instruction, *task.paraphrases}) == 3
        for sentence in task.paraphrases:
            assert f"the {thing}" in sentence
            assert f"the {region}" in sentence


def test_every_picture_fits_five_tasks(suite: Suite):
    for index, scene in enumerate(suite.scenes):
        moved = {task.goal.arguments[0] for task in suite.tasks if task.scene == index}
        assert moved | {"basket", "tray"} == set(scene.bodies)
        assert len(moved) == 5


@pytest.mark.parametrize("name", OURS)
def test_the_task_card_says_what_the_suite_file_says(name: str):
    suite = load_suite(name)
    card = (catalog_dir("envs") / name / "README.md").read_text(encoding="utf-8")
    for task in suite.tasks:
        split = "held out" if task.split == "heldout" else task.split
        assert f"| `{task.name}` | {task.instruction} | {split} |" in card
    words = " ".join(card.split())
    assert f"at most {suite.horizon} control steps" in words
    assert f"draws from the first {len(suite.train_ids):,}" in words
    assert f"{len(suite.test_ids)} after them" in words


def test_the_card_of_the_robot_says_what_the_suite_file_says(suite: Suite):
    arm = suite.scenes[0].config.arm
    card = (catalog_dir("envs") / suite.name / "README.md").read_text(encoding="utf-8")
    assert f"(1 = {arm.max_step_m:g} m)" in card
    assert f"(1 = {arm.max_step_rad:g} rad)" in card


def test_a_control_step_is_twenty_physics_steps(suite: Suite):
    assert [scene.num_substeps for scene in suite.scenes] == [20, 20]  # 0.1 s of 0.005 s each


def test_indices_are_positions_in_the_file(suite: Suite):
    assert suite.task_index("green_cube_in_tray") == 1
    assert suite.thing_index("purple ball") == 2  # the first scene's come first
    for scene, compiled in enumerate(suite.scenes):
        for name, body in zip(suite.things, suite.thing_bodies[scene], strict=True):
            is_there = name in compiled.bodies
            assert (body >= 0) == is_there
            assert not is_there or compiled.model.body(body).name == name.replace(" ", "_")


def test_an_unknown_suite_names_the_nearest_one():
    with pytest.raises(
        ConfigError, match="unknown suite 'tabletop_obj'. Did you mean 'tabletop_object"
    ):
        load_suite("tabletop_obj")


def test_an_unknown_task_names_the_nearest_one(suite: Suite):
    with pytest.raises(ConfigError, match="unknown task 'red_cube'. Did you mean 'red_cube_in_"):
        suite.task_index("red_cube")


def test_an_unknown_thing_names_the_nearest_one(suite: Suite):
    with pytest.raises(ConfigError, match="unknown thing 'red cub'. Did you mean 'red cube'"):
        suite.thing_index("red cub")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('body = "red_cube"', 'body = "red_cub"', "unknown body 'red_cub'. Did you mean 'red_cub"),
        ('["agentview"', '["agent"', "unknown camera 'agent'. Did you mean 'agentview'"),
        ('["joint1"', '["joint_1"', "unknown joint 'joint_1'. Did you mean"),
        ('"finger_joint2"', '"finger2"', "unknown joint 'finger2'. Did you mean 'finger_joint2'"),
        ('grip_site = "grip"', 'grip_site = "tool"', "unknown site 'tool'"),
        ('cube", "tray"]', 'cube", "trai"]', "'in': unknown region 'trai'. Did you mean 'tray'"),
        ('"in", "red cube"', '"in", "red cub"', "unknown thing 'red cub'. Did you mean 'red"),
        ("green_cube_in_tray", "red_cube_in_basket", "task names must be unique.*red_cube_in_bas"),
        ('body = "basket"', 'body = "hand"', "body 'hand' is fixed to the scene, expected a free"),
        ('base = "arm_base"', 'base = "hand"', "arm.base: body 'hand' is fixed to the scene, ex"),
        ('cube", "tray"]', 'cube", "grip"]', "unknown region 'grip'.*Known: basket, tray"),
        (
            'body = "tray"',
            'body = "tray"\non_at = 1.0',
            "joint, handle, on_at, off_at belong together",
        ),
        (
            'body = "tray"',
            'body = "tray"\njoint = "joint1"\nhandle = "tray"\non_at = 1.0\noff_at = 1.0',
            "thing 'tray': on_at and off_at are both 1.0",
        ),
        (
            'body = "tray"',
            'body = "tray"\njoint = "joint_1"\nhandle = "tray"\non_at = 1.0\noff_at = 0.0',
            "unknown joint 'joint_1'. Did you mean 'joint1'",
        ),
        ("2.2267522, ", "", "arm.rest_joints_rad has 6 numbers, expected 7, one per joint"),
        ("control_hz = 10.0", "control_hz = 7.0", "0.142857 s is no multiple of the scene's time"),
        ("horizon = 48", "horizonn = 48", "unknown key 'horizonn'"),
        ('["in", "red cube", "basket"]', '["inn", "red cube"]', "unknown predicate 'inn'. Did"),
        ('["red cube", "blue', '["red cub", "blue', "unknown thing 'red cub'. Did you mean 'red c"),
        (
            '["red cube", "blue',
            '["blue',
            "'red_cube_in_basket': its goal names 'red cube', which its things",
        ),
        ('["in", "red cube"', '["in", "cup"', "unknown thing 'cup'.*Known: basket, blue cylinder"),
        (
            'goal = ["in", "red cube"',
            'start = { tray = 0.1 }\ngoal = ["in", "red cube"',
            "task 'red_cube_in_basket': start: unknown joint 'tray'",
        ),
        (
            'scene = "scene.xml"',
            'scene = "scen.xml"',
            "scen.xml: cannot be read .No such file",
        ),
        ("control_hz = 10.0", "control_hz = 0.0", "control_hz = 0.0, expected at least 0.1"),
        ("control_hz = 10.0", "control_hz = nan", "control_hz = nan, expected a finite number"),
        ("horizon = 48", "horizon = 0", "horizon = 0, expected at least 1"),
        (
            "num_train_states = 4000",
            "num_train_states = 0",
            "train_states = 0, expected at least 1",
        ),
        (
            "num_test_states = 200",
            "num_test_states = 200000",
            "_test_states = 200000, .* at most 100000",
        ),
        ('["agentview", "eye_in_hand"]', "[]", "cameras has 0 entries, expected at least 1"),
        ('"eye_in_hand"', '"agentview"', r"the camera \['agentview'\] is given more than once"),
        ('name = "tray"', 'name = "basket"', r"the name \['basket'\] is given more than once"),
        ('body = "tray"', 'body = "basket"', r"the body \['basket'\] is given more than once"),
        ("max_step_m = 0.05", "max_step_m = -0.05", "max_step_m = -0.05, expected more than 0"),
        ("max_step_rad = 0.5", "max_step_rad = nan", "max_step_rad = nan, expected a finite"),
        ('"finger_joint1"', '"joint1"', "joints and fingers are .*, expected each name once"),
        (
            "_m = [-0.18, -0.20",
            "_m = [0.26, -0.20",
            "workspace_low_m..workspace_high_m from .*low be",
        ),
        (
            "free_low_m = [-0.15",
            "free_low_m = [0.1",
            "free_low_m..free_high_m from .*, expected low",
        ),
        (
            "grip_low_m = [-0.11",
            "grip_low_m = [5.0",
            "grip_low_m..grip_high_m from .*, expected low",
        ),
        ("max_yaw_rad = 0.4", "max_yaw_rad = nan", "max_yaw_rad = nan, expected a finite"),
        ("distance_m = 0.082", "distance_m = -1.0", "free_distance_m = -1.0, expected at least 0"),
        (
            'body = "tray"',
            'body = "tray"\nlow_m = [0.2, 0.0]\nhigh_m = [0.1, 0.0]',
            "thing 'tray': low_m..high_m from",
        ),
        (
            'body = "tray"',
            'body = "tray"\njoint = "joint1"\nhandle = "tray"\non_at = 9.0\noff_at = 0.0',
            "thing 'tray': joint 'joint1' is no hinge or slide of body 'tray'",
        ),
        ("horizon = 48", "horizon = 100001", "horizon = 100001, .* at most 100000"),
        ("control_hz = 10.0", "control_hz = 1e12", "at least 0.1 and at most 10000"),
        ("control_hz = 10.0", "control_hz = 1e-6", "control_hz = 1e-06, expected at least 0.1"),
        (
            "rest_joints_rad = [0.0",
            "rest_joints_rad = [nan",
            r"rest_joints_rad\[0\] = nan, expected a",
        ),
        (
            '"joint1", "joint2"',
            '"joint2", "joint1"',
            "arm.joints: 'joint1' is no hinge below 'link2'; name the joints in their order",
        ),
        ('"joint7"]', '"joint7", "red_cube_joint"]', "unknown joint 'red_cube_joint'"),
        (
            'grip_site = "grip"',
            'grip_site = "tray"',
            "grip_site: 'tray' is not on what 'joint7'",
        ),
        ('body = "tray"', 'body = "arm_base"', "thing 'tray': body 'arm_base' is the arm's"),
        ("put the red cube in the basket", "käse", "'käse', expected at most 200 printable ASCII"),
        ("put the red cube in the basket", "put " * 51, "expected at most 200 printable ASCII"),
        (
            'name = "pink_egg_in_tray"',
            'name = "egg in tray"',
            "task 'egg in tray': expected letters",
        ),
        ('"put the red cube in the basket"', '" "', "'red_cube_in_basket': an instruction without"),
        (
            '["in", "red cube", "basket"]',
            '["on", "tray", "tray"]',
            "'on' relates a thing to itself",
        ),
        (
            'things = ["red cube", ',
            'things = ["tray", "red cube", ',
            "'tray' has no free joint and so",
        ),
    ],
)
def test_a_faulty_suite_file_is_refused(load_changed: Loader, old: str, new: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_changed(old, new)


def test_a_faulty_scene_is_refused(load_changed: Loader):
    with pytest.raises(ConfigError, match="scene.xml: MuJoCo cannot compile it: .*colour"):
        load_changed('fovy="32"', 'colour="32"', file="scene.xml")


def test_a_suite_without_tasks_is_refused(load_changed: Loader):
    text = (catalog_dir("envs") / "tabletop_object" / "suite.toml").read_text(encoding="utf-8")
    first = text.index("[[tasks]]")
    head = text[: text.index("[arm]")]
    with pytest.raises(ConfigError, match="suite.toml: tasks is empty, expected at least one task"):
        load_changed(text, f"{head}tasks = []\n{text[len(head) : first]}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "on_at = 0.07",
            "on_at = 9.0",
            "'drawer': on_at is 9, but joint 'drawer' goes",
        ),
        ('joint = "knob"', 'joint = "drawer"', "joint 'drawer' is no hinge or slide of body 'knob"),
        ('"finger_joint2"', '"drawer"', "arm: joint 'drawer' has no actuator that moves it"),
        ('"joint7"]', '"drawer"]', "arm: joint 'drawer' has no actuator"),
    ],
)
def test_faulty_moving_parts_are_refused(load_changed: Loader, old: str, new: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_changed(old, new, suite="tabletop_goal")


def test_joints_are_named(load_changed: Loader):
    begin, end = 'joints = ["joint1"', "rest_joints_rad = ["
    text = (catalog_dir("envs") / "tabletop_object" / "suite.toml").read_text(encoding="utf-8")
    start = text.index(begin)
    line = text[start : text.index("\n", start)]
    with pytest.raises(ConfigError, match="joints has 0 entries, expected at least 1"):
        load_changed(line, "joints = []")
    assert end in text


def test_a_goal_about_something_left_out_is_refused(load_changed: Loader):
    text = (catalog_dir("envs") / "tabletop_object" / "suite.toml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith('goal = ["in", "red cube"'))
    message = "task 'red_cube_in_basket': its goal names 'pink egg', which its things leave out"
    with pytest.raises(ConfigError, match=message):
        load_changed(line, line.replace("red cube", "pink egg"))


def test_an_object_is_one_body(load_changed: Loader):
    old = '<body name="red_cube"><freejoint/>'
    lid = '<body name="lid"><joint type="hinge"/><geom size=".01" pos="0 0 .03"/></body>'
    with pytest.raises(ConfigError, match="body 'red_cube' has bodies within; an object is one"):
        load_changed(old, old + lid, "scene.xml")


def test_an_object_has_a_geom_of_its_own(load_changed: Loader):
    text = (catalog_dir("envs") / "tabletop_object" / "scene.xml").read_text(encoding="utf-8")
    (geom,) = (line for line in text.splitlines() if "red_cube_geom" in line)
    inertia = '<inertial pos="0 0 0" mass=".1" diaginertia="1e-4 1e-4 1e-4"/>'
    with pytest.raises(ConfigError, match="body 'red_cube' has no geom of its own"):
        load_changed(geom, f"{inertia}<body>{geom}</body>", file="scene.xml")


def test_a_world_never_begins_anew_by_itself(load_changed: Loader):
    flag = '<flag autoreset="disable" sleep="enable"/>'
    (model, *_) = (s.model for s in load_changed(flag, "", file="scene.xml").scenes)
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_AUTORESET
