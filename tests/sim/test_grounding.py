from collections.abc import Callable

import mujoco
import numpy as np

from vla_crl.sim.grounding import Grounding, ground
from vla_crl.sim.layout import initial_states
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.suite import Suite
from vla_crl.sim.vector_sim import VectorSim

NUM_STATES, PIXELS = 40, 128


def ground_states(new_sim: Callable[..., VectorSim]) -> tuple[np.ndarray, Grounding]:
    """Label the first states in simulation, each in the slot of its number."""
    sim = new_sim(NUM_STATES)
    slots = np.arange(NUM_STATES)
    sim.reset(slots, tasks=slots % 10, state_ids=slots)
    return slots, ground(sim, slots)


def test_every_visible_thing_lies_at_its_label_in_the_picture(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    slots, labels = ground_states(new_sim)
    model, states = suite.model, initial_states(suite)
    renderer = BatchRenderer(model, suite.config.cameras, PIXELS, PIXELS)
    num_hits = num_visible = 0
    for slot in slots:
        data = mujoco.MjData(model)
        data.qpos[:], data.mocap_pos[:] = states.qpos[slot], states.mocap_pos[slot]
        mujoco.mj_forward(model, data)
        poses = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
        geoms = renderer.segment(*(np.array(pose)[None] for pose in poses))[0]
        for camera, thing in np.argwhere(labels.visible[slot]):
            column, row = (labels.uv[slot, camera, thing] * PIXELS).astype(int)
            seen = model.geom_bodyid[geoms[camera, row, column]]
            num_visible += 1
            if nearest_body(model, data, suite, camera, thing) == suite.thing_bodies[thing]:
                num_hits += 1
                assert seen == suite.thing_bodies[thing]
    assert num_hits > 0.8 * num_visible > 0  # the rest is hidden behind the gripper


def nearest_body(
    model: mujoco.MjModel, data: mujoco.MjData, suite: Suite, camera: int, thing: int
) -> int:
    """Return the body that a ray from the camera to a thing's origin meets first."""
    origin = data.cam_xpos[model.camera(suite.config.cameras[camera]).id]
    direction = data.xpos[suite.thing_bodies[thing]] - origin
    groups, geom = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    mujoco.mj_ray(model, data, origin, direction, groups, 1, -1, geom)
    return int(model.geom_bodyid[geom[0]])


def test_agentview_sees_all_things_and_the_wrist_camera_only_some(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    _, labels = ground_states(new_sim)
    assert labels.uv.shape == (NUM_STATES, 2, 7, 2)
    assert labels.uv.dtype == np.float32
    assert labels.visible[:, 0].all()
    assert 0.1 < labels.visible[:, 1].mean() < 1.0
    assert np.all(labels.uv[~labels.visible] == 0.0)
    assert np.all((labels.uv >= 0.0) & (labels.uv < 1.0))


def test_up_in_the_picture_is_away_from_the_camera_and_right_is_positive_y(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim = new_sim(1)
    sim.reset([0], tasks=[0], state_ids=[0])
    positions, uv = sim.thing_positions()[0, :2], ground(sim, np.array([0])).uv[0, 0, :2]
    # agentview looks at the robot from the front (towards -x): +y is to the right, -x is up.
    assert np.sign(uv[0, 0] - uv[1, 0]) == np.sign(positions[0, 1] - positions[1, 1])
    assert np.sign(uv[0, 1] - uv[1, 1]) == np.sign(positions[0, 0] - positions[1, 0])
