"""What a scene has is simulated and drawn as MuJoCo would, or refused by name."""

from collections.abc import Callable

import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.native.suite import Suite

Loader = Callable[..., Suite]
ROBOT = "../robots/arm7.xml"
TABLE = '<geom name="table"'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('timestep=".005"', 'timestep="0"', "scene.xml: option timestep is 0 s, expected more"),
        ('timestep=".005"', 'timestep="-.005"', "option timestep is -0.005 s, expected more than"),
        ('fovy="32"', 'fovy="0"', "scene.xml: camera 'agentview' has fovy 0; expected more than 0"),
        (
            'fovy="36"',
            'projection="orthographic" fovy="2"',
            "camera 'overview' is orthographic; only perspective",
        ),
        (
            'fovy="32"',
            'focal=".05 .05" sensorsize=".04 .03" resolution="64 64"',
            "camera 'agentview' has a picture that is stretched",
        ),
        (
            'fovy="32"',
            'focal=".05 .05" sensorsize=".04 .04" resolution="64 64" principal=".01 0"',
            "camera 'agentview' has a picture that is stretched or off its axis",
        ),
        (
            '<light name="key"',
            '<light name="lamp" cutoff="120"/><light name="key"',
            "scene.xml: light 'lamp' .* has cutoff 120",
        ),
        (
            TABLE,
            '<flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" pos="0 0 2" '
            'dim="2" mass="1" radius=".01" rigid="true"/>' + TABLE,
            r"flex 'cloth' \(id 0\) would be seen in MuJoCo, .* Hide it: group='3'",
        ),
        (
            "</mujoco>",
            '<tendon><spatial name="rope"><site site="tray"/><site site="basket"/></spatial>'
            "</tendon></mujoco>",
            "tendon 'rope' .* would be seen in MuJoCo",
        ),
        (
            "</mujoco>",
            '<asset><hfield name="hills" nrow="2" ncol="2" size="1 1 1 1"/></asset><worldbody>'
            '<geom name="ground" type="hfield" hfield="hills" pos="0 0 -9"/></worldbody></mujoco>',
            "scene.xml: geom 'ground' .* is of type hfield; only plane",
        ),
    ],
)
def test_a_scene_that_would_be_another_is_refused(
    load_changed: Loader, old: str, new: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        load_changed(old, new, "scene.xml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('dir="-.25 .37 -1"', 'dir="nan .37 -1"', r"light 'key' \(id 0\): light_dir has nan"),
        ('pos=".62 0 .62"', 'pos="nan 0 .62"', r"camera 'agentview' \(id 0\): cam_pos has nan"),
        ('rgba=".85 .12 .1 1"', 'rgba="nan 0 0 1"', "geom 'red_cube_geom' .*: geom_rgba has nan"),
        ('pos=".21 .09 0"', 'pos="inf .09 0"', "body 'basket' .*: body_pos has inf"),
        ('ambient=".35 .35 .35"', 'ambient="nan 0 0"', "scene.xml: the scene's ambient has nan"),
        ('zfar="20"', 'zfar="nan"', "scene.xml: the scene's zfar has nan, expected finite"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(
    load_changed: Loader, old: str, new: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        load_changed(old, new, "scene.xml")


def test_what_is_hidden_may_be_there(load_changed: Loader):
    rope = '<spatial name="rope" group="3"><site site="tray"/><site site="basket"/></spatial>'
    suite = load_changed("</mujoco>", f"<tendon>{rope}</tendon></mujoco>", "scene.xml")
    assert suite.scenes[0].model.ntendon == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '<body name="hand" pos="0 0 .107" quat=".9238795 0 0 -.3826834" gravcomp="1">',
            '<body name="hand" pos="0 0 .107" quat=".9238795 0 0 -.3826834" gravcomp="1">'
            '<joint name="wrist" type="hinge" axis="0 0 1" stiffness="9"/>',
            "arm.joints: joint 'wrist' of body 'hand' moves 'grip', too; name it there",
        ),
        ('type="slide" range="0 .04"', 'type="hinge" range="0 .04"', "'finger_joint1' is no slide"),
        (
            'type="slide" range="0 .04"',
            'type="slide" range="0 .03"',
            "arm.fingers: a finger that is open is 0.04, but joint 'finger_joint1' goes",
        ),
    ],
)
def test_a_robot_that_is_commanded_otherwise_is_refused(
    load_changed: Loader, old: str, new: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        load_changed(old, new, ROBOT)


def test_a_hinge_of_a_thing_is_at_the_origin_of_its_body(load_changed: Loader):
    old = '<joint name="knob" type="hinge"'
    with pytest.raises(
        ConfigError, match="thing 'knob': hinge 'knob' is not at the origin of body"
    ):
        load_changed(old, f'{old} pos=".01 0 0"', "scene.xml", suite="tabletop_goal")


def test_six_joints_are_no_free_joint(load_changed: Loader):
    slides = "".join(f'<joint type="slide" axis="{axis}"/>' for axis in ("1 0 0", "0 1 0", "0 0 1"))
    old = '<body name="red_cube"><freejoint/>'
    new = f'<body name="red_cube">{slides}{slides.replace("slide", "hinge")}'
    with pytest.raises(ConfigError, match="body 'red_cube' is fixed to the scene, expected a free"):
        load_changed(old, new, "scene.xml")


def test_a_plugin_is_refused(load_changed: Loader):
    plugin = (
        '<extension><plugin plugin="mujoco.pid"><instance name="pid"/></plugin></extension>'
        '<actuator><plugin name="a" joint="joint1" plugin="mujoco.pid" instance="pid"/></actuator>'
    )
    with pytest.raises(ConfigError, match=r"scene.xml: plugin 'pid' \(id 0\): no plugins are sim"):
        load_changed("</mujoco>", f"{plugin}</mujoco>", "scene.xml")
