"""Geoms and cameras placed by their bodies, against MuJoCo's forward kinematics."""

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.renderer import BatchRenderer, Placement

SCENE = """
<mujoco>
  <worldbody>
    <geom type="plane" size="2 2 .1" euler="3 4 5"/>
    <camera name="room" pos="0 -2 1" xyaxes="1 .1 0 0 .4 1"/>
    <body pos=".1 0 .5" euler="10 20 30">
      <freejoint/>
      <geom type="box" size=".1 .2 .3" pos=".1 .2 0" euler="40 50 60"/>
      <body pos=".3 0 0">
        <joint type="hinge" axis="0 1 1"/>
        <geom type="capsule" size=".05" fromto="0 0 0 .2 .1 .3"/>
        <geom type="sphere" size=".1"/>
        <camera name="hand" pos="0 0 .1" euler="0 90 20"/>
      </body>
    </body>
    <body name="ball" pos="1 0 0"><joint type="slide" axis="1 0 0"/>
      <geom type="ellipsoid" size=".1 .2 .3"/></body>
    <camera name="watcher" mode="targetbody" target="ball" pos="0 0 3"/>
  </worldbody>
</mujoco>
"""
WORLDS = 5


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture
def worlds(model):
    """Return what mj_forward computes in a few random worlds."""
    random, states = np.random.default_rng(0), []
    for _ in range(WORLDS):
        data = mujoco.MjData(model)
        data.qpos[:] = random.normal(size=model.nq)
        mujoco.mj_forward(model, data)
        states.append(data)
    fields = ("xpos", "xmat", "geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
    return {field: np.stack([getattr(data, field) for data in states]) for field in fields}


def test_poses_are_those_of_the_forward_kinematics(model, worlds):
    poses = Placement(model, ["hand", "room"]).poses(worlds["xpos"], worlds["xmat"])
    placed = [model.camera(name).id for name in ("hand", "room")]
    for field, value in poses._asdict().items():
        chosen = placed if field.startswith("cam") else slice(None)
        assert value.shape == worlds[field].shape
        np.testing.assert_allclose(value[:, chosen], worlds[field][:, chosen], atol=1e-12)


def test_renderers_take_the_poses_as_they_are(model, worlds):
    poses = Placement(model, ["hand", "room"]).poses(worlds["xpos"], worlds["xmat"])
    renderer = BatchRenderer(model, ["hand", "room"], 32, 32)
    fields = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
    expected = renderer.segment(*(worlds[field] for field in fields))
    assert (renderer.segment(*poses) == expected).mean() > 0.999
    assert len(np.unique(expected)) > 3


def test_a_camera_that_was_not_named_sees_nothing(model, worlds):
    poses = Placement(model, ["hand"]).poses(worlds["xpos"], worlds["xmat"])
    assert (BatchRenderer(model, ["room"], 8, 8).segment(*poses) == -1).all()


def test_an_empty_batch_has_no_poses(model, worlds):
    poses = Placement(model, ["hand"]).poses(worlds["xpos"][:0], worlds["xmat"][:0])
    assert poses.geom_xmat.shape == (0, model.ngeom, 9)
    assert poses.cam_xpos.shape == (0, model.ncam, 3)


def test_unknown_camera_names_the_nearest(model):
    with pytest.raises(ConfigError, match="unknown camera 'hands'. Did you mean 'hand'?"):
        Placement(model, ["hands"])


def test_camera_that_follows_a_body_is_refused(model):
    with pytest.raises(SpecError, match="camera 'watcher' follows or looks at a body"):
        Placement(model, ["watcher"])


def test_bodies_of_another_model_are_refused(model, worlds):
    placement = Placement(model, ["hand"])
    with pytest.raises(SpecError, match=r"Placement: xpos is \[5, 3, 3\]; expected \[5, 4, 3\]"):
        placement.poses(worlds["xpos"][:, 1:], worlds["xmat"])
    with pytest.raises(SpecError, match=r"Placement: xmat is \[4, 4, 9\]; expected \[5, 4, 9\]"):
        placement.poses(worlds["xpos"], worlds["xmat"][1:])
