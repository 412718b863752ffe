"""The backend beside MuJoCo's C library and the project's renderer, on Warp's CPU device."""

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

pytest.importorskip("mujoco_warp", reason="pip install --editable '.[warp]'")

import warp as wp

import vla_crl.sim.warp
from vla_crl.contracts import Observation
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.backends import expert_of
from vla_crl.sim.native.controllers import holding
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.kernel.mechanics import vary
from vla_crl.sim.native.kernel.slots import scratch_of
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import Resumable, Simulation
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.warp.warp_sim import WarpSim
from vla_crl.sim.warp.worlds import Worlds, warp_model

AT_ONCE, VARIED, OTHER_SCENE = 2, 3, 1
HORIZON = 5
CONTROL_HZ = 50.0  # four physics steps in a control step instead of twenty
NUM_SLOTS = 4
IMAGE_SIZE = 32
VARIATION = VariationConfig(
    camera_shift_m=((0.04, 0.02, -0.02), (0.08, 0.04, 0.02)),
    camera_turn_rad=((-0.02, 0.05, -0.05), (0.02, 0.1, 0.05)),
    base_shift_m=((-0.04, -0.04, 0.0), (0.04, 0.04, 0.0)),
    mass_gain=(0.5, 3.0),
    friction_gain=(0.4, 1.2),
    absent_distractors=(2, 4),
    action_latency=(1, 2),
    paraphrase=True,
)


@pytest.fixture(scope="module")
def suite() -> Suite:
    """Two scenes, short episodes; a task that succeeds at once and one with a variation."""
    suite = load_suite("tabletop_object")
    changes = {"horizon": HORIZON, "control_hz": CONTROL_HZ}
    scenes = tuple(replace(s, config=replace(s.config, **changes)) for s in suite.scenes)
    first, second = suite.tasks[:2]
    assert (first.scene, second.scene) == (0, 1)
    at_once = replace(first, name="at_once", goal=Goal("released", ("red cube",)))
    varied = replace(first, name="varied", variation=VARIATION, paraphrases=("the red one",))
    return replace(suite, scenes=scenes, tasks=(first, second, at_once, varied))


@pytest.fixture(scope="module")
def sims(suite: Suite) -> Iterator[tuple[VectorSim, WarpSim]]:
    expected = VectorSim(suite, NUM_SLOTS, image_size=IMAGE_SIZE)
    sim = WarpSim(suite, NUM_SLOTS, device="cpu", image_size=IMAGE_SIZE)
    yield expected, sim
    for each in (expected, sim):
        each.close()


def begin(sims: tuple[VectorSim, WarpSim], tasks: list[int]) -> None:
    for sim in sims:
        sim.divergences.clear()
        sim.reset(range(NUM_SLOTS), tasks=tasks, state_ids=[0, 1, 2, 4001])


def on_host(observation: Observation) -> Observation:
    """Copy an observation from its device."""
    arrays: tuple[Any, ...] = (observation.images, observation.state)
    images, state = (np.array(a.numpy() if isinstance(a, wp.array) else a) for a in arrays)
    return replace(observation, images=images, state=state)


def random_actions(num_slots: int, num_steps: int) -> np.ndarray:
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (num_slots, num_steps, 7))
    actions[..., 3:6] *= 0.1
    return actions


