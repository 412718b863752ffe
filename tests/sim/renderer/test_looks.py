"""A texture that its file calls sRGB, in the looks of different versions of MuJoCo."""

import mujoco
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vla_crl.sim.renderer import BatchRenderer, GLRenderer

SIZE = 32
GREY = 188  # in sRGB; ((188 / 255 + .055) / 1.055)^2.4 = 0.5029 of full brightness


@pytest.fixture
def scene(tmp_path):
    """Return a model whose camera sees nothing but two halves, only the left one marked sRGB."""
    grey = Image.new("RGB", (8, 8), (GREY, GREY, GREY))
    grey.save(tmp_path / "plain.png")
    grey.save(tmp_path / "marked.png", pnginfo=_srgb_chunk())
    return mujoco.MjModel.from_xml_string(f"""
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <asset>
    <texture name="marked" type="2d" file="{tmp_path}/marked.png"/>
    <texture name="plain" type="2d" file="{tmp_path}/plain.png"/>
    <material name="marked" texture="marked"/><material name="plain" texture="plain"/>
  </asset>
  <worldbody>
    <camera name="above" pos="0 0 1" fovy="60"/>
    <geom type="box" size="1 2 .1" pos="-1 0 -.1" material="marked"/>
    <geom type="box" size="1 2 .1" pos="1 0 -.1" material="plain"/>
  </worldbody>
</mujoco>""")


def _srgb_chunk():
    info = PngInfo()
    info.add(b"sRGB", b"\0")
    return info


def halves(renderer, model, poses_of):
    image = renderer.render(*poses_of(model))[0, 0]
    return image[SIZE // 2, SIZE // 4, 0], image[SIZE // 2, 3 * SIZE // 4, 0]


LOOKS = [("mujoco_3_8", (128, GREY)), ("mujoco_3_2", (GREY, GREY))]


@pytest.mark.parametrize(("look", "expected"), LOOKS)
def test_only_the_newer_look_decodes_marked_textures(look, expected, scene, poses_of):
    assert scene.tex_colorspace.tolist() == [
        mujoco.mjtColorSpace.mjCOLORSPACE_SRGB,
        mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR,
    ]
    renderer = BatchRenderer(scene, ["above"], SIZE, SIZE, look=look)
    assert halves(renderer, scene, poses_of) == expected


@pytest.mark.render
@pytest.mark.parametrize(("look", "expected"), LOOKS)
def test_mujocos_renderer_has_both_looks(look, expected, scene, poses_of):
    with GLRenderer(scene, ["above"], SIZE, SIZE, look=look) as renderer:
        seen = halves(renderer, scene, poses_of)
    np.testing.assert_allclose(np.array(seen, int), expected, atol=1)
