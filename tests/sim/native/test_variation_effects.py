"""What each variation does, against changed MuJoCo models or numbers worked out by hand."""

from collections import Counter
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from vla_crl.catalog import suite_path
from vla_crl.errors import ConfigError
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.kernel.controller import JOINTS, MAX_JOINT_LEAD_RAD
from vla_crl.sim.native.kernel.mechanics import Mechanics, vary
from vla_crl.sim.native.kernel.slots import scratch_of
from vla_crl.sim.native.layout import GRIP_DOWN
from vla_crl.sim.native.replay import replay
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.variation import TurnBox, VariationConfig, draw

NewSim = Callable[..., VectorSim]
SHIFT, TURN = (0.03, -0.02, 0.01), (0.05, -0.1, 0.15)


def up_to(limit: float) -> TurnBox:
    """Return the box of numbers between -limit and limit."""
    return (-limit, -limit, -limit), (limit, limit, limit)


EVERYTHING = VariationConfig(
    camera_shift_m=up_to(0.02),
    camera_turn_rad=up_to(0.05),
    light_gain=(0.6, 1.2),
    light_turn_rad=up_to(0.3),
    colour_shift=up_to(0.2),
    materials=("checks", "speckles"),
    base_shift_m=((-0.03, -0.03, 0.0), (0.03, 0.03, 0.01)),
    mass_gain=(0.5, 2.0),
    friction_gain=(0.5, 1.2),
    action_latency=(0, 3),
    image_noise=(0.0, 0.05),
    state_noise=(0.0, 0.004),
    paraphrase=True,
)


def fixed(**settings: Any) -> VariationConfig:
    """Return a variation of one value instead of a range for each of `settings`."""
    ranges: dict[str, Any] = {name: (value, value) for name, value in settings.items()}
    return VariationConfig(**ranges)


def started(new_sim: NewSim, num_slots: int = 3, **settings: Any) -> VectorSim:
    """Begin an episode of the first task in each slot, from the state of the slot's number."""
    sim = new_sim(num_slots, **settings)
    sim.reset(range(num_slots), tasks=[0] * num_slots, state_ids=range(num_slots))
    return sim


def random_actions(num_slots: int, num_steps: int) -> np.ndarray:
    actions = np.random.default_rng(0).normal(size=(num_slots, num_steps, 7))
    actions[..., 2] -= 0.3  # down, among the objects
    return np.clip(actions, -1.0, 1.0)


def assert_same_states(one: VectorSim, other: VectorSim) -> None:
    states = other.get_states()
    for name, values in one.get_states().items():
        assert np.array_equal(values, states[name]), name


def drawn_with(sim: VectorSim, scene: Scene, model: mujoco.MjModel) -> np.ndarray:
    """Draw the poses of all slots with a renderer of another model."""
    posed, data, poses = copy(scene.model), mujoco.MjData(scene.model), []
    for slot in range(sim.num_slots):
        sim.write_scene(slot, posed, data)
        fields = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
        poses.append([field.copy() for field in fields])
    renderer = BatchRenderer(model, sim.suite.embodiment.cameras, 64, 64)
    return renderer.render(*(np.stack(field) for field in zip(*poses, strict=True)))


# Nothing varies.


def test_the_default_variation_changes_nothing_bit_for_bit(new_sim: NewSim):
    nominal, varied = started(new_sim), started(new_sim, variation=VariationConfig())
    actions = random_actions(3, 6)
    for sim in (nominal, varied):
        sim.step_chunk(actions)
    assert_same_states(nominal, varied)
    one, other = nominal.observe(), varied.observe()
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(one.state, other.state)
    assert one.instruction == other.instruction


# Looks.


def test_a_fixed_camera_moves_and_turns_in_its_own_frame(new_sim: NewSim):
    nominal = started(new_sim)
    varied = started(new_sim, variation=fixed(camera_shift_m=SHIFT, camera_turn_rad=TURN))
    position, rotation, _ = nominal.camera_poses()
    moved, turned, _ = varied.camera_poses()
    expected = rotation[:, 0] @ Rotation.from_rotvec(TURN).as_matrix()
    assert np.allclose(moved[:, 0], position[:, 0] + rotation[:, 0] @ SHIFT, atol=1e-12)
    assert np.allclose(turned[:, 0], expected, atol=1e-12)
    assert np.array_equal(moved[:, 1], position[:, 1])  # the wrist's is part of the robot
    assert np.array_equal(turned[:, 1], rotation[:, 1])
    # agentview looks at the robot: its right is +y, and back is away from the robot.
    right = (
        started(new_sim, variation=fixed(camera_shift_m=(0.05, 0.0, 0.0))).camera_poses().position
    )
    assert np.allclose(right[:, 0] - position[:, 0], [0.0, 0.05, 0.0], atol=1e-12)
    back = (
        started(new_sim, variation=fixed(camera_shift_m=(0.0, 0.0, 0.05))).camera_poses().position
    )
    assert np.all(back[:, 0, 0] > position[:, 0, 0])
    assert np.all(back[:, 0, 2] > position[:, 0, 2])


