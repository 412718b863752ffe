"""Worlds that differ in colours, textures and lights, against models that have those."""

from typing import Any

import mujoco
import numpy as np
import pytest

from vla_crl.errors import SpecError
from vla_crl.sim.renderer import Appearance, BatchRenderer
from vla_crl.sim.renderer.batch_renderer import _render_frames

NUM_WORLDS = 5
LIGHT_FIELDS = ("light_ambient", "light_diffuse", "light_pos", "light_dir")

SCENE = """
<mujoco>
  <asset>
    <texture name="checker" type="2d" builtin="checker" rgb1=".9 .7 .5" rgb2=".3 .4 .5"
             width="64" height="64"/>
    <material name="squares" texture="checker" texrepeat="3 2"/>
    <texture name="cross" type="2d" builtin="flat" mark="cross" rgb1="1 1 1" markrgb="0 .2 .9"
             width="32" height="32"/>
    <material name="crosses" texture="cross" texrepeat="4 5" texuniform="true"/>
    <material name="plain" rgba=".2 .7 .3 1" emission=".2"/>
  </asset>
  <worldbody>
    <light directional="true" dir="1 1 -1" diffuse=".4 .3 .2" ambient=".1 0 0"/>
    <light directional="true" active="false"/>
    <light pos="0 0 2" dir=".2 0 -1" cutoff="50" exponent="3" diffuse=".8 .8 .6"/>
    <geom type="plane" size="2 2 .1" material="squares"/>
    <geom type="box" size=".2 .1 .3" pos=".3 0 .3" material="squares"/>
    <geom type="sphere" size=".1" pos="0 0 5" group="4"/>
    <geom type="sphere" size=".2" pos="-.3 0 .2" material="plain"/>
    <geom type="capsule" size=".1 .2" pos="0 .4 .4" rgba=".9 .9 .2 1"/>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
    <camera name="above" pos=".1 -.1 2" xyaxes="1 .2 0 -.2 1 0" fovy="70"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture
def renderer(model) -> BatchRenderer:
    return BatchRenderer(model, ["front", "above"], 48, 40)


@pytest.fixture
def poses(model, poses_of):
    return poses_of(model, np.tile(model.qpos0, (NUM_WORLDS, 1)))


def random_appearance(model):
    random = np.random.default_rng(0)

    materials = random.choice([-1, 0, 1], (NUM_WORLDS, model.ngeom)).astype(np.int32)
    materials[:, 3] = model.material("plain").id  # glows; else only textures tell materials apart

    def numbers(*shape):
        return random.uniform(0.05, 0.95, (NUM_WORLDS, *shape))

    def colours(*shape):
        return numbers(*shape, 3).astype(np.float32)

    return Appearance(
        geom_rgb=colours(model.ngeom),
        geom_matid=materials,
        headlight_ambient=colours(),
        headlight_diffuse=colours(),
        light_ambient=colours(model.nlight),
        light_diffuse=colours(model.nlight),
        light_pos=numbers(model.nlight, 3) + np.array([0, 0, 1]),
        light_dir=numbers(model.nlight, 3) - np.array([0.5, 0.5, 2]),
    )


def test_appearance_gives_the_bytes_of_a_model_with_these_colours_textures_and_lights(
    model, renderer, poses
):
    appearance = random_appearance(model)
    images = renderer.render(*poses, appearance=appearance)
    for world in range(NUM_WORLDS):
        changed = mujoco.MjModel.from_xml_string(SCENE)
        changed.geom_rgba[:, :3] = appearance.geom_rgb[world]
        changed.geom_matid[:] = appearance.geom_matid[world]
        changed.vis.headlight.ambient[:] = appearance.headlight_ambient[world]
        changed.vis.headlight.diffuse[:] = appearance.headlight_diffuse[world]
        for name in LIGHT_FIELDS:
            getattr(changed, name)[:] = getattr(appearance, name)[world]
        reference = BatchRenderer(changed, ["front", "above"], 48, 40)
        expected = reference.render(*(field[world : world + 1] for field in poses))
        assert np.array_equal(images[world], expected[0])
    assert len(np.unique(images.reshape(NUM_WORLDS, -1), axis=0)) == NUM_WORLDS


def test_the_models_own_appearance_changes_nothing(renderer, poses):
    own = renderer.appearance(NUM_WORLDS)
    assert own.geom_rgb[0, 3].tolist() == pytest.approx([0.2, 0.7, 0.3])  # of the material
    assert np.array_equal(renderer.render(*poses, appearance=own), renderer.render(*poses))


def test_an_appearance_needs_no_machine_code_of_its_own(renderer, poses):
    compiled: Any = _render_frames
    renderer.render(*poses)
    before = len(compiled.signatures)
    renderer.render(*poses, appearance=renderer.appearance(NUM_WORLDS))
    assert len(compiled.signatures) == before


def test_changing_one_world_leaves_the_others_as_they_are(renderer, poses):
    appearance = renderer.appearance(NUM_WORLDS)
    appearance.light_diffuse[3] *= 0.5
    appearance.geom_rgb[1, 4] = 1.0, 0.0, 0.0
    images, own = renderer.render(*poses, appearance=appearance), renderer.render(*poses)
    differs = (images != own).any(axis=(1, 2, 3, 4))
    assert differs.tolist() == [False, True, False, True, False]
    assert images[3].sum() < own[3].sum()


def test_appearances_do_not_depend_on_threads_batch_and_order(model, renderer, poses):
    appearance = random_appearance(model)
    expected = renderer.render(*poses, appearance=appearance)
    threaded = BatchRenderer(model, ["front", "above"], 48, 40, num_threads=3)
    assert np.array_equal(threaded.render(*poses, appearance=appearance), expected)
    out = np.zeros_like(expected)
    for rows in (slice(3, 5), slice(0, 1), slice(1, 3)):
        renderer.render(*poses, appearance=appearance, out=out, rows=rows)
    assert np.array_equal(out, expected)
    geom_xpos, geom_xmat, cam_xpos, cam_xmat = (field[4:1:-1] for field in poses)
    backwards = renderer.render(
        geom_xpos,
        geom_xmat,
        cam_xpos,
        cam_xmat,
        appearance=Appearance._make(field[4:1:-1] for field in appearance),
    )
    assert np.array_equal(backwards[::-1], expected[2:])


def test_arrays_that_do_not_fit_are_refused(renderer, poses):
    own = renderer.appearance(NUM_WORLDS)
    wrong = own._replace(geom_rgb=own.geom_rgb.astype(np.float64))
    with pytest.raises(SpecError, match=r"appearance.geom_rgb is float64 \[5, 5, 3\].* float32"):
        renderer.render(*poses, appearance=wrong)
    with pytest.raises(SpecError, match=r"light_pos is float64 \[5, 2, 3\].* \[5, 3, 3\]. Batch"):
        renderer.render(*poses, appearance=own._replace(light_pos=own.light_pos[:, :2]))
    own.geom_matid[2, 1] = 3
    with pytest.raises(
        SpecError, match=r"geom_matid has -1 to 3; expected -1 \(no material\) to 2"
    ):
        renderer.render(*poses, appearance=own)
    with pytest.raises(SpecError, match=r"geom_rgb is float32 \[4, 5, 3\]; expected .*\[5, 5, 3\]"):
        renderer.render(*poses, appearance=renderer.appearance(4))