def test_an_episode_resembles_that_of_mujoco(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0, 0, OTHER_SCENE, OTHER_SCENE])
    before, after = (sim.get_states() for sim in sims)
    for name, values in before.items():
        assert np.allclose(after[name], values, atol=1e-6), name
    results = [sim.step_chunk(random_actions(NUM_SLOTS, 4)) for sim in sims]
    for name in ("reward", "success", "terminated", "truncated", "num_steps", "diverged"):
        assert np.array_equal(getattr(results[0], name), getattr(results[1], name)), name
    expected, states = (sim.get_states() for sim in sims)
    for name in ("task", "num_steps", "outcome", "pending", "state_id"):
        assert np.array_equal(states[name], expected[name]), name
    assert np.abs(states["controller"] - expected["controller"]).max() < 1e-5
    for scene, slots in ((0, [0, 1]), (1, [2, 3])):
        model = sims[0].suite.scenes[scene].model
        error = np.abs(states["physics"] - expected["physics"])[slots]
        assert error[:, 0].max() < 1e-6  # s
        position = error[:, 1 : 1 + model.nq]
        robot = [model.jnt_qposadr[joint] for joint in range(model.njnt) if _is_robot(model, joint)]
        assert position[:, robot].max() < 1e-5  # rad or m
        assert position.max() < 2e-3  # m, or parts of a quaternion: round things settle
    seen, felt = (on_host(sim.observe()) for sim in sims)
    assert np.abs(seen.state - felt.state).max() < 1e-5
    assert seen.instruction == felt.instruction


@pytest.mark.parametrize("controller", ["eef_position", "joint_position"])
def test_every_controller_resembles_that_of_mujoco(suite: Suite, controller: str):
    other = suite.with_controller(controller)
    sims = VectorSim(other, 3), WarpSim(other, 3, device="cpu", image_size=8)
    actions, seen = np.zeros((3, 4, len(other.embodiment.action))), []
    actions[:] = np.random.default_rng(0).uniform(-0.5, 0.5, actions.shape)
    for sim in sims:
        sim.reset(range(3), tasks=[0, VARIED, OTHER_SCENE], state_ids=[0, 1, 2])
    if controller == "joint_position":  # about where the joints are
        arm, states = constants_of(other, 0).controller, sims[0].get_states()["controller"]
        actions = 0.1 * actions + holding(arm, states)[:, None]
    for sim in sims:
        sim.step_chunk(actions)
        seen.append(on_host(sim.observe(images=False)))
    expected, states = (sim.get_states() for sim in sims)
    assert np.abs(states["controller"] - expected["controller"]).max() < 1e-5
    assert np.array_equal(states["pending"], expected["pending"])
    assert np.abs(seen[0].state - seen[1].state).max() < 1e-4
    assert seen[1].state.shape == (3, len(other.embodiment.state))
    for sim in sims:
        sim.close()


@pytest.mark.parametrize("cameras", [("overview",), ("eye_in_hand", "agentview", "overview")])
@pytest.mark.parametrize("size", [20, 33])
def test_any_cameras_in_any_size_are_seen(suite: Suite, cameras: tuple[str, ...], size: int):
    configs = [replace(scene.config, cameras=cameras) for scene in suite.scenes]
    pairs = zip(suite.scenes, configs, strict=True)
    other = replace(suite, scenes=tuple(replace(s, config=config) for s, config in pairs))
    sims = VectorSim(other, 1, image_size=size), WarpSim(other, 1, device="cpu", image_size=size)
    for sim in sims:
        sim.reset([0], tasks=[0], state_ids=[0])
    expected, seen = (on_host(sim.observe().validate(other.embodiment)) for sim in sims)
    assert seen.images.shape == expected.images.shape == (1, len(cameras), size, size, 3)
    for ours, theirs in zip(expected.images[0], seen.images[0], strict=True):
        assert np.mean(_is_table(theirs) == _is_table(ours)) > 0.98
    for sim in sims:
        sim.close()


def test_the_scripted_expert_acts_in_the_other_backend_only(sims: tuple[VectorSim, WarpSim]):
    with pytest.raises(
        ConfigError, match="scripted expert of 'tabletop_object' acts in a VectorSi"
    ):
        expert_of(sims[1])


def _is_robot(model: mujoco.MjModel, joint: int) -> bool:
    return model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE


