"""What MuJoCo would show is drawn, or refused by name."""

import mujoco
import pytest

from vla_crl.errors import SpecError
from vla_crl.sim.renderer import BatchRenderer

ROPE = (
    '<site name="a"/><site name="b" pos="1 0 0"/></worldbody><tendon><spatial name="rope" {}>'
    '<site site="a"/><site site="b"/></spatial></tendon><worldbody>'
)
SKIN = (
    '<body name="bone"><geom size=".1"/></body></worldbody><deformable><skin name="skin" {} '
    'vertex="0 0 0 1 0 0 0 1 0" face="0 1 2"><bone body="bone" bindpos="0 0 0" '
    'bindquat="1 0 0 0" vertid="0 1 2" vertweight="1 1 1"/></skin></deformable><worldbody>'
)
CLOTH = (
    '<flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" dim="2" mass="1" '
    'radius=".01" {}/>'
)
LAMP = '<light name="lamp" pos="0 0 2" type="spot" {}/>'


def scene(bodies: str, visual: str = "") -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><visual>{visual}</visual><worldbody><camera name="eye" pos="0 -2 1"/>{bodies}'
        "</worldbody></mujoco>"
    )


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (ROPE, r"BatchRenderer: tendon 'rope' \(id 0\) would be seen in MuJoCo, but of tendons"),
        (SKIN, "skin 'skin' .* would be seen"),
        (CLOTH, "flex 'cloth' .* would be seen"),
    ],
)
def test_what_is_no_geom_is_hidden_or_refused(element: str, message: str):
    with pytest.raises(SpecError, match=message):
        BatchRenderer(scene(element.format("")), ["eye"], 8, 8)
    BatchRenderer(scene(element.format('group="3"')), ["eye"], 8, 8)


@pytest.mark.parametrize(
    ("light", "message"),
    [
        ('cutoff="90.5"', "light 'lamp' .* has cutoff 90.5; expected 0 to 90 degrees, or 180"),
        ('cutoff="179"', "has cutoff 179"),
        ('cutoff="181"', "has cutoff 181"),
        ('cutoff="-1"', "has cutoff -1"),
        ('exponent="129"', "has exponent 129; expected 0 to 128"),
        ('exponent="-1"', "has exponent -1"),
        ('attenuation="1 -1 0"', "has attenuation 1 -1 0; expected numbers from 0 on, not all"),
        ('attenuation="0 0 0"', "has attenuation 0 0 0"),
    ],
)
def test_a_spot_that_opengl_knows_otherwise_is_refused(light: str, message: str):
    with pytest.raises(SpecError, match=message):
        BatchRenderer(scene(LAMP.format(light)), ["eye"], 8, 8)


@pytest.mark.parametrize("light", ['cutoff="90"', 'cutoff="180"', 'cutoff="200" active="false"'])
def test_other_spots_are_drawn(light: str):
    BatchRenderer(scene(LAMP.format(light)), ["eye"], 8, 8)


def test_mujoco_draws_eight_lights():
    lamps = "".join(f'<light name="lamp{number}" directional="true"/>' for number in range(8))
    with pytest.raises(SpecError, match=r"'lamp7' \(id 7\) is one too many: MuJoCo draws 8 lights"):
        BatchRenderer(scene(lamps), ["eye"], 8, 8)
    BatchRenderer(scene(lamps, '<headlight active="0"/>'), ["eye"], 8, 8)


@pytest.mark.parametrize("fovy", ["0", "-30"])
def test_a_field_of_view_is_between_zero_and_a_half_turn(fovy: str):
    with pytest.raises(SpecError, match=f"camera 'odd' has fovy {fovy}; expected more than 0"):
        BatchRenderer(scene(f'<camera name="odd" fovy="{fovy}"/>'), ["odd"], 8, 8)


def test_a_camera_sees_farther_than_its_near_plane():
    with pytest.raises(SpecError, match="camera 'eye' sees from .* zfar must be greater"):
        BatchRenderer(scene("<geom size='1'/>", '<map znear="1" zfar=".5"/>'), ["eye"], 8, 8)
