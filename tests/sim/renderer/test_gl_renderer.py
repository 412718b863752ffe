"""MuJoCo's renderer behind the call of the batch renderer, against mujoco.Renderer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.renderer import BatchRenderer, GLRenderer, model_appearance

pytestmark = pytest.mark.render

SIZE = 48
CAMERAS = ["front", "above"]
SCENE = """
<mujoco>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1=".3 .5 .7" rgb2=".1 .1 .2"
             width="64" height="384"/>
    <texture name="t" type="2d" builtin="checker" rgb1=".9 .7 .5" rgb2=".3 .4 .5"
             width="64" height="64"/>
    <material name="tiled" texture="t" texrepeat="3 2" reflectance=".2"/>
  </asset>
  <worldbody>
    <light pos="0 -1 3" dir="0 .3 -1"/>
    <geom type="plane" size="2 2 .1" material="tiled"/>
    <body pos="0 0 .4"><freejoint/><geom type="box" size=".2 .1 .3" rgba=".8 .2 .2 1"/></body>
    <body pos=".5 0 .4"><freejoint/><geom type="sphere" size=".2" group="3"/></body>
    <site name="mark" size=".3" pos="-.6 0 .3" rgba="0 1 0 1"/>
    <camera name="above" pos=".1 -.1 2" xyaxes="1 .2 0 -.2 1 0" fovy="70"/>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture
def qpos(model):
    return model.qpos0 + np.random.default_rng(0).normal(size=(3, model.nq)) * 0.2


@pytest.fixture
def renderer(model):
    with GLRenderer(model, CAMERAS, SIZE, SIZE) as renderer:
        yield renderer


def reference(model, qpos):
    """Draw the same worlds with mujoco.Renderer, one after another."""
    option, data = mujoco.MjvOption(), mujoco.MjData(model)
    option.sitegroup[:] = 0
    images = []
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        for row in qpos:
            data.qpos[:] = row
            mujoco.mj_forward(model, data)
            for camera in CAMERAS:
                renderer.update_scene(data, camera, option)
                images.append(renderer.render())
    return np.array(images).reshape(len(qpos), len(CAMERAS), SIZE, SIZE, 3)


def test_pictures_are_mujocos_own(model, qpos, renderer, poses_of):
    images = renderer.render(*poses_of(model, qpos))
    assert np.array_equal(images, reference(model, qpos))
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_any_thread_and_any_number_of_contexts_draw_the_same(model, qpos, renderer, poses_of):
    poses = poses_of(model, qpos)
    expected = renderer.render(*poses)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(renderer.render, *poses) for _ in range(4)]
        assert all(np.array_equal(job.result(), expected) for job in jobs)
    with GLRenderer(model, CAMERAS, SIZE, SIZE, num_threads=2) as several:
        assert np.array_equal(several.render(*poses), expected)


def test_only_the_asked_rows_are_written(model, qpos, renderer, poses_of):
    out = np.full((3, 2, SIZE, SIZE, 3), 9, np.uint8)
    assert renderer.render(*poses_of(model, qpos), out=out, rows=slice(1, 2)) is out
    assert (out != 9).any(axis=(1, 2, 3, 4)).tolist() == [False, True, False]


def test_geom_groups_are_chosen(model, qpos, renderer, poses_of):
    poses = poses_of(model, qpos)
    with GLRenderer(model, CAMERAS, SIZE, SIZE, geom_groups=[0, 3]) as with_ball:
        assert not np.array_equal(with_ball.render(*poses), renderer.render(*poses))


@pytest.mark.parametrize("field", [0, 1])
def test_a_geom_without_a_finite_pose_is_not_drawn(field, model, qpos, renderer, poses_of):
    poses = [part.copy() for part in poses_of(model, qpos)]
    poses[field][:, 1] = np.nan
    model.geom_rgba[1, 3] = 0.0
    assert np.array_equal(renderer.render(*poses), reference(model, qpos))


@pytest.mark.parametrize("field", [2, 3])
def test_a_camera_without_a_finite_pose_sees_nothing(field, model, qpos, renderer, poses_of):
    poses = [part.copy() for part in poses_of(model, qpos)]
    poses[field][1, model.camera("above").id, 0] = np.nan
    images = renderer.render(*poses)
    assert not images[1, 1].any()
    assert images[1, 0].any()


def test_worlds_wear_what_they_are_given(model, qpos, renderer, poses_of):
    poses = poses_of(model, qpos)
    plain = renderer.render(*poses)
    own = model_appearance(model)
    appearance = own._make(field.repeat(3, axis=0) for field in own)
    appearance.geom_rgb[1, 1] = 0.0, 0.0, 1.0
    images = renderer.render(*poses, appearance=appearance)
    assert np.array_equal(images[[0, 2]], plain[[0, 2]])
    model.geom_rgba[1, :3] = 0.0, 0.0, 1.0
    assert np.array_equal(images[1], reference(model, qpos[1:2])[0])
    model.geom_rgba[1, :3] = 0.8, 0.2, 0.2
    assert np.array_equal(renderer.render(*poses), plain)


def test_version_names_backend_driver_and_mujoco(renderer):
    backend, driver, opengl, own = renderer.version.split("; ")
    assert backend == os.environ["MUJOCO_GL"]
    assert driver
    assert opengl.startswith("OpenGL ")
    assert own == f"MuJoCo {mujoco.__version__}"


def test_unknown_camera_and_look_name_the_nearest(model):
    with pytest.raises(ConfigError, match="GLRenderer: unknown camera 'fron'. Did you mean 'fr"):
        GLRenderer(model, ["fron"], SIZE, SIZE)
    for renderer in (GLRenderer, BatchRenderer):
        with pytest.raises(ConfigError, match="unknown look 'mujoco_3'. Did you mean 'mujoco_3_"):
            renderer(model, CAMERAS, SIZE, SIZE, look=cast(Any, "mujoco_3"))


def test_no_camera_and_no_size_are_refused(model):
    with pytest.raises(SpecError, match="GLRenderer: no camera was named"):
        GLRenderer(model, [], SIZE, SIZE)
    with pytest.raises(SpecError, match="GLRenderer: height 0, width 8 and num_threads 1 must"):
        GLRenderer(model, CAMERAS, 0, 8)


def test_wrong_poses_are_refused(model, qpos, renderer, poses_of):
    poses = poses_of(model, qpos)
    with pytest.raises(SpecError, match=r"GLRenderer: geom_xpos is float32 \[3, 3, 3\]"):
        renderer.render(poses[0].astype(np.float32), *poses[1:])


def test_without_opengl_the_error_says_what_to_install():
    script = (
        "import mujoco\n"
        "from vla_crl.errors import ConfigError\n"
        "from vla_crl.sim.renderer import GLRenderer\n"
        "xml = '<mujoco><worldbody><camera name=\"c\"/></worldbody></mujoco>'\n"
        "try:\n"
        "    GLRenderer(mujoco.MjModel.from_xml_string(xml), ['c'], 8, 8)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"MUJOCO_GL": "disable"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "has no OpenGL with MUJOCO_GL=disable" in done.stdout
    assert "apt-get install libegl1 libosmesa6" in done.stdout
    assert "set MUJOCO_GL=egl or osmesa" in done.stdout


def test_a_renderer_that_nobody_closes_ends_with_the_process_and_says_nothing():
    program = f"""
import mujoco
from vla_crl.sim.renderer import GLRenderer
model = mujoco.MjModel.from_xml_string({SCENE!r})
renderer = GLRenderer(model, ["front"], 8, 8, num_threads=2)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""