def test_a_camera_on_something_fixed_moves_as_well(
    load_changed: Callable[..., Suite], new_sim: NewSim
):
    old = '<camera name="agentview" pos=".62 0 .62" xyaxes="0 1 0 -0.731 0 0.682" fovy="32"/>'
    mount = f'<body name="mount"><geom size=".001" contype="0" conaffinity="0"/>{old}</body>'
    settings: dict[str, Any] = {"camera_shift_m": SHIFT, "camera_turn_rad": TURN}
    mounted = load_changed(old, mount, "scene.xml")
    moved = started(new_sim, variation=fixed(**settings), suite=mounted).camera_poses()
    expected = started(new_sim, variation=fixed(**settings)).camera_poses()
    for one, other in zip(moved, expected, strict=True):
        assert np.allclose(one, other, atol=1e-12)


def test_a_moved_camera_sees_what_a_model_with_that_camera_shows(scene: Scene, new_sim: NewSim):
    varied = started(new_sim, variation=fixed(camera_shift_m=SHIFT, camera_turn_rad=TURN))
    model = copy(scene.model)
    camera, rotation = model.camera("agentview"), np.empty(9)
    mujoco.mju_quat2Mat(rotation, camera.quat)
    axes = Rotation.from_matrix(rotation.reshape(3, 3))
    camera.pos[:] += axes.apply(SHIFT)
    x, y, z, w = (axes * Rotation.from_rotvec(TURN)).as_quat()
    camera.quat[:] = w, x, y, z
    data = mujoco.MjData(model)
    images, nominal = varied.observe().images, started(new_sim).observe().images
    for slot in range(3):
        varied.write_scene(slot, copy(model), data)
        mujoco.mj_forward(model, data)
        poses = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
        drawn = BatchRenderer(model, ["agentview"], 64, 64).render(*(p[None] for p in poses))
        differs = np.any(images[slot, 0] != drawn[0, 0], axis=-1)
        assert differs.mean() < 0.001  # the quaternion rounds: a pixel on an edge may change
        assert np.any(images[slot, 0] != nominal[slot, 0], axis=-1).mean() > 0.2
        assert np.array_equal(images[slot, 1], nominal[slot, 1])


def test_light_is_that_of_a_model_with_such_lights(scene: Scene, new_sim: NewSim):
    sim = started(new_sim, variation=fixed(light_gain=0.5, light_turn_rad=(0.4, -0.3, 0.2)))
    model = copy(scene.model)
    for light in (model.vis.headlight.ambient, model.vis.headlight.diffuse):
        light[:] *= 0.5
    model.light_ambient[:] *= 0.5
    model.light_diffuse[:] *= 0.5
    turn = Rotation.from_rotvec((0.4, -0.3, 0.2))
    model.light_dir[:] = turn.apply(model.light_dir)
    images = sim.observe().images
    difference = images.astype(int) - drawn_with(sim, scene, model)
    assert np.abs(difference).max() <= 1  # the direction rounds
    assert (difference != 0).mean() < 0.01


@pytest.mark.parametrize(("gain", "lower", "upper"), [(0.5, 0.45, 0.6), (1.2, 1.1, 1.21)])
def test_pictures_are_as_bright_as_the_light(
    new_sim: NewSim, gain: float, lower: float, upper: float
):
    nominal = started(new_sim).observe().images
    images = started(new_sim, variation=fixed(light_gain=gain)).observe().images
    assert lower < images.mean() / nominal.mean() < upper  # white cannot become brighter


