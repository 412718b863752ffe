import dataclasses
import itertools
from collections.abc import Callable

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError
from vla_crl.sim.native.kernel.controller import POSITION, ROTATION
from vla_crl.sim.native.layout import initial_states, rest_height
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim

NewSim = Callable[..., VectorSim]
HEIGHTS_M = {
    "red cube": 0.02, "blue cylinder": 0.025, "purple ball": 0.022, "white mug": 0.024,
    "cyan cross": 0.014, "green cube": 0.02, "yellow cylinder": 0.025, "orange brick": 0.015,
    "black bottle": 0.022, "pink egg": 0.02,
}  # fmt: skip
"""Half heights, from the sizes in the scene file."""


def objects(scene: Scene) -> list[str]:
    return [name for name, body in scene.bodies.items() if scene.model.body_dofnum[body] == 6]


def places(scene: Scene) -> np.ndarray:
    """Positions (m) of the objects in every initial state, [ids, objects, 3]."""
    model, qpos = scene.model, initial_states(scene).qpos
    bodies = [scene.bodies[name] for name in objects(scene)]
    starts = [model.jnt_qposadr[model.body_jntadr[body]] for body in bodies]
    return np.stack([qpos[:, start : start + 3] for start in starts], axis=1)


def test_train_and_test_states_are_disjoint_and_many(suite: Suite):
    assert len(suite.train_ids) >= 500
    assert len(suite.test_ids) >= 100
    assert not set(suite.train_ids) & set(suite.test_ids)
    for scene in suite.scenes:
        assert len(initial_states(scene).qpos) == len(suite.train_ids) + len(suite.test_ids)


def test_every_test_layout_differs_from_every_training_layout(suite: Suite):
    for scene in suite.scenes:
        flat = places(scene)[:, :, :2].reshape(suite.test_ids.stop, -1)
        for layout in flat[suite.test_ids]:
            apart = np.abs(flat[suite.train_ids] - layout).max(axis=1)
            assert apart.min() > 0.002


def test_states_keep_the_ranges_of_the_suite(scene: Scene):
    layout, states = scene.config.layout, initial_states(scene)
    xy = places(scene)[:, :, :2]
    assert np.all((xy >= layout.free_low_m) & (xy <= layout.free_high_m))
    for one, other in itertools.combinations(range(5), 2):
        gap = np.linalg.norm(xy[:, one] - xy[:, other], axis=-1)
        assert gap.min() >= layout.free_distance_m
    grip = states.controller[:, POSITION]
    assert np.all((grip >= layout.grip_low_m) & (grip <= layout.grip_high_m))
    assert np.all(states.mocap_pos[:, 1:, 1].prod(axis=1) < 0)  # one on each side, after the robot
    share_left = np.mean(states.mocap_pos[:, 1, 1] > 0)
    assert 0.45 < share_left < 0.55


def test_a_thing_with_a_rectangle_of_its_own_starts_there():
    scene = load_suite("tabletop_goal").scenes[0]
    plate = objects(scene).index("plate")
    xy = places(scene)[:, plate, :2]
    low, high = scene.thing("plate").low_m, scene.thing("plate").high_m
    assert low is not None
    assert high is not None
    assert np.all((xy >= low) & (xy <= high))
    assert np.allclose([xy.min(axis=0), xy.max(axis=0)], [low, high], atol=1e-3)  # all of it


def test_objects_stand_upright_on_the_table(suite: Suite):
    for scene in suite.scenes:
        expected = [HEIGHTS_M[name] for name in objects(scene)]
        assert np.allclose(places(scene)[:, :, 2], expected, atol=1e-12)


def test_nothing_overlaps_in_any_initial_state(suite: Suite):
    for scene in suite.scenes:
        model, states = scene.model, initial_states(scene)
        data, table = mujoco.MjData(model), model.geom("table").id
        for qpos, mocap_pos in zip(states.qpos, states.mocap_pos, strict=True):
            data.qpos[:], data.mocap_pos[:] = qpos, mocap_pos
            mujoco.mj_fwdPosition(model, data)
            contact = data.contact
            assert np.all(np.any(contact.geom == table, axis=1)), "two things touch"
            assert np.all(contact.dist > -1e-9)


def test_everything_stands_still_while_the_robot_idles(suite: Suite, new_sim: NewSim):
    ids = np.repeat([*suite.train_ids[::100], *suite.test_ids[::10]], 2)
    sim, slots = new_sim(len(ids)), np.arange(len(ids))
    sim.reset(slots, tasks=slots % 2, state_ids=ids)  # a task of each scene
    things, grip = sim.thing_positions(), sim.grip_pose()[0]
    sim.step_chunk(np.zeros((len(ids), 20, len(ARM.action))))
    assert np.nanmax(np.linalg.norm(sim.thing_positions() - things, axis=-1)) < 0.002
    assert np.linalg.norm(sim.grip_pose()[0] - grip, axis=-1).max() < 0.002