def test_a_varied_episode_resembles_that_of_mujoco(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [VARIED, VARIED, 0, VARIED])
    results = [sim.step_chunk(random_actions(NUM_SLOTS, 4)) for sim in sims]
    assert np.array_equal(results[0].num_steps, results[1].num_steps)
    expected, states = (sim.get_states() for sim in sims)
    assert np.abs(expected["pending"][[0, 1, 3]]).max() > 0.5
    assert np.array_equal(states["pending"], expected["pending"])
    assert np.abs(states["controller"] - expected["controller"]).max() < 1e-5
    model = sims[0].suite.scenes[0].model
    assert np.abs(states["physics"] - expected["physics"])[:, : 1 + model.nq].max() < 2e-3
    seen, felt = (on_host(sim.observe()) for sim in sims)
    assert np.abs(seen.state - felt.state).max() < 1e-5
    assert seen.instruction == felt.instruction
    assert len(set(felt.instruction)) == 2
    for theirs, ours in zip(felt.images, seen.images, strict=True):  # from displaced cameras
        assert np.mean(_is_table(theirs) == _is_table(ours)) > 0.99


def test_masses_and_friction_of_a_world_are_those_of_its_episode(
    sims: tuple[VectorSim, WarpSim],
):
    begin(sims, [VARIED, 0, VARIED, 0])
    simulated, suite = sims[1]._worlds[0].warp_model, sims[1].suite
    scratch, model, _ = scratch_of(suite.scenes[0].model)
    varied, constants = sims[0]._slots.varied, constants_of(suite, 0)
    for slot in range(NUM_SLOTS):
        gains = varied.mass_gain[slot], varied.friction_gain[slot]
        vary(constants.mechanics, scratch.mechanics, constants.objects, *gains)
        for name in ("body_mass", "body_inertia", "dof_invweight0", "geom_friction"):
            assert np.allclose(getattr(simulated, name).numpy()[slot], getattr(model, name)), name
    assert not np.allclose(simulated.body_mass.numpy()[0], simulated.body_mass.numpy()[1])


@pytest.mark.parametrize(
    ("variation", "least", "most"),
    [
        (VariationConfig(light_gain=(0.5, 0.5)), 0.49, 0.51),
        (VariationConfig(light_gain=(0.8, 0.8), seed=1), 0.79, 0.81),
        (VariationConfig(light_turn_rad=((2.0, 0.0, 0.0), (2.0, 0.0, 0.0))), 0.0, 0.9),
        (VariationConfig(colour_shift=((-0.3, -0.3, -0.3), (-0.3, -0.3, -0.3))), 0.2, 0.8),
        (VariationConfig(materials=("checks",)), 1.1, 1.6),  # of a white material
    ],
)
def test_looks_change_the_picture(suite: Suite, variation: VariationConfig, least, most):
    """How bright the upper corners of the table are, beside those of the scene as it is."""
    tasks = (suite.tasks[0], replace(suite.tasks[0], name="seen", variation=variation))
    with closing(WarpSim(replace(suite, tasks=tasks), 2, device="cpu", image_size=16)) as sim:
        sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 0])
        corners = on_host(sim.observe()).images[:, 0, 12:, :2].astype(float).mean(axis=(1, 2, 3))
    assert least < corners[1] / corners[0] < most


def test_noise_is_on_what_is_sensed_wherever_it_is_read(suite: Suite):
    noisy = VariationConfig(image_noise=(0.05, 0.05), state_noise=(0.01, 0.01))
    tasks = (suite.tasks[0], replace(suite.tasks[0], name="noisy", variation=noisy))
    loud = replace(suite, tasks=tasks)
    sims = VectorSim(loud, 2), WarpSim(loud, 2, device="cpu", image_size=16)
    for sim in sims:
        sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 0])
    expected, observation = (on_host(sim.observe()) for sim in sims)
    assert np.abs(expected.state - observation.state).max() < 1e-5
    assert np.abs(observation.state[0] - observation.state[1]).max() > 0.005
    difference = np.diff(observation.images.astype(float), axis=0)
    assert 0.04 * 255 < np.std(difference) < 0.06 * 255
    some = on_host(sims[1].observe([1]))
    assert np.array_equal(some.images[0], observation.images[1])
    assert np.array_equal(some.state[0], observation.state[1])
    for sim in sims:
        sim.close()