def test_colours_are_those_of_a_model_with_such_colours(scene: Scene, new_sim: NewSim):
    config = VariationConfig(colour_shift=up_to(0.3), seed=2)
    images = started(new_sim, variation=config).observe().images
    for slot in range(3):
        robot, rest = draw(config, slot, 5, 4).colour_shift
        model = copy(scene.model)
        for geom in range(model.ngeom):
            body = model.body(model.geom_bodyid[geom]).name
            is_robot = body.startswith(("arm_base", "link", "hand", "left_", "right_"))
            if is_robot or body == "world":
                shift = robot if is_robot else rest
                model.geom_rgba[geom, :3] = np.clip(model.geom_rgba[geom, :3] + shift, 0.0, 1.0)
        sim = started(new_sim)
        assert np.array_equal(images[slot], drawn_with(sim, scene, model)[slot])
        assert not np.array_equal(images[slot], sim.observe().images[slot])


def test_the_table_is_covered_by_one_of_the_materials(scene: Scene, new_sim: NewSim):
    config = VariationConfig(materials=("checks", "tiles", "speckles"), seed=1)
    images = started(new_sim, variation=config).observe().images
    sim, shown = started(new_sim), [draw(config, slot, 5, 4).material for slot in range(3)]
    assert len(set(shown)) > 1
    for slot, material in enumerate(shown):
        model = copy(scene.model)
        model.geom_matid[model.geom("table").id] = model.material(str(material)).id
        assert np.array_equal(images[slot], drawn_with(sim, scene, model)[slot])
        changed = np.any(images[slot] != sim.observe().images[slot], axis=-1)
        assert changed.mean() > 0.02
    sim.reset([0], tasks=[0], state_ids=[0])
    varied = started(new_sim, variation=config)
    varied.reset([0], tasks=[0], state_ids=[2])
    assert np.array_equal(varied.observe().images[0], images[2])


def test_a_model_written_from_a_slot_looks_like_the_slot(scene: Scene, new_sim: NewSim):
    varied = {"colour_shift": up_to(0.2), "light_gain": (0.6, 1.4), "light_turn_rad": up_to(0.3)}
    config = VariationConfig(**varied, materials=("checks", "tiles", "speckles"))
    sim, model, data = (
        started(new_sim, variation=config),
        copy(scene.model),
        mujoco.MjData(scene.model),
    )
    images = sim.observe().images
    for slot in (0, 2, 1, 0):  # one after another in the same model
        sim.write_scene(slot, model, data)
        poses = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
        renderer = BatchRenderer(model, sim.suite.embodiment.cameras, 64, 64)
        drawn = renderer.render(*(p[None] for p in poses))
        assert np.abs(images[slot].astype(int) - drawn[0]).max() <= 1  # directions round
    nominal = started(new_sim)
    nominal.write_scene(0, model, data)
    assert np.array_equal(model.geom_rgba, scene.model.geom_rgba)
    assert np.array_equal(model.light_diffuse, scene.model.light_diffuse)


def test_a_material_that_no_scene_has_is_refused(new_sim: NewSim):
    message = "variation of 'red_cube_in_basket': unknown material 'tile'.*'tiles'"
    with pytest.raises(ConfigError, match=message):
        new_sim(1, variation=VariationConfig(materials=("tile",)))


def test_what_instructions_name_keeps_its_colour(scene: Scene, new_sim: NewSim):
    config = VariationConfig(colour_shift=up_to(0.3), seed=2)
    varied, nominal = started(new_sim, variation=config), started(new_sim)
    images, expected = varied.observe().images, nominal.observe().images
    data = mujoco.MjData(scene.model)
    renderer = BatchRenderer(scene.model, nominal.suite.embodiment.cameras, 64, 64)
    for slot in range(3):
        nominal.write_scene(slot, copy(scene.model), data)
        poses = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
        geoms = renderer.segment(*(pose[None] for pose in poses))[0]
        is_named = np.isin(scene.model.geom_bodyid[geoms], list(scene.bodies.values()))
        is_named &= geoms >= 0
        inner = binary_erosion(is_named, np.ones((1, 3, 3)))  # edges are blended
        assert inner.sum() > 100
        assert np.array_equal(images[slot][inner], expected[slot][inner])
        changed = np.any(images[slot] != expected[slot], axis=-1)
        assert changed[~is_named & (geoms >= 0)].mean() > 0.95


# Mechanics.


