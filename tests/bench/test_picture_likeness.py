"""Rows that compare the two renderers on a small scene."""

import mujoco
import numpy as np
import pytest

from vla_crl.bench.picture_likeness import compare_pictures
from vla_crl.bench.similarity import structural_similarity
from vla_crl.sim.renderer import BatchRenderer, GLRenderer, Placement

pytestmark = pytest.mark.render

SCENE = """
<mujoco>
  <worldbody>
    <light directional="true" dir=".3 .4 -1" specular="0 0 0"/>
    <geom type="plane" size="2 2 .1" rgba=".4 .5 .6 1"/>
    <body><freejoint/><geom type="sphere" size=".2" rgba=".8 .3 .2 1"/></body>
    <camera name="front" pos="0 -2 1.4" xyaxes="1 0 0 0 .5 1" fovy="50"/>
    <camera name="above" pos="0 0 2"/>
  </worldbody>
</mujoco>
"""


def test_rows_hold_what_the_pictures_say():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data, xpos, xmat = mujoco.MjData(model), [], []
    for height in (0.3, 0.5, 0.7):
        data.qpos[2] = height
        mujoco.mj_kinematics(model, data)
        xpos.append(data.xpos.copy())
        xmat.append(data.xmat.copy())
    cameras = ["front", "above"]
    poses = Placement(model, cameras).poses(np.stack(xpos), np.stack(xmat))
    rows = compare_pictures("ball", model, poses, cameras, sizes=(32, 48), batch=4)
    assert [(row.scene, row.camera, row.pixels) for row in rows] == [
        ("ball", "front", 32), ("ball", "above", 32), ("ball", "front", 48), ("ball", "above", 48),
    ]  # fmt: skip
    own = BatchRenderer(model, cameras, 48, 48).render(*poses)
    with GLRenderer(model, cameras, 48, 48) as renderer:
        expected = renderer.render(*poses)
        assert rows[0].gl_version == renderer.version
    pairs = zip(own[:, 1], expected[:, 1], strict=True)
    assert rows[3].ssim == pytest.approx(np.mean([structural_similarity(*p) for p in pairs]))
    difference = np.abs(own[:, 1].astype(int) - expected[:, 1]).mean()
    assert rows[3].mean_absolute_difference == pytest.approx(difference)
    assert all(row.observations_per_s > 0 and row.gl_observations_per_s > 0 for row in rows)
    assert all(0.7 < row.ssim < 1 for row in rows)
