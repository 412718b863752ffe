"""A scene is compiled with a task's things alone, and mirrored meshes collide like their images."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.native.memory import wanted_bytes
from vla_crl.sim.native.suite import Suite

Loader = Callable[..., Suite]
CORNERS = "0 0 0  .03 0 0  0 .02 0  .03 .02 0  0 0 .02  .03 0 .01  0 .02 .02"
MIRRORED = "0 0 0  -.03 0 0  0 .02 0  -.03 .02 0  0 0 .02  -.03 0 .01  0 .02 .02"


def with_mesh(load_changed: Loader, corners: str, scale: str) -> mujoco.MjModel:
    asset = f'<asset><mesh name="wedge" vertex="{corners}" scale="{scale}"/></asset>'
    body = (
        '<body name="wedge" pos=".5 .5 .098"><freejoint/><geom type="mesh" mesh="wedge" mass=".1"/>'
        '</body><geom type="box" size=".1 .1 .05" pos=".5 .5 .05"/>'
    )
    suite = load_changed("</mujoco>", f"{asset}<worldbody>{body}</worldbody></mujoco>", "scene.xml")
    return suite.scenes[0].model


@pytest.mark.parametrize(
    ("element", "name"),
    [('<camera name="{}" ', "agentview"), ('<light name="{}" ', "key")],
)
def test_what_targets_a_thing_that_a_task_leaves_out_is_named(
    load_changed: Loader, element: str, name: str
):
    old = element.format(name)
    message = rf"cannot compile it without .*'green cube'.*, which a task's things .*\n?.*'{name}'"
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_changed(old, old + 'mode="targetbody" target="green_cube" ', "scene.xml")


def test_the_hull_of_a_mirrored_mesh_is_right_side_out(load_changed: Loader):
    model = with_mesh(load_changed, CORNERS, "-1 1 1")
    vertices = model.mesh_vert - model.mesh_vert.mean(axis=0)
    for polygon in range(len(model.mesh_polynormal)):
        first = model.mesh_polyvertadr[polygon]
        corners = vertices[model.mesh_polyvert[first : first + model.mesh_polyvertnum[polygon]]]
        normal = model.mesh_polynormal[polygon]
        assert normal @ corners[0] > 0
        assert np.cross(corners[1] - corners[0], corners[2] - corners[1]) @ normal > 0


def test_a_mirrored_mesh_touches_like_its_image(load_changed: Loader, tmp_path: Path):
    depths = []
    for corners, scale in ((CORNERS, "-1 1 1"), (MIRRORED, "1 1 1")):
        model = with_mesh(load_changed, corners, scale)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        geom = np.flatnonzero(model.geom_bodyid == model.body("wedge").id)[0]
        depths.append(sorted(data.contact.dist[(data.contact.geom == geom).any(axis=1)]))
        shutil.rmtree(tmp_path / "envs")
    assert len(depths[0]) == len(depths[1]) >= 3
    assert np.allclose(depths[0], depths[1], atol=1e-9)


def test_every_scene_has_room_for_many_contacts(load_changed: Loader):
    suite = load_changed('memory="2M"', 'memory="16K"', "scene.xml")
    assert [scene.model.narena for scene in suite.scenes] == [64 << 20] * 2
    assert wanted_bytes(suite.scenes[0].model) == 64 << 20


def test_a_scene_keeps_the_memory_it_asks_for(load_changed: Loader):
    suite = load_changed('memory="2M"', 'memory="128M"', "scene.xml")
    assert suite.scenes[0].model.narena == 128 << 20


def test_what_mujoco_cannot_simulate_is_said(load_changed: Loader):
    cloth = (
        '<worldbody><flexcomp name="cloth" group="3" type="grid" count="3 3 1" pos="0 0 2" dim="2" '
        'spacing=".1 .1 .1" mass="1" radius=".01"><edge equality="true"/></flexcomp></worldbody>'
    )
    with pytest.raises(ConfigError, match="scene.xml: MuJoCo cannot simulate it: .*flex equality"):
        load_changed("</mujoco>", f"{cloth}</mujoco>", "scene.xml")


def test_what_is_tied_to_a_mocap_body_does_not_end_the_process_by_sleeping(load_changed: Loader):
    tie = '<equality><weld body1="red_cube" body2="basket"/></equality></mujoco>'
    model = load_changed("</mujoco>", tie, "scene.xml").scenes[0].model
    assert model.tree_sleep_policy[model.body_treeid[model.body("red_cube").id]] == (
        mujoco.mjtSleepPolicy.mjSLEEP_NEVER
    )
    assert np.sum(model.tree_sleep_policy == mujoco.mjtSleepPolicy.mjSLEEP_NEVER) == 1
    data = mujoco.MjData(model)
    model.opt.sleep_tolerance = 1e6  # all that may sleep does so within ten steps
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    mujoco.mj_step(model, data, 50)
    assert data.tree_asleep[model.body_treeid[model.body("red_cube").id]] < 0


def test_a_pipe_in_the_place_of_a_part_of_the_scene_is_not_waited_for(
    load_changed: Loader, tmp_path: Path
):
    os.mkfifo(tmp_path / "pipe.xml")
    part = f'<include file="{tmp_path}/pipe.xml"/></mujoco>'
    with pytest.raises(ConfigError, match="pipe.xml: is a pipe, expected a file"):
        load_changed("</mujoco>", part, "scene.xml")


def test_a_pipe_in_the_place_of_a_side_of_a_texture_is_not_waited_for(
    load_changed: Loader, tmp_path: Path
):
    os.mkfifo(tmp_path / "pipe.png")
    texture = f'<asset><texture name="dice" type="cube" fileup="{tmp_path}/pipe.png"/></asset>'
    with pytest.raises(ConfigError, match="pipe.png: is a pipe, expected a file"):
        load_changed("</mujoco>", f"{texture}</mujoco>", "scene.xml")