def test_a_displaced_base_takes_the_robot_and_nothing_else_along(scene: Scene, new_sim: NewSim):
    shift = (0.03, -0.04, 0.02)
    nominal, varied = started(new_sim), started(new_sim, variation=fixed(base_shift_m=shift))
    grip, rotation = nominal.grip_pose()
    moved, turned = varied.grip_pose()
    assert np.allclose(moved - grip, shift, atol=1e-12)
    assert np.allclose(turned, rotation, atol=1e-12)
    assert np.array_equal(varied.thing_positions(), nominal.thing_positions(), equal_nan=True)
    cameras, others = varied.camera_poses().position, nominal.camera_poses().position
    assert np.allclose(cameras - others, [[[0.0] * 3, shift]] * 3, atol=1e-12)  # the wrist's
    one, other = mujoco.MjData(scene.model), mujoco.MjData(scene.model)
    nominal.write_scene(1, copy(scene.model), one)
    varied.write_scene(1, copy(scene.model), other)
    for body in range(1, scene.model.nbody):
        is_robot = scene.model.body_rootid[body] == scene.model.body("arm_base").id
        expected = shift if is_robot else (0.0, 0.0, 0.0)
        assert np.allclose(other.xpos[body] - one.xpos[body], expected, atol=1e-12)
    assert np.array_equal(one.qpos, other.qpos)


def test_a_displaced_robot_goes_where_the_action_says(new_sim: NewSim):
    shift = np.array([0.03, -0.04, 0.02])
    sim = started(new_sim, variation=fixed(base_shift_m=tuple(shift.tolist())))
    start = sim.grip_pose()[0]
    actions = np.zeros((3, 10, 7))
    actions[:, :2] = [0.4, 0.6, -0.8, 0.0, 0.0, 0.0, 0.0]  # 0.05 m a step
    sim.step_chunk(actions)
    position, rotation = sim.grip_pose()
    assert np.linalg.norm(position - start - [0.04, 0.06, -0.08], axis=1).max() < 0.003
    assert np.abs(rotation - GRIP_DOWN).max() < 0.01


def compiled_with(scene: Scene, mass_gain: np.ndarray, friction_gain: float) -> mujoco.MjModel:
    """Let MuJoCo compile the scene with other masses and frictions."""
    spec = mujoco.MjSpec.from_file(str(suite_path("tabletop_object") / "scene.xml"))
    kept = [scene.thing(name).body for name in scene.bodies]
    for body in list(spec.bodies):
        is_free = any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints)
        if is_free and body.name not in kept:
            spec.delete(body)
    for name, gain in zip(kept, mass_gain, strict=False):  # objects come before fixtures
        for geom in spec.body(name).geoms:
            geom.density *= gain
    for geom in spec.geoms:
        geom.friction = np.array(geom.friction) * friction_gain
    return spec.compile()


def test_masses_and_frictions_are_those_of_a_model_compiled_with_them(suite: Suite, scene: Scene):
    world, (scratch, model, _) = constants_of(suite, 0), scratch_of(scene.model)
    mass_gain = np.array([2.0, 0.5, 3.0, 1.5, 0.8])
    for gains in (np.full(5, 7.0), mass_gain):  # the second call starts from the file's numbers
        vary(world.mechanics, scratch.mechanics, world.objects, gains, 0.7)
    expected = compiled_with(scene, mass_gain, 0.7)
    for name in Mechanics._fields:
        first = 1 if name == "body_subtreemass" else 0  # nothing depends on the world's
        value = getattr(model, name)[first:]
        assert np.allclose(value, getattr(expected, name)[first:], rtol=1e-12, atol=1e-15), name
    assert np.allclose(model.body_mass[scene.bodies["red cube"]], 2 * 0.064)  # 4 cm, 1000 kg/m^3


def test_a_varied_episode_is_that_of_plain_mj_step_with_such_a_model(scene: Scene, new_sim: NewSim):
    model = compiled_with(scene, np.full(5, 2.0), 0.5)  # powers of two: nothing rounds
    model.stat.meaninertia = scene.model.stat.meaninertia  # the unit of the solver's tolerance
    config = fixed(mass_gain=2.0, friction_gain=0.5)
    sim = started(new_sim, 1, variation=config)
    arm = [model.actuator(name).id for name in scene.config.arm.joints]
    fingers = [model.actuator(name).id for name in ("finger1", "finger2")]
    expert, touched = ScriptedExpert(sim), False
    for _ in range(15):
        data = mujoco.MjData(model)  # nothing sleeps in it
        data.tree_asleep[:] = sim.get_states()["tree_asleep"][0]
        mujoco.mj_setState(model, data, sim.get_states()["physics"][0], STATE_SPEC)
        before = sim.get_states()["controller"][0, JOINTS.start :]
        sim.step_chunk(expert.act(np.array([0]))[:, None])
        change = sim.get_states()["controller"][0, JOINTS.start :] - before
        for substep in range(20):
            commands = before + (substep + 1) / 20 * change
            low, high = data.qpos[:7] - MAX_JOINT_LEAD_RAD, data.qpos[:7] + MAX_JOINT_LEAD_RAD
            data.ctrl[arm], data.ctrl[fingers] = np.clip(commands[:7], low, high), commands[7]
            mujoco.mj_step(model, data)
        touched |= bool(data.xpos[scene.bodies["red cube"], 2] > 0.03)
        qpos = sim.get_states()["physics"][0, 1 : 1 + model.nq]
        assert np.array_equal(qpos, data.qpos)
    assert touched


