"""The same scenes as MuJoCo's own renderer draws them, pixel by pixel."""

import mujoco
import numpy as np
import pytest

from vla_crl.sim.renderer import BatchRenderer

pytestmark = pytest.mark.render

SIZE = 256

TABLE = """
<mujoco>
  <visual><headlight ambient=".2 .2 .2" diffuse=".3 .3 .3" specular="0 0 0"/></visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1=".3 .5 .7" rgb2=".1 .1 .2"
             width="128" height="768"/>
    <texture name="checker" type="2d" builtin="checker" rgb1=".9 .7 .5" rgb2=".3 .4 .5"
             width="512" height="512"/>
    <material name="squares" texture="checker" texrepeat="3 2" specular="0"/>
    <material name="metres" texture="checker" texrepeat="1 1" texuniform="true" specular="0"/>
    <material name="matt" specular="0" rgba=".2 .7 .3 1"/>
    <material name="glowing" specular="0" rgba=".2 .5 .8 1" emission=".4"/>
  </asset>
  <default><geom material="matt"/></default>
  <worldbody>
    <light directional="true" dir="1 1 -1" diffuse=".4 .3 .2" specular="0 0 0"/>
    <geom type="plane" size="0 0 .1" material="metres"/>
    <geom type="plane" size=".9 .7 .1" pos="0 0 .1" euler="5 8 20" material="squares"/>
    <geom type="sphere" size=".2" pos="-.5 0 .4" rgba=".9 .2 .2 1"/>
    <geom type="capsule" size=".1 .25" pos="0 .4 .5" euler="30 50 0"/>
    <geom type="ellipsoid" size=".3 .15 .1" pos=".5 .3 .4" euler="20 30 40" material="glowing"/>
    <geom type="cylinder" size=".15 .2" pos=".3 -.3 .4" euler="40 10 0" rgba=".9 .9 .2 1"/>
    <geom type="box" size=".15 .1 .2" pos="-.2 -.4 .4" euler="10 20 30" rgba=".8 .3 .8 1"/>
    <geom type="box" size=".05 .05 .6" pos="-.8 .6 .4" rgba=".3 .3 .3 1"/>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
    <camera name="above" pos=".1 -.1 2" xyaxes="1 .2 0 -.2 1 0" fovy="70"/>
    <camera name="horizon" pos="2 -2 .4" xyaxes="1 1 0 0 0 1" fovy="60"/>
    <camera name="rolled" pos="-1.5 1 .8" xyaxes="-.6 -1 .4 .5 .1 1" fovy="80"/>
    <camera name="inside_the_ball" pos="-.45 .05 .4" xyaxes="0 1 0 0 0 1" fovy="90"/>
  </worldbody>
</mujoco>
"""

# Everything here reaches from in front of the camera to behind it.
BESIDE_THE_EYE = """
<mujoco>
  <visual>
    <map znear=".05"/>
    <headlight ambient=".3 .3 .3" diffuse=".5 .5 .5" specular="0 0 0"/>
  </visual>
  <statistic extent="1" center="0 0 0"/>
  <asset><material name="matt" specular="0"/></asset>
  <default><geom material="matt"/></default>
  <worldbody>
    <geom type="plane" size="3 3 .1" pos="0 0 -.3" rgba=".5 .5 .5 1"/>
    <geom type="box" size=".1 .6 .05" pos="-.3 0 0" euler="0 20 10" rgba=".8 .3 .3 1"/>
    <geom type="capsule" size=".06 .5" pos=".3 .1 0" euler="80 0 0" rgba=".3 .8 .3 1"/>
    <geom type="cylinder" size=".08 .4" pos="0 .1 -.2" euler="85 0 0" rgba=".3 .3 .8 1"/>
    <geom type="ellipsoid" size=".1 .5 .1" pos="0 .2 .25" rgba=".8 .8 .3 1"/>
    <geom type="sphere" size=".1" pos=".15 .02 .2" rgba=".3 .8 .8 1"/>
    <geom type="box" size=".02 .02 .02" pos="-.05 .06 -.02" rgba=".9 .9 .9 1"/>
    <camera name="ahead" pos="0 0 0" xyaxes="1 0 0 0 0 1" fovy="90"/>
    <camera name="tilted" pos="0 0 0" xyaxes="1 0 .2 0 .4 1" fovy="75"/>
  </worldbody>
</mujoco>
"""

# Only round geoms: MuJoCo lights vertices, and these have enough of them for a cone of light.
SPOT = """
<mujoco>
  <visual><headlight ambient=".1 .1 .1" diffuse=".1 .1 .1" specular="0 0 0"/></visual>
  <asset><material name="matt" specular="0"/></asset>
  <default><geom material="matt" rgba=".8 .7 .6 1"/></default>
  <worldbody>
    <light pos="0 0 2" dir=".2 0 -1" cutoff="35" exponent="6" attenuation=".5 .2 .1"
           diffuse=".8 .8 .6" ambient=".1 .1 .1" specular="0 0 0"/>
    <light pos="1 -1 1" dir="-1 1 -1" cutoff="60" exponent="0" diffuse=".2 .2 .3" specular="0 0 0"/>
    <geom type="sphere" size=".6" pos="0 0 .3"/>
    <geom type="capsule" size=".2 .4" pos=".9 0 .3" euler="20 10 0"/>
    <geom type="ellipsoid" size=".4 .2 .3" pos="-.9 0 .3"/>
    <camera name="front" pos="0 -3 1.4" xyaxes="1 0 0 0 .4 1" fovy="50"/>
  </worldbody>
</mujoco>
"""

