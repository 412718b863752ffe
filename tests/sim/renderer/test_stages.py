"""The background that is drawn once, against renderers that have none."""

import mujoco
import numpy as np
import pytest

from vla_crl.sim.renderer import BatchRenderer

WORLDS = 6
SCENE = """
<mujoco>
  <asset>
    <mesh name="ball" builtin="sphere" params="4" scale=".25 .25 .25"/>
  </asset>
  <worldbody>
    <light pos="0 -1 3" dir="0 .3 -1"/>
    <body name="moving"><freejoint/>
      <geom type="box" size=".1 .2 .1" pos="0 -.3 .3" rgba=".8 .2 .2 1"/>
      <geom type="mesh" mesh="ball" pos=".3 -.2 .3"/>
    </body>
    <body name="room">{joint}
      <geom type="box" size="2 2 .1" pos="0 0 -.1" rgba=".5 .6 .4 1"/>
      <geom type="mesh" mesh="ball" pos="-.4 .2 .2" rgba=".2 .5 .8 1"/>
      <geom type="box" size=".1 .1 .3" pos=".5 .3 .3"/>
      <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
      <camera name="above" pos=".1 -.1 2" xyaxes="1 .2 0 -.2 1 0" fovy="70"/>
    </body>
    <body><freejoint/><geom type="sphere" size=".1" pos="0 -.5 .6" rgba="0 1 0 .5"/></body>
  </worldbody>
</mujoco>
"""
CAMERAS = ["front", "above"]


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(SCENE.format(joint=""))


@pytest.fixture
def poses(model, poses_of):
    """Return worlds in which something moves; from the fourth on the fixed ball is elsewhere."""
    qpos = model.qpos0 + np.random.default_rng(0).normal(size=(WORLDS, model.nq)) * 0.1
    poses = poses_of(model, qpos)
    fixed = next(geom for geom in range(model.ngeom) if np.isclose(model.geom_pos[geom, 0], -0.4))
    poses[0][3:, fixed] += (0.2, 0.1, 0.0)
    return poses


def test_pictures_are_those_without_a_background(model, poses):
    renderer = BatchRenderer(model, CAMERAS, 48, 40)
    assert renderer._scene.geoms.num_background == 3
    movable = mujoco.MjModel.from_xml_string(SCENE.format(joint='<joint type="slide"/>'))
    plain = BatchRenderer(movable, CAMERAS, 48, 40)
    assert plain._scene.geoms.num_background == 0
    images, expected = renderer.render(*poses), plain.render(*poses)
    # The order of drawing is another, which shows where two surfaces meet.
    assert (images != expected).any(axis=-1).mean() < 0.002
    assert len(np.unique(images.reshape(WORLDS, -1), axis=0)) == WORLDS


def test_a_kept_background_cannot_be_told_from_a_new_one(model, poses):
    renderer = BatchRenderer(model, CAMERAS, 48, 40)
    expected = renderer.render(*poses)
    assert np.array_equal(renderer.render(*poses), expected)
    for world in (5, 0, 4, 1):
        fresh = BatchRenderer(model, CAMERAS, 48, 40)
        one = fresh.render(*(part[world : world + 1] for part in poses))
        assert np.array_equal(one[0], expected[world])
    threaded = BatchRenderer(model, CAMERAS, 48, 40, num_threads=3)
    backwards = threaded.render(*(part[::-1] for part in poses))  # type: ignore[arg-type]
    assert np.array_equal(backwards[::-1], expected)


def test_a_change_of_appearance_reaches_the_background(model, poses):
    renderer = BatchRenderer(model, CAMERAS, 48, 40)
    plain = renderer.render(*poses)
    appearance = renderer.appearance(WORLDS)
    appearance.light_diffuse[2] *= 0.5
    images = renderer.render(*poses, appearance=appearance)
    others = [world for world in range(WORLDS) if world != 2]
    assert np.array_equal(images[others], plain[others])
    assert images[2].mean() < 0.9 * plain[2].mean()
    assert np.array_equal(renderer.render(*poses), plain)