def test_a_thing_slides_twice_as_far_with_half_the_friction(scene: Scene, new_sim: NewSim):
    distances, cube = [], scene.model.body("red_cube")
    for gain in (1.0, 0.5):
        sim = started(new_sim, 1, variation=fixed(friction_gain=gain))
        states = sim.get_states()
        start = 1 + scene.model.jnt_qposadr[cube.jntadr[0]]
        velocity = 1 + scene.model.nq + cube.dofadr[0]
        states["physics"][0, start : start + 7] = [-0.1, 0.3, 0.02, 1.0, 0.0, 0.0, 0.0]
        states["physics"][0, velocity] = 0.8  # m/s along x, beside everything else
        sim.set_states(states)
        sim.step_chunk(np.zeros((1, 10, 7)))
        distances.append(sim.thing_positions()[0, 0, 0] + 0.1)
    # v^2 / (2 mu g) = 0.0326 m for mu = 1; a contact is soft, so it slides a little further.
    assert distances[0] == pytest.approx(0.0326, rel=0.25)
    assert distances[1] / distances[0] == pytest.approx(2.0, rel=0.1)


# Actions.


@pytest.mark.parametrize("latency", [1, 3, 8])
def test_latency_shifts_the_actions(new_sim: NewSim, latency: int):
    late = started(new_sim, variation=fixed(action_latency=latency))
    nominal, actions = started(new_sim), random_actions(3, 12)
    assert late.action_latency().tolist() == [latency] * 3
    shifted = np.concatenate([np.zeros((3, latency, 7)), actions[:, :-latency]], axis=1)
    for start in (0, 5, 9):  # chunks of other lengths than the latency
        stop = {0: 5, 5: 9, 9: 12}[start]
        late.step_chunk(actions[:, start:stop])
        nominal.step_chunk(shifted[:, start:stop])
    one, other = late.get_states(), nominal.get_states()
    for name in set(one) - {"pending"}:
        assert np.array_equal(one[name], other[name]), name


def test_a_new_episode_does_not_carry_out_the_last_ones_actions(new_sim: NewSim):
    sims = [started(new_sim, variation=fixed(action_latency=2)) for _ in range(2)]
    sims[0].step_chunk(random_actions(3, 5))
    sims[0].reset(range(3), tasks=[0] * 3, state_ids=range(3))
    for sim in sims:
        sim.step_chunk(np.zeros((3, 4, 7)))
    assert_same_states(*sims)


# Senses.


def test_image_noise_is_as_strong_as_it_says(new_sim: NewSim):
    clean = started(new_sim).observe().images.astype(float)
    noisy = started(new_sim, variation=fixed(image_noise=0.04)).observe().images
    noise = (noisy - clean) / 255.0
    grey = (clean > 60) & (clean < 195)  # black and white clip
    assert grey.sum() > 10_000
    assert noise[grey].std() == pytest.approx(0.04, rel=0.02)
    assert abs(noise[grey].mean()) < 0.001
    assert np.abs(noise).max() <= 0.04 * 12**0.5 + 0.5 / 255 + 1e-9
    for one, other in ((noise[:, :, 1:], noise[:, :, :-1]), (noise[0], noise[1])):
        both = (grey[:, :, 1:] & grey[:, :, :-1]) if one.ndim == 5 else grey[0] & grey[1]
        assert abs(np.corrcoef(one[both], other[both])[0, 1]) < 0.03