MESHES = """
<mujoco>
  <visual><headlight ambient=".2 .2 .2" diffuse=".3 .3 .3" specular="0 0 0"/></visual>
  <asset>
    <texture name="stripes" type="2d" builtin="gradient" mark="cross" rgb1=".9 .7 .2"
             rgb2=".1 .2 .6" markrgb="1 1 1" width="64" height="64"/>
    <texture name="faces" type="cube" builtin="gradient" mark="edge" rgb1=".8 .3 .2"
             rgb2=".1 .5 .2" markrgb="1 1 1" width="64" height="384"/>
    <material name="matt" specular="0" rgba=".3 .6 .8 1"/>
    <material name="flat" texture="stripes" texrepeat="2 1" specular="0"/>
    <material name="uniform" texture="stripes" texrepeat="3 3" texuniform="true" specular="0"/>
    <material name="cube" texture="faces" specular="0"/>
    <mesh name="ball" builtin="sphere" params="4" scale=".25 .25 .25"/>
    <mesh name="cone" builtin="cone" params="30 .4" scale=".2 .2 .3"/>
    <mesh name="torus" builtin="supertorus" params="40 .4 1 1" scale=".2 .2 .2"/>
    <mesh name="tetra" vertex="0 0 0 .5 0 0 0 .5 0 0 0 .5"/>
  </asset>
  <default><geom material="matt"/></default>
  <worldbody>
    <light directional="true" dir="1 1 -1" diffuse=".4 .3 .2" specular="0 0 0"/>
    <light pos="0 -1 3" dir="0 .3 -1" diffuse=".2 .2 .2" cutoff="70" exponent="0"
           specular="0 0 0"/>
    <geom type="plane" size="2 2 .1" material="uniform"/>
    <geom type="mesh" mesh="ball" pos="-.6 0 .4" material="flat"/>
    <geom type="mesh" mesh="cone" pos="0 .1 .3" euler="20 30 0" material="cube"/>
    <geom type="mesh" mesh="torus" pos=".6 0 .4" euler="30 0 20"/>
    <geom type="mesh" mesh="tetra" pos="-.3 -.6 .1" rgba=".9 .3 .3 1"/>
    <geom type="box" size=".2 .15 .1" pos=".3 -.5 .1" euler="0 0 30" material="flat"/>
    <geom type="box" size=".1 .1 .1" pos=".8 -.6 .2" euler="40 20 30" material="cube"/>
    <geom type="sphere" size=".15" pos="-.8 -.6 .2" material="cube"/>
    <geom type="cylinder" size=".1 .3" pos="-.1 .7 .4" rgba=".2 .8 .2 .4"/>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
    <camera name="close" pos="-.1 -.45 .5" xyaxes="1 -.2 0 0 .5 1" fovy="90"/>
  </worldbody>
</mujoco>
"""

VIEWS = [
    (TABLE, "front", 4.5),
    (TABLE, "above", 4.5),
    (TABLE, "horizon", 3.0),
    (TABLE, "rolled", 4.5),
    (TABLE, "inside_the_ball", 2.0),
    (BESIDE_THE_EYE, "ahead", 1.5),
    (BESIDE_THE_EYE, "tilted", 1.5),
    (SPOT, "front", 1.5),
    (MESHES, "front", 1.0),
    (MESHES, "close", 1.0),
]
"""Scene, camera and the greatest mean absolute difference of colours, of 255.

MuJoCo smooths edges and, in the first scene, the edges inside the textures.
"""


def reference(model, camera):
    """Draw with MuJoCo: colours without shadows, reflections and haze, and geom ids."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.update_scene(data, camera)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_HAZE"):
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        image = renderer.render()
        renderer.enable_segmentation_rendering()
        return image, renderer.render()[..., 0]


@pytest.mark.parametrize(("xml", "camera", "tolerance"), VIEWS)
def test_image_agrees_with_mujocos_renderer(xml, camera, tolerance, poses_of):
    model = mujoco.MjModel.from_xml_string(xml)
    expected_image, expected_ids = reference(model, camera)
    renderer = BatchRenderer(model, [camera], SIZE, SIZE, level_of_detail=False)
    ids = renderer.segment(*poses_of(model))[0, 0]
    image = renderer.render(*poses_of(model))[0, 0]

    overlap = ((ids >= 0) & (expected_ids >= 0)).sum()
    union = ((ids >= 0) | (expected_ids >= 0)).sum()
    assert overlap / union >= 0.98
    assert (ids == expected_ids).mean() >= 0.97
    difference = np.abs(image.astype(int) - expected_image)
    assert difference.mean() <= tolerance
    # Away from edges, where neither smooths anything, shading agrees to a few levels.
    assert np.median(difference.max(axis=-1)) <= 2