def test_each_can_stand_in_for_the_other(sims: tuple[VectorSim, WarpSim]):
    for protocol in (Simulation, Resumable):
        assert all(isinstance(backend, protocol) for backend in sims)


def test_a_slot_stops_when_its_episode_ends_and_the_others_go_on(
    sims: tuple[VectorSim, WarpSim],
):
    begin(sims, [0, AT_ONCE, AT_ONCE, 0])
    before = sims[1].get_states()
    results = [sim.step_chunk(random_actions(2, 4), [0, 1]) for sim in sims]
    for result in results:
        assert result.num_steps.tolist() == [4, 1]
        assert result.success.tolist() == [False, True]
        assert result.reward.tolist() == [0.0, 1.0]
    expected, states = (sim.get_states() for sim in sims)
    num_positions = 1 + sims[0].suite.scenes[0].model.nq
    error = np.abs(states["physics"] - expected["physics"])[:2, :num_positions]
    assert error.max() < 5e-3  # it stopped as early
    for name, values in before.items():  # who was not stepped
        assert np.array_equal(states[name][2:], values[2:]), name
    with pytest.raises(SpecError, match=r"WarpSim.step_chunk: slots \[1\] have no running episode"):
        sims[1].step_chunk(random_actions(2, 1), [0, 1])
    results = [sim.step_chunk(random_actions(1, 2), [0]) for sim in sims]
    for result in results:
        assert (result.num_steps.tolist(), result.truncated.tolist()) == ([1], [True])
        assert not result.terminated.any()


def test_physics_that_blows_up_ends_the_episode_and_is_recorded(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0] * NUM_SLOTS)
    _, sim = sims
    before = sim.get_states()["physics"]
    qvel = sim._worlds[0].data.qvel
    speeds = qvel.numpy().copy()
    speeds[2, 7] = np.nan
    qvel.assign(speeds)
    result = sim.step_chunk(random_actions(NUM_SLOTS, 2))
    assert result.diverged.tolist() == result.terminated.tolist() == [False, False, True, False]
    assert result.num_steps.tolist() == [2, 2, 1, 2]
    states = sim.get_states()["physics"]
    assert np.array_equal(states[2], before[2])
    assert np.isfinite(states).all()
    (divergence,) = sim.divergences
    assert (divergence.task, divergence.state_id, divergence.num_steps) == (
        sim.suite.tasks[0].name, 2, 0,
    )  # fmt: skip
    assert np.array_equal(divergence.state["physics"], before[2])
    assert re.match("joint '(red_cube|joint1|joint7|finger_joint1)' ", divergence.cause)
    assert "blew up" in str(divergence)


def test_pictures_show_the_same_things_in_the_same_places(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0, 0, OTHER_SCENE, OTHER_SCENE])
    expected, seen = (on_host(sim.observe()) for sim in sims)
    assert seen.validate(sims[1].suite.embodiment).images.shape == expected.images.shape
    for theirs, ours in zip(seen.images, expected.images, strict=True):
        for image, reference in zip(theirs, ours, strict=True):
            agree = _is_table(image) == _is_table(reference)
            assert np.mean(agree) > 0.995
            assert 0.3 < np.mean(_is_table(reference)) < 0.98
    # Shading differs, colours do not.
    assert np.abs(seen.images.astype(float) - expected.images).mean() < 16.0


def _is_table(image: np.ndarray) -> np.ndarray:
    """Return which pixels have the hue of the table, whatever the light."""
    colour = image.astype(float) + 1.0
    ratio = colour / colour.sum(axis=-1, keepdims=True)
    table = np.array([0.66, 0.56, 0.46]) / 1.68
    return (np.abs(ratio - table).max(axis=-1) < 0.02) & (image.max(axis=-1) > 100)