def test_state_noise_is_as_strong_as_it_says(new_sim: NewSim):
    num = 300
    clean, noisy = started(new_sim, num), started(new_sim, num, variation=fixed(state_noise=0.003))
    slots = range(num)
    noise = noisy.observe(slots).state - clean.observe(slots).state
    assert np.allclose(noise.std(axis=0), 0.003, rtol=0.15)  # 1 / sqrt(2 * 300) = 0.04
    assert np.abs(noise.mean(axis=0)).max() < 0.0008
    assert np.abs(np.corrcoef(noise.T) - np.eye(8)).max() < 0.25
    assert np.array_equal(noisy.grip_pose()[0], clean.grip_pose()[0])  # physics stays as it is


def test_noise_is_another_in_every_step_and_episode_and_the_same_when_looking_again(
    new_sim: NewSim,
):
    config = fixed(image_noise=0.05, state_noise=0.01)
    sim, other = started(new_sim, 10, variation=config), new_sim(4, num_threads=1, variation=config)
    first = sim.observe(range(10))
    again = sim.observe([7, 2, 9])
    assert np.array_equal(again.images, first.images[[7, 2, 9]])
    assert np.array_equal(again.state, first.state[[7, 2, 9]])
    other.reset([3, 0], tasks=[0, 0], state_ids=[7, 2])
    elsewhere = other.observe([3, 0])
    assert np.array_equal(elsewhere.images, first.images[[7, 2]])
    assert np.array_equal(elsewhere.state, first.state[[7, 2]])
    clean = started(new_sim, 10).observe().state
    noise = [first.state - clean]
    sim.step_chunk(np.zeros((10, 1, 7)))
    still = started(new_sim, 10)
    still.step_chunk(np.zeros((10, 1, 7)))
    noise.append(sim.observe().state - still.observe().state)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.4
    assert abs(np.corrcoef(noise[0][:5].ravel(), noise[0][5:].ravel())[0, 1]) < 0.5
    reseeded = started(
        new_sim, 10, variation=VariationConfig(state_noise=(0.01, 0.01), seed=1)
    ).observe()
    assert not np.any(reseeded.state == first.state)


# Words.


def test_the_sentence_is_drawn_from_the_instruction_and_its_paraphrases(
    suite: Suite, new_sim: NewSim
):
    sim = started(new_sim, 300, variation=VariationConfig(paraphrase=True))
    task = suite.tasks[0]
    sentences = (task.instruction, *task.paraphrases)
    said = Counter(sim.instructions())
    assert set(said) == set(sentences)
    assert all(70 < said[sentence] < 130 for sentence in sentences)  # 100 +- 8
    assert sim.observe([5, 1]).instruction == sim.instructions([5, 1])
    nominal = started(new_sim, 300, variation=VariationConfig())
    assert set(nominal.instructions()) == {task.instruction}


def test_a_task_without_paraphrases_keeps_its_instruction(new_sim: NewSim):
    goal = load_suite("tabletop_goal")
    sim = started(new_sim, 20, suite=goal, variation=VariationConfig(paraphrase=True))
    assert set(sim.instructions()) == {goal.tasks[0].instruction}


# Tasks, states and divergences.


def test_the_simulations_variation_is_that_of_tasks_without_one(new_sim: NewSim):
    suite = load_suite("tabletop_perturbed")
    sim = new_sim(10, suite=suite, variation=fixed(action_latency=5))
    sim.reset(range(10), tasks=range(10), state_ids=[3] * 10)
    for task, latency in zip(suite.tasks, sim.action_latency(), strict=True):
        own = {1, 2} if task.name == "latency" else {0}
        assert latency in ({5} if task.name in {"nominal", "distractors"} else own)


@pytest.mark.parametrize("task", load_suite("tabletop_perturbed").tasks, ids=lambda task: task.name)
def test_a_perturbed_task_differs_from_the_nominal_one_in_what_it_is_named_after(
    new_sim: NewSim, task: Any
):
    suite = load_suite("tabletop_perturbed")
    sim, index = new_sim(2, suite=suite), suite.task_index(task.name)
    state_id = next(i for i in range(9) if not is_first_sentence(task.variation, i))
    sim.reset(range(2), tasks=[suite.task_index("nominal"), index], state_ids=[state_id] * 2)
    seen = sim.observe()
    differs = {
        "picture": not np.array_equal(*seen.images),
        "state": not np.array_equal(*seen.state),
        "sentence": seen.instruction[0] != seen.instruction[1],
        "camera": not np.array_equal(*sim.camera_poses().position[:, 0]),
        "grip": not np.array_equal(*sim.grip_pose()[0]),
        "latency": bool(sim.action_latency()[1]),
    }
    expected = {
        "camera": {"picture", "camera"},
        "light": {"picture"},
        "robot_base": {"picture", "state", "grip"},
        "colours": {"picture"},
        "latency": {"latency"},
        "nominal": set(),
        "distractors": {"picture"},
        "mass_and_friction": set(),
        "noise": {"picture", "state"},
        "paraphrase": {"sentence"},
    }
    ignored = {"state", "grip"} if task.name == "distractors" else set()  # another layout
    assert {name for name, value in differs.items() if value} - ignored == expected[task.name]


