import dataclasses
import itertools
from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from vla_crl.contracts import ACTION_DIM
from vla_crl.errors import ConfigError
from vla_crl.sim.layout import initial_states
from vla_crl.sim.suite import Suite
from vla_crl.sim.vector_sim import VectorSim


def places(suite: Suite) -> np.ndarray:
    """Positions (m) of the five objects in every initial state, [ids, 5, 3]."""
    model, qpos = suite.model, initial_states(suite).qpos
    starts = [model.jnt_qposadr[model.body_jntadr[body]] for body in suite.thing_bodies[:5]]
    return np.stack([qpos[:, start : start + 3] for start in starts], axis=1)


def test_train_and_test_states_are_disjoint_and_many(suite: Suite):
    assert len(suite.train_ids) >= 500
    assert len(suite.test_ids) >= 100
    assert not set(suite.train_ids) & set(suite.test_ids)
    assert len(initial_states(suite).qpos) == len(suite.train_ids) + len(suite.test_ids)


def test_every_test_layout_differs_from_every_training_layout(suite: Suite):
    flat = places(suite)[:, :, :2].reshape(suite.test_ids.stop, -1)
    for layout in flat[suite.test_ids]:
        apart = np.abs(flat[suite.train_ids] - layout).max(axis=1)
        assert apart.min() > 0.002


def test_states_keep_the_ranges_of_the_suite(suite: Suite):
    layout, states = suite.config.layout, initial_states(suite)
    xy = places(suite)[:, :, :2]
    assert np.all((xy >= layout.free_low_m) & (xy <= layout.free_high_m))
    for one, other in itertools.combinations(range(5), 2):
        gap = np.linalg.norm(xy[:, one] - xy[:, other], axis=-1)
        assert gap.min() >= layout.free_distance_m
    grip = states.controller[:, :3]
    assert np.all((grip >= layout.grip_low_m) & (grip <= layout.grip_high_m))
    assert np.all(states.mocap_pos[:, :, 1].prod(axis=1) < 0)  # one fixture on each side
    share_left = np.mean(states.mocap_pos[:, 0, 1] > 0)
    assert 0.45 < share_left < 0.55


def test_objects_stand_upright_on_the_table(suite: Suite):
    heights = places(suite)[:, :, 2]
    assert np.allclose(heights, [0.02, 0.02, 0.025, 0.025, 0.022], atol=1e-12)


def test_nothing_overlaps_in_any_initial_state(suite: Suite):
    model, states = suite.model, initial_states(suite)
    data, table = mujoco.MjData(model), model.geom("table").id
    for qpos, mocap_pos in zip(states.qpos, states.mocap_pos, strict=True):
        data.qpos[:], data.mocap_pos[:] = qpos, mocap_pos
        mujoco.mj_fwdPosition(model, data)
        contact = data.contact
        assert np.all(np.any(contact.geom == table, axis=1)), "two things touch"
        assert np.all(contact.dist > -1e-9)


def test_everything_stands_still_while_the_robot_idles(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    ids = [*suite.train_ids[::100], *suite.test_ids[::10]]
    sim = new_sim(len(ids))
    sim.reset(range(len(ids)), tasks=[0] * len(ids), state_ids=ids)
    things, grip = sim.thing_positions(), sim.grip_pose()[0]
    sim.step_chunk(np.zeros((len(ids), 20, ACTION_DIM)))
    assert np.linalg.norm(sim.thing_positions() - things, axis=-1).max() < 0.002
    assert np.linalg.norm(sim.grip_pose()[0] - grip, axis=-1).max() < 0.002


def test_an_id_is_the_same_scene_for_every_task(suite: Suite, new_sim: Callable[..., VectorSim]):
    sim = new_sim(len(suite.tasks))
    slots = range(len(suite.tasks))
    sim.reset(slots, tasks=slots, state_ids=[7] * len(suite.tasks))
    observation = sim.observe()
    for slot in slots:
        assert np.array_equal(observation.images[slot], observation.images[0])
        assert np.array_equal(observation.state[slot], observation.state[0])
    assert len(set(observation.instruction)) == len(suite.tasks)


def test_the_commanded_pose_of_a_state_is_the_measured_one(
    suite: Suite, new_sim: Callable[..., VectorSim]
):
    sim = new_sim(64)
    sim.reset(range(64), tasks=[0] * 64, state_ids=range(64))
    position, rotation = sim.grip_pose()
    commanded = initial_states(suite).controller[:64]
    assert np.abs(position - commanded[:, :3]).max() < 5e-4
    assert np.abs(rotation.reshape(64, 9) - commanded[:, 3:12]).max() < 5e-3


def test_a_layout_without_room_is_refused(suite: Suite):
    layout = dataclasses.replace(suite.config.layout, free_distance_m=1.0)
    crowded = Suite("crowded", dataclasses.replace(suite.config, layout=layout), suite.model)
    with pytest.raises(ConfigError, match="'crowded': found no room for 5 objects at least 1.0 m"):
        initial_states(crowded)