@pytest.mark.gpu
def test_a_gpu_does_what_the_cpu_does(suite: Suite):
    sims = (
        VectorSim(suite, 2, image_size=IMAGE_SIZE),
        WarpSim(suite, 2, device="cuda:0", image_size=IMAGE_SIZE),
    )
    for _ in range(2):  # the second time from recorded graphs
        for sim in sims:
            sim.reset([0, 1], tasks=[0, AT_ONCE], state_ids=[0, 1])
            assert sim.step_chunk(random_actions(2, 3)).num_steps.tolist() == [3, 1]
        expected, seen = (on_host(sim.observe()) for sim in sims)
        assert np.abs(seen.state - expected.state).max() < 1e-4
        assert np.mean(_is_table(seen.images) == _is_table(expected.images)) > 0.99
    for sim in sims:
        sim.close()


def test_some_slots_are_observed_as_all_are(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0, OTHER_SCENE, 0, OTHER_SCENE])
    expected = on_host(sims[1].observe()).select([3, 0])
    some = on_host(sims[1].observe([3, 0]).validate(sims[1].suite.embodiment))
    assert np.array_equal(some.images, expected.images)
    assert np.array_equal(some.state, expected.state)
    assert some.instruction == expected.instruction
    assert len(sims[1].observe([]).validate(sims[1].suite.embodiment)) == 0


@pytest.mark.parametrize("slots", [None, [2, 1]])
def test_torch_takes_observations_without_a_copy(sims: tuple[VectorSim, WarpSim], slots):
    begin(sims, [0, OTHER_SCENE, 0, OTHER_SCENE])
    _, sim = sims
    seen: Any = sim.observe(slots).validate(sim.suite.embodiment)
    for array, taken in ((a, torch.from_dlpack(a)) for a in (seen.images, seen.state)):
        assert isinstance(array, wp.array)
        assert taken.data_ptr() == array.ptr
        assert np.array_equal(taken.numpy(), array.numpy())
    assert torch.from_dlpack(seen.images).dtype == torch.uint8
    assert torch.from_dlpack(seen.images).shape == (len(seen), 2, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_nothing_is_drawn_unless_asked_for(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0, OTHER_SCENE, 0, OTHER_SCENE])
    blind = sims[1].observe([1, 3], images=False).validate(sims[1].suite.embodiment)
    assert blind.images.shape == (2, 2, 0, 0, 3)
    assert np.array_equal(on_host(blind).state, on_host(sims[1].observe([1, 3])).state)


def test_the_state_can_be_looked_at_from_a_vector_sim(sims: tuple[VectorSim, WarpSim]):
    begin(sims, [0] * NUM_SLOTS)
    mirror, sim = sims
    sim.step_chunk(random_actions(NUM_SLOTS, 1))
    mirror.set_states(sim.get_states())
    assert np.array_equal(mirror.tasks, sim.tasks)
    assert np.array_equal(mirror.state_ids, sim.state_ids)
    assert np.abs(mirror.observe().state - on_host(sim.observe()).state).max() < 1e-5


def test_a_saved_state_continues_bit_for_bit(sims: tuple[VectorSim, WarpSim]):
    """In another simulation, of all slots that had begun, whatever they vary."""
    _, sim = sims
    actions, tasks = random_actions(NUM_SLOTS, 4), [VARIED, OTHER_SCENE, 0]
    other = WarpSim(sim.suite, NUM_SLOTS, device="cpu", image_size=IMAGE_SIZE)
    first = WarpSim(sim.suite, NUM_SLOTS, device="cpu", image_size=IMAGE_SIZE)
    first.reset([0, 1, 3], tasks=tasks, state_ids=[5, 1, 2])
    other.reset([1, 2], tasks=[0, OTHER_SCENE], state_ids=[7, 8])  # is forgotten
    first.step_chunk(actions[:3, :2], [0, 1, 3])
    other.set_states(first.get_states())
    assert np.array_equal(other.state_ids, [5, 1, -1, 2])
    seen = [on_host(each.observe([0, 1, 3])) for each in (first, other)]
    assert np.array_equal(seen[0].images, seen[1].images)
    assert np.array_equal(seen[0].state, seen[1].state)
    assert seen[0].instruction == seen[1].instruction
    results = [each.step_chunk(actions[:3, 2:], [0, 1, 3]) for each in (first, other)]
    assert np.array_equal(results[0].num_steps, results[1].num_steps)
    states = other.get_states()
    for name, values in first.get_states().items():
        assert np.array_equal(values[[0, 1, 3]], states[name][[0, 1, 3]]), name
    with pytest.raises(SpecError, match=r"WarpSim.set_states: got \['physics'\], expected"):
        other.set_states({"physics": states["physics"]})
    for each in (first, other):
        each.close()


