"""Where things are, beside MuJoCo's own kinematics."""

import copy

import mujoco
import numpy as np
import pytest

from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.privileged import privileged_names
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim


@pytest.mark.parametrize("task", ["red_cube_in_drawer", "open_cupboard"])
def test_places_turns_and_joints_are_those_of_mujoco(task: str) -> None:
    suite = load_suite("tabletop_goal")
    sim = VectorSim(suite, 2, num_threads=1)
    sim.reset([0, 1], tasks=[suite.task_index(task)] * 2, state_ids=[5, 6])
    expert = ScriptedExpert(sim)
    for _ in range(8):
        sim.step_chunk(expert.act(np.arange(2))[:, None])
    names, state = privileged_names(suite), sim.privileged_state([1])[0]
    assert state.dtype == np.float32
    assert len(names) == len(state)
    told = dict(zip(names, state.tolist(), strict=True))
    model = copy.copy(sim.scene_model(1))
    data = mujoco.MjData(model)
    sim.write_scene(1, model, data)
    grip = data.site("grip").xpos
    for thing in suite.scenes[0].things:
        where = data.body(thing.body).xpos if not thing.handle else data.site(thing.handle).xpos
        told_where = [told.pop(f"{thing.name}.{axis}") for axis in "xyz"]
        assert told_where == pytest.approx(where - grip, abs=1e-6)
        if thing.joint:
            qpos = data.joint(thing.joint).qpos[0]
            assert told.pop(f"{thing.name}.joint") == pytest.approx(qpos, abs=1e-6)
        elif model.body(thing.body).mocapid[0] < 0:
            turn = data.body(thing.body).xmat.reshape(3, 3)
            ends = ("xx", "yx", "zx", "xy", "yy", "zy")
            told_turn = [told.pop(f"{thing.name}.{end}") for end in ends]
            assert told_turn == pytest.approx(turn[:, :2].T.ravel(), abs=1e-6)
    assert not told
    sim.close()


def test_what_a_scene_does_not_have_is_0() -> None:
    suite = load_suite("tabletop_object")  # the red cube and the green one are of different scenes
    sim = VectorSim(suite, 2, num_threads=1)
    sim.reset([0, 1], tasks=[0, 1], state_ids=[5, 5])
    names = privileged_names(suite)
    assert sim.privileged_names == names
    of_red = np.array([name.startswith("red cube.") for name in names])
    of_green = np.array([name.startswith("green cube.") for name in names])
    first, second = sim.privileged_state()
    assert of_red.sum() == of_green.sum() == 9
    assert first[of_red].any()
    assert not first[of_green].any()
    assert second[of_green].any()
    assert not second[of_red].any()
    sim.close()