@pytest.mark.parametrize("quat", ["0.5 0.5 0.5 0.5", "0.6 0.8 0 0"])
def test_an_object_starts_oriented_as_in_the_file_and_turned_about_the_vertical(
    load_changed: Callable[..., Suite], new_sim: NewSim, quat: str
):
    old, new = '<body name="orange_brick">', f'<body name="orange_brick" quat="{quat}">'
    suite = load_changed(old, new, "scene.xml")
    scene = next(s for s in suite.scenes if "orange brick" in s.bodies)
    task = list(suite.scenes).index(scene)
    body = scene.bodies["orange brick"]
    start = scene.model.jnt_qposadr[scene.model.body_jntadr[body]]
    qpos = initial_states(scene).qpos[:, start : start + 7]
    w, x, y, z = map(float, quat.split())
    turn = Rotation.from_quat(qpos[:, [4, 5, 6, 3]]) * Rotation.from_quat([x, y, z, w]).inv()
    assert np.allclose(np.linalg.norm(qpos[:, 3:], axis=1), 1.0)
    assert np.allclose(turn.as_rotvec()[:, :2], 0.0, atol=1e-12)
    assert np.ptp(turn.as_rotvec()[:, 2]) > 0.5
    vertical = Rotation.from_quat([x, y, z, w]).as_matrix()[2]
    assert np.allclose(qpos[:, 2], np.abs(vertical) @ [0.032, 0.015, 0.015])  # a box's reach down
    if quat == "0.5 0.5 0.5 0.5":  # on end, not on an edge
        sim = new_sim(8, suite=suite)
        tasks = np.flatnonzero(suite.scene_of_task == task)[:1].repeat(8)
        sim.reset(range(8), tasks=tasks, state_ids=range(8))
        things = sim.thing_positions()
        sim.step_chunk(np.zeros((8, 20, len(ARM.action))))
        assert np.nanmax(np.linalg.norm(sim.thing_positions() - things, axis=-1)) < 0.002


@pytest.mark.parametrize("name", ["basket", "arm_base"])
def test_fixtures_and_robot_stand_turned_as_in_the_file(
    load_changed: Callable[..., Suite], new_sim: NewSim, name: str
):
    quat, file = 'quat="0.9659258 0 0 0.2588190"', "scene.xml"  # 30 degrees
    folder = "../robots/arm7.xml" if name == "arm_base" else file
    suite = load_changed(f'<body name="{name}"', f'<body name="{name}" {quat}', folder)
    sim, model = new_sim(4, suite=suite), suite.scenes[0].model
    sim.reset(range(4), tasks=[0] * 4, state_ids=range(4))
    data = mujoco.MjData(model)
    sim.write_scene(2, model, data)
    turned = data.geom("basket_floor" if name == "basket" else "base_geom").xmat
    assert np.allclose(turned.reshape(3, 3), Rotation.from_euler("z", 30, degrees=True).as_matrix())
    commanded = initial_states(suite.scenes[0]).controller[:4, POSITION]
    assert np.abs(sim.grip_pose()[0] - commanded).max() < 5e-4


def test_an_id_is_the_same_picture_for_every_task_with_the_same_things(
    suite: Suite, new_sim: NewSim
):
    sim = new_sim(len(suite.tasks))
    slots = range(len(suite.tasks))
    sim.reset(slots, tasks=slots, state_ids=[7] * len(suite.tasks))
    observation = sim.observe()
    pictures = {image.tobytes() for image in observation.images}
    assert len(pictures) == len(suite.scenes) == 2
    for slot in slots:
        first = list(suite.scene_of_task).index(suite.tasks[slot].scene)
        assert np.array_equal(observation.images[slot], observation.images[first])
        assert np.array_equal(observation.state[slot], observation.state[first])
    assert len(set(observation.instruction)) == len(suite.tasks)


def test_the_commanded_pose_of_a_state_is_the_measured_one(scene: Scene, new_sim: NewSim):
    sim = new_sim(64)
    sim.reset(range(64), tasks=[0] * 64, state_ids=range(64))
    position, rotation = sim.grip_pose()
    commanded = initial_states(scene).controller[:64]
    assert np.abs(position - commanded[:, POSITION]).max() < 5e-4
    assert np.abs(rotation.reshape(64, 9) - commanded[:, ROTATION]).max() < 5e-3


def test_a_layout_without_room_is_refused(scene: Scene):
    layout = dataclasses.replace(scene.config.layout, free_distance_m=1.0)
    config = dataclasses.replace(scene.config, layout=layout)
    crowded = dataclasses.replace(scene, config=config)
    with pytest.raises(ConfigError, match="suite.toml: layout: found no room for 5 objects"):
        initial_states(crowded)


def test_a_start_that_the_arm_does_not_reach_is_refused(scene: Scene):
    layout = dataclasses.replace(
        scene.config.layout, grip_low_m=(3.0, 0.0, 0.2), grip_high_m=(3.0, 0.0, 0.2)
    )
    far = dataclasses.replace(scene, config=dataclasses.replace(scene.config, layout=layout))
    message = (
        r"layout: the arm does not reach \[3. +0. +0.2\], it stays 3.599 m away; move grip_low_m"
    )
    with pytest.raises(ConfigError, match=message):
        initial_states(far)


@pytest.mark.parametrize(
    ("geom", "height_m"),
    [
        ('type="sphere" size=".02"', 0.02),
        ('type="capsule" size=".02 .03"', 0.05),  # radius + half length
        ('type="capsule" size=".02 .03" euler="90 0 0"', 0.02),
        ('type="cylinder" size=".02 .03"', 0.03),
        ('type="box" size=".02 .03 .04" euler="90 0 0"', 0.03),
        ('type="box" size=".02 .03 .04" pos="0 0 .01"', 0.03),
        ('type="ellipsoid" size=".02 .03 .04" euler="0 90 0"', 0.02),
        ('type="mesh" mesh="corner"', None),
    ],
)
def test_an_upright_object_stands_on_the_ground(geom: str, height_m: float | None):
    xml = f"""
    <mujoco>
      <asset><mesh name="corner" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/></asset>
      <worldbody><body><freejoint/><geom {geom}/></body></worldbody>
    </mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    if height_m is None:
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, model.geom_quat[0])
        corners = model.geom_pos[0] + model.mesh_vert @ turn.reshape(3, 3).T
        height_m = -float(corners[:, 2].min())
        assert abs(height_m) < 1e-6  # the corner of the mesh is the body's origin
    assert rest_height(model, 1) == pytest.approx(height_m, abs=1e-6)
