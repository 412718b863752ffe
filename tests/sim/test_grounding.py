from collections.abc import Callable

import mujoco
import numpy as np

from vla_crl.sim.grounding import Grounding, ground
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.renderer import BatchRenderer

NUM_STATES, PIXELS = 40, 128


def ground_states(new_sim: Callable[..., VectorSim]) -> tuple[VectorSim, np.ndarray, Grounding]:
    """Label the first states in simulation, each in the slot of its number, all tasks in turn."""
    sim = new_sim(NUM_STATES)
    slots = np.arange(NUM_STATES)
    sim.reset(slots, tasks=slots % 10, state_ids=slots)
    return sim, slots, ground(sim, slots)


def test_every_visible_thing_lies_at_its_label_in_the_picture(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim, slots, labels = ground_states(new_sim)
    num_hits = num_visible = 0
    for index, scene in enumerate(suite.scenes):
        model, states, bodies = scene.model, initial_states(scene), suite.thing_bodies[index]
        renderer = BatchRenderer(model, suite.embodiment.cameras, PIXELS, PIXELS)
        for slot in slots[suite.scene_of_task[sim.tasks] == index]:
            data = mujoco.MjData(model)
            data.qpos[:], data.mocap_pos[:] = states.qpos[slot], states.mocap_pos[slot]
            mujoco.mj_forward(model, data)
            poses = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
            geoms = renderer.segment(*(np.array(pose)[None] for pose in poses))[0]
            for camera, thing in np.argwhere(labels.visible[slot]):
                column, row = (labels.uv[slot, camera, thing] * PIXELS).astype(int)
                seen = model.geom_bodyid[geoms[camera, row, column]]
                num_visible += 1
                if (
                    nearest_body(model, data, suite.embodiment.cameras[camera], bodies[thing])
                    == bodies[thing]
                ):
                    num_hits += 1
                    assert seen == bodies[thing]
    assert num_hits > 0.8 * num_visible > 0  # the rest is hidden behind the gripper


def nearest_body(model: mujoco.MjModel, data: mujoco.MjData, camera: str, body: int) -> int:
    """Return the body that a ray from the camera to a body's origin meets first."""
    origin = data.cam_xpos[model.camera(camera).id]
    groups, geom = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    mujoco.mj_ray(model, data, origin, data.xpos[body] - origin, groups, 1, -1, geom)
    return int(model.geom_bodyid[geom[0]])


def test_agentview_sees_all_things_that_are_there_and_the_wrist_camera_only_some(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim, _, labels = ground_states(new_sim)
    is_there = suite.thing_bodies[suite.scene_of_task[sim.tasks]] >= 0
    assert labels.uv.shape == (NUM_STATES, 2, 12, 2)
    assert labels.uv.dtype == np.float32
    assert np.array_equal(labels.visible[:, 0], is_there)
    assert np.all(is_there.sum(axis=1) == 7)
    assert 0.1 < labels.visible[:, 1][is_there].mean() < 1.0
    assert np.all(labels.uv[~labels.visible] == 0.0)
    assert np.all((labels.uv >= 0.0) & (labels.uv < 1.0))


def test_what_a_scene_lacks_has_no_position_and_is_never_visible(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim, _, labels = ground_states(new_sim)
    is_there = suite.thing_bodies[suite.scene_of_task[sim.tasks]] >= 0
    assert np.array_equal(np.isfinite(sim.thing_positions()).all(axis=-1), is_there)
    assert np.array_equal(np.isnan(sim.thing_positions()).all(axis=-1), ~is_there)
    assert not labels.visible.transpose(0, 2, 1)[~is_there].any()


def test_up_in_the_picture_is_away_from_the_camera_and_right_is_positive_y(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim = new_sim(1)
    sim.reset([0], tasks=[0], state_ids=[0])
    things = [suite.thing_index("red cube"), suite.thing_index("white mug")]
    positions, uv = sim.thing_positions()[0, things], ground(sim, np.array([0])).uv[0, 0, things]
    # agentview looks at the robot from the front (towards -x): +y is to the right, -x is up.
    assert np.sign(uv[0, 0] - uv[1, 0]) == np.sign(positions[0, 1] - positions[1, 1])
    assert np.sign(uv[0, 1] - uv[1, 1]) == np.sign(positions[0, 0] - positions[1, 0])