def test_what_does_not_fit_the_contract_is_refused(sims: tuple[VectorSim, WarpSim], suite: Suite):
    begin(sims, [0] * NUM_SLOTS)
    _, sim = sims
    with pytest.raises(SpecError, match=r"got shape \(4, 2, 6\), expected \(4, steps, 7\)"):
        sim.step_chunk(np.zeros((4, 2, 6)))
    with pytest.raises(SpecError, match=r"actions\[1, 0, 3\] is nan"):
        sim.step_chunk(np.where(np.arange(28).reshape(4, 1, 7) == 10, np.nan, 0.0))
    with pytest.raises(SpecError, match="WarpSim: slot 4 is out of range, expected 0 .. 3"):
        sim.step_chunk(np.zeros((1, 1, 7)), [4])
    with pytest.raises(SpecError, match="WarpSim.reset: task 9 is out of range"):
        sim.reset([0], tasks=[9], state_ids=[0])
    with pytest.raises(SpecError, match="WarpSim.reset: 1 slots, 2 tasks, 1 state_ids"):
        sim.reset([0], tasks=[0, 0], state_ids=[0])
    fresh = WarpSim(suite, 1, device="cpu")
    with pytest.raises(SpecError, match=r"slots \[0\] have no running episode; reset them first"):
        fresh.step_chunk(np.zeros((1, 1, 7)))


@pytest.mark.parametrize("setting", ["num_slots", "image_size", "num_contacts"])
def test_counts_must_be_positive(suite: Suite, setting: str):
    settings = {"num_slots": 1, "device": "cpu", setting: 0}
    with pytest.raises(ConfigError, match=f"WarpSim: {setting} is 0, expected a whole number"):
        WarpSim(suite, **settings)


def test_an_unknown_device_is_an_error_that_names_those_there_are(suite: Suite):
    with pytest.raises(ConfigError, match="Warp finds no device 'cuda:9' .* only cpu"):
        WarpSim(suite, 1, device="cuda:9")


def test_too_little_room_for_contacts_is_an_error(suite: Suite):
    sim = WarpSim(suite, 1, device="cpu", num_contacts=4)
    sim.reset([0], tasks=[0], state_ids=[0])
    with pytest.raises(ConfigError, match="no room for .* contacts .* set num_contacts to"):
        sim.step_chunk(np.zeros((1, 1, 7)))


def test_a_scene_with_what_is_not_simulated_is_refused(suite: Suite):
    spec = mujoco.MjSpec.from_string(
        '<mujoco><worldbody><body name="ball"><joint name="swing"/><geom size="1"/></body>'
        '</worldbody><sensor><jointpos joint="swing"/></sensor></mujoco>'
    )
    scene = replace(suite.scenes[0], model=spec.compile())
    with pytest.raises(ConfigError, match="scene 'scene.xml' has sensors, .* use VectorSim"):
        warp_model(scene)


def test_a_scene_with_an_option_that_mujoco_warp_lacks_is_refused(suite: Suite):
    model = copy.copy(suite.scenes[0].model)
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICIT
    scene, device = replace(suite.scenes[0], model=model), wp.get_device("cpu")
    with pytest.raises(ConfigError, match="does not support .* mjINT_IMPLICIT is unsupported"):
        Worlds(scene, constants_of(suite, 0), 1, device, 8)


def test_a_missing_package_is_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"warp is missing: pip install --editable '.\[warp\]'"):
        importlib.reload(vla_crl.sim.warp)
