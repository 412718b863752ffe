"""Geoms that stand for sites, against MuJoCo's picture of the site itself."""

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.renderer import GLRenderer
from vla_crl.sim.renderer.sites import add_site_geoms

SIZE = 48
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 -1 3" dir="0 .3 -1"/>
    <geom type="plane" size="2 2 .1" group="1"/>
    <body pos="0 0 .4"><freejoint/>
      <geom type="box" size=".2 .1 .3" group="1"/>
      <site name="burner" type="cylinder" size=".2 .02" pos=".3 .1 0" euler="20 30 0"
            rgba=".9 .05 .05 1"/>
    </body>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
  </worldbody>
</mujoco>
"""


@pytest.mark.render
def test_geom_looks_like_the_site_and_can_be_hidden(poses_of):
    model, spec = mujoco.MjModel.from_xml_string(SCENE), mujoco.MjSpec.from_string(SCENE)
    names = add_site_geoms(spec, ["burner"], 1)
    drawn = spec.compile()
    assert drawn.nbody == model.nbody
    poses = [part.copy() for part in poses_of(drawn)]
    data, option = mujoco.MjData(model), mujoco.MjvOption()
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE, SIZE) as reference:
        reference.update_scene(data, "front", option)
        shown = reference.render()
        option.sitegroup[:] = 0
        reference.update_scene(data, "front", option)
        hidden = reference.render()
    with GLRenderer(drawn, ["front"], SIZE, SIZE, geom_groups=[1]) as renderer:
        assert np.abs(renderer.render(*poses)[0, 0].astype(int) - shown).mean() < 0.05
        poses[0][:, drawn.geom(names[0]).id] = np.nan
        assert np.array_equal(renderer.render(*poses)[0, 0], hidden)
    assert np.abs(shown.astype(int) - hidden).mean() > 1


def test_unknown_site_names_the_nearest():
    spec = mujoco.MjSpec.from_string(SCENE)
    with pytest.raises(ConfigError, match="unknown site 'burn'. Did you mean 'burner'?"):
        add_site_geoms(spec, ["burn"], 1)