def is_first_sentence(variation: VariationConfig | None, state_id: int) -> bool:
    if variation is None or not variation.paraphrase:
        return False
    said = draw(variation, state_id, 5, 4).paraphrase
    return said is not None and said < 1 / 3


def test_a_saved_state_continues_bit_for_bit_under_every_variation(new_sim: NewSim):
    actions, config = random_actions(6, 12), EVERYTHING
    sim = started(new_sim, 6, variation=config)
    assert len(set(sim.action_latency())) > 2
    sim.step_chunk(actions[:, :5])
    other = new_sim(6, num_threads=1, variation=config)
    other.set_states(sim.get_states())
    for start in (5, 8):
        seen, there = sim.observe(), other.observe()
        assert np.array_equal(seen.images, there.images)
        assert np.array_equal(seen.state, there.state)
        assert seen.instruction == there.instruction
        for each in (sim, other):
            each.step_chunk(actions[:, start : start + 3])
    assert_same_states(sim, other)


def test_states_replace_every_episode_of_a_simulation(new_sim: NewSim):
    sim, other = new_sim(2), started(new_sim, 2)
    sim.reset([0], tasks=[3], state_ids=[5])
    other.set_states(sim.get_states())
    assert other.state_ids.tolist() == [5, -1]
    assert_same_states(sim, other)


def test_a_recorded_episode_can_be_drawn_again(new_sim: NewSim):
    sim = started(new_sim, 2, variation=EVERYTHING)
    expert, recorded = ScriptedExpert(sim), []
    running = np.arange(2)
    while len(running):
        recorded.append((sim.get_states(), sim.observe(range(2))))
        result = sim.step_chunk(expert.act(running)[:, None], running)
        running = running[~(result.terminated | result.truncated)]
    recorded.append((sim.get_states(), sim.observe(range(2))))
    assert len(recorded) > 15
    other = new_sim(2, num_threads=1, variation=EVERYTHING)
    for states, seen in reversed(recorded):
        other.set_states(states)
        again = other.observe()
        assert np.array_equal(again.images, seen.images)
        assert np.array_equal(again.state, seen.state)


def test_a_divergence_under_variation_is_replayed(
    scene: Scene, new_sim: NewSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file there
    sim, actions = started(new_sim, 3, variation=EVERYTHING), random_actions(3, 4)
    sim.step_chunk(actions)
    states = sim.get_states()
    states["physics"][1, 1 + scene.model.nq + scene.model.body("red_cube").dofadr[0]] = 1e5
    sim.set_states(states)
    assert sim.step_chunk(actions).diverged.tolist() == [False, True, False]
    (divergence,) = sim.divergences
    assert np.array_equal(divergence.state["pending"], states["pending"][1])
    loaded = Divergence.load(divergence.save(tmp_path))
    assert loaded.variation == EVERYTHING
    with pytest.raises(ConfigError, match="the simulation varies None, the one that blew up Varia"):
        replay(loaded, new_sim(1))
    other = new_sim(1, variation=loaded.variation)
    assert replay(loaded, other)
    assert str(other.divergences[0]) == str(divergence)
    assert other.divergences[0].cause == divergence.cause


def test_friction_that_is_no_geoms_is_not_varied_in_silence(
    load_changed: Callable[..., Suite], new_sim: NewSim
):
    pair = '<contact><pair name="feet" geom1="red_cube_geom" geom2="table"/></contact>'
    suite = load_changed("</mujoco>", f"{pair}</mujoco>", "scene.xml")
    new_sim(1, suite=suite)
    with pytest.raises(ConfigError, match="friction_gain is of geoms, but the contact pair 'feet'"):
        new_sim(1, suite=suite, variation=VariationConfig(friction_gain=(0.5, 1.0)))
