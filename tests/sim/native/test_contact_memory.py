"""Contacts that find no room end an episode with a diagnosis, not the process."""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest

from vla_crl.sim.divergence import Divergence
from vla_crl.sim.native import scene_compilation
from vla_crl.sim.native.kernel.slots import DataHead, scratch_of
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite


def test_the_most_memory_used_is_read_where_it_is(scene: Scene):
    _, model, data = scratch_of(scene.model)
    mujoco.mj_step(model, data)
    head = DataHead.from_address(data._address)
    assert head.narena == model.narena
    assert head.maxuse_stack == data.maxuse_stack > 0
    assert head.maxuse_arena == data.maxuse_arena > head.maxuse_stack


@pytest.mark.parametrize("kib", [16, 200])
def test_a_world_without_room_for_its_contacts_is_diagnosed(
    load_changed: Callable[..., Suite],
    new_sim: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    kib: int,
):
    """With 16 KiB MuJoCo leaves contacts out; of 200 KiB more than half is in use at times."""
    monkeypatch.setattr(scene_compilation, "wanted_bytes", lambda model: model.narena)
    suite = load_changed('memory="2M"', f'memory="{kib}K"', "scene.xml")
    sim = new_sim(2, suite=suite, image_size=8)
    sim.reset([0, 1], tasks=[0, 0], state_ids=[0, 1])
    result = sim.step_chunk(np.zeros((2, 20, 7)))
    assert result.diverged.all()
    assert all(isinstance(record, Divergence) for record in sim.divergences)
    assert sim.divergences[0].cause == (
        f"its contacts need more than half of MuJoCo's {kib} KiB of memory; move apart what "
        f'overlaps, or write <size memory="{4 * kib}K"/> into the scene'
    )


def test_a_heap_of_cubes_is_simulated(
    load_changed: Callable[..., Suite], new_sim: Callable[..., Any]
):
    """In the scene's own 2 MiB they would end the process."""
    geom = '<geom class="object" type="box" size=".02 .02 .02"/>'
    cube = f'<body pos="1 {{}} {{}}"><freejoint/>{geom}</body>'
    cubes = "".join(cube.format(0.002 * n, 0.03 + 0.001 * n) for n in range(20))
    suite = load_changed("</mujoco>", f"<worldbody>{cubes}</worldbody></mujoco>", "scene.xml")
    sim = new_sim(1, suite=suite, image_size=8)
    sim.reset([0], tasks=[0], state_ids=[0])
    assert not sim.step_chunk(np.zeros((1, 1, 7))).diverged.any()
