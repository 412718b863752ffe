import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.backends import expert_of, find_suite, simulate
from vla_crl.sim.divergence import Divergence, joint_name
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.kernel.controller import JOINTS, MAX_JOINT_LEAD_RAD
from vla_crl.sim.native.replay import replay
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.rotations import axis_angle_from_matrix

NewSim = Callable[..., VectorSim]
NUM_EPISODES, CHUNK_STEPS = 14, 4


def random_actions(num_episodes: int, num_steps: int, seed: int = 0) -> np.ndarray:
    """Actions that push the arm down among the objects, so that contacts amplify differences."""
    actions = np.random.default_rng(seed).normal(size=(num_episodes, num_steps, len(ARM.action)))
    actions[..., 2] -= 0.3
    return np.clip(actions, -1.0, 1.0)


def play(sim: VectorSim, order: np.ndarray) -> dict[int, tuple[np.ndarray, ...]]:
    """Play the same episodes in the last slots of `sim`, as many at a time as fit, in `order`."""
    actions = random_actions(NUM_EPISODES, sim.suite.horizon)
    ends = {}
    for batch in np.split(order, range(sim.num_slots, len(order), sim.num_slots)):
        slots = np.arange(sim.num_slots - len(batch), sim.num_slots)
        sim.reset(slots, tasks=batch % 10, state_ids=batch)
        running, episodes = slots, batch
        for start in range(0, actions.shape[1], CHUNK_STEPS):
            chunk = actions[episodes, start : start + CHUNK_STEPS]
            result = sim.step_chunk(chunk, running)
            goes_on = ~(result.terminated | result.truncated)
            running, episodes = running[goes_on], episodes[goes_on]
        images, states = sim.observe(slots).images, sim.get_states()
        for slot, episode, image in zip(slots, batch, images, strict=True):
            ends[int(episode)] = (
                states["physics"][slot],
                states["controller"][slot],
                states["num_steps"][slot],
                states["outcome"][slot],
                image,
            )
    return ends


@pytest.fixture(scope="module")
def reference(suite: Suite) -> dict[int, tuple[np.ndarray, ...]]:
    sim = VectorSim(suite, NUM_EPISODES, num_threads=1)
    ends = play(sim, np.arange(NUM_EPISODES))
    sim.close()
    return ends


def test_the_reference_episodes_are_chaotic(suite: Suite, new_sim: NewSim):
    sim = new_sim(NUM_EPISODES)
    slots = np.arange(NUM_EPISODES)
    sim.reset(slots, tasks=slots % 10, state_ids=slots)
    things = sim.thing_positions()
    play(sim, slots)
    moved = np.linalg.norm(sim.thing_positions() - things, axis=-1) > 0.01
    assert moved.any(axis=1).mean() > 0.4


@pytest.mark.parametrize(
    ("num_slots", "num_threads"), [(NUM_EPISODES, 2), (NUM_EPISODES, 4), (1, 2), (7, 2), (64, 4)]
)
def test_an_episode_depends_on_neither_slots_nor_threads(
    new_sim: NewSim,
    reference: dict[int, tuple[np.ndarray, ...]],
    num_slots: int,
    num_threads: int,
):
    order = np.random.default_rng(num_slots).permutation(NUM_EPISODES)
    ends = play(new_sim(num_slots, num_threads=num_threads), order)
    assert ends.keys() == reference.keys()
    for episode, end in ends.items():
        for value, expected in zip(end, reference[episode], strict=True):
            assert np.array_equal(value, expected)


def test_things_end_where_they_would_if_none_ever_slept(suite: Suite, new_sim: NewSim):
    def without_sleep(scene: Scene) -> Scene:
        model = copy(scene.model)
        assert model.opt.enableflags == mujoco.mjtEnableBit.mjENBL_SLEEP
        model.opt.enableflags = 0
        return replace(scene, model=model)

    awake = replace(suite, scenes=tuple(map(without_sleep, suite.scenes)))
    sims = [new_sim(10), new_sim(10, suite=awake)]
    for sim in sims:
        sim.reset(range(10), tasks=range(10), state_ids=range(10))
    expert, running, start = ScriptedExpert(sims[0]), np.arange(10), sims[0].thing_positions()
    while len(running):
        actions = expert.act(running)[:, None]
        result, expected = (sim.step_chunk(actions, running) for sim in sims)
        assert np.array_equal(result.success, expected.success)
        running = running[~(result.terminated | result.truncated)]
    end, expected = (sim.thing_positions() for sim in sims)
    error = np.linalg.norm(end - expected, axis=-1)
    touched = np.linalg.norm(end - start, axis=-1) > 0.01
    assert touched.any(axis=1).all()
    there = ~np.isnan(error)
    assert error[there & ~touched].max() < 1e-4
    assert error[touched].max() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("pending"), r"VectorSim.set_states: got \['controller', .* expected \['"),
        (lambda s: s.update(physics=s["physics"][:, :3]), r"'physics' is float64 \(2, 3\), exp"),
        (lambda s: s.update(task=[0.5, 1.0]), r"'task' is float64 \(2,\), expected int64"),
        (lambda s: s.update(task=["lift", "push"]), r"'task' is <U4 \(2,\), expected int64"),
        (lambda s: s.update(outcome=s["outcome"] + 4), "outcome 4 is out of range"),
        (lambda s: s.update(num_steps=s["num_steps"] - 3), "num_steps -3 is out of range"),
        (lambda s: s["controller"].fill(np.nan), "'controller' has numbers that are not finite"),
        (lambda s: s["pending"].fill(np.inf), "'pending' has numbers that are not finite"),
        (lambda s: s["tree_asleep"].fill(0), "'tree_asleep' has numbers from 0 on, expected only"),
        (lambda s: s.update(task=s["task"] + 10), "set_states: task 10 is out of range"),
        (lambda s: s.update(state_id=s["state_id"] + 9999), "state id 9999 is out of range"),
    ],
)
def test_states_that_do_not_fit_are_refused(new_sim: NewSim, change, message: str):
    sim = new_sim(2)
    sim.reset(range(2), tasks=[0, 0], state_ids=[0, 1])
    before, states = sim.get_states(), sim.get_states()
    change(states)
    with pytest.raises(SpecError, match=message):
        sim.set_states(states)
    nothing: Any = None
    with pytest.raises(SpecError, match=r"set_states: got None, expected \['controller'"):
        sim.set_states(nothing)
    assert all(np.array_equal(value, before[name]) for name, value in sim.get_states().items())


def test_a_saved_state_continues_bit_for_bit(new_sim: NewSim):
    actions = random_actions(6, 24)
    sim, other = new_sim(6), new_sim(6, num_threads=1)
    sim.reset(range(6), tasks=range(6), state_ids=range(6))
    sim.step_chunk(actions[:, :12])
    saved = sim.get_states()
    other.set_states(saved)
    assert np.array_equal(other.observe().images, sim.observe().images)
    results = [each.step_chunk(actions[:, 12:]) for each in (sim, other)]
    for name, values in sim.get_states().items():
        assert np.array_equal(values, other.get_states()[name])
    assert np.array_equal(results[0].success, results[1].success)
    assert np.array_equal(other.state_ids, range(6))
    assert np.array_equal(other.tasks, range(6))
    assert not np.array_equal(saved["physics"], sim.get_states()["physics"]), "saved was not a copy"


def test_chunks_of_four_equal_single_steps(new_sim: NewSim):
    actions = random_actions(4, 16)
    sims = [new_sim(4), new_sim(4)]
    for sim, size in zip(sims, (4, 1), strict=True):
        sim.reset(range(4), tasks=range(4), state_ids=range(4))
        for start in range(0, 16, size):
            sim.step_chunk(actions[:, start : start + size])
    states = [sim.get_states() for sim in sims]
    for name in states[0]:
        assert np.array_equal(states[0][name], states[1][name])


def test_a_step_is_a_ramp_of_commands_through_plain_mj_step(scene: Scene, new_sim: NewSim):
    model, sim, actions = scene.model, new_sim(1), random_actions(1, 12, seed=5)
    sim.reset([0], tasks=[0], state_ids=[3])
    arm = [model.actuator(name).id for name in scene.config.arm.joints]
    fingers = [model.actuator(name).id for name in ("finger1", "finger2")]
    physics = sim.get_states()["physics"][0].copy()
    for step in range(actions.shape[1]):
        data = mujoco.MjData(model)  # nothing sleeps in it
        data.tree_asleep[:] = sim.get_states()["tree_asleep"][0]
        mujoco.mj_setState(model, data, physics, STATE_SPEC)
        before = sim.get_states()["controller"][0, JOINTS.start :]
        sim.step_chunk(actions[:, step : step + 1])
        change = sim.get_states()["controller"][0, JOINTS.start :] - before
        for substep in range(20):
            commands = before + (substep + 1) / 20 * change
            low, high = data.qpos[:7] - MAX_JOINT_LEAD_RAD, data.qpos[:7] + MAX_JOINT_LEAD_RAD
            data.ctrl[arm], data.ctrl[fingers] = np.clip(commands[:7], low, high), commands[7]
            mujoco.mj_step(model, data)
        mujoco.mj_getState(model, data, physics, STATE_SPEC)
        assert np.array_equal(physics, sim.get_states()["physics"][0])


def test_an_observation_is_what_the_contract_says(suite: Suite, new_sim: NewSim):
    sim = new_sim(3, image_size=32)
    sim.reset(range(3), tasks=[0, 5, 9], state_ids=[0, 1, 2])
    sim.step_chunk(random_actions(3, 4))
    observation = sim.observe().validate(suite.embodiment)
    assert observation.images.shape == (3, 2, 32, 32, 3)
    assert observation.instruction == tuple(suite.tasks[task].instruction for task in (0, 5, 9))
    position, rotation = sim.grip_pose()
    assert observation.state.shape == (3, len(ARM.state))
    assert np.allclose(observation.state[:, :3], position)
    assert np.allclose(observation.state[:, 3:6], axis_angle_from_matrix(rotation))
    assert np.allclose(observation.state[:, 6:], sim.finger_positions())


def test_named_slots_are_observed_in_their_order(new_sim: NewSim):
    sim = new_sim(12)
    sim.reset(range(12), tasks=np.arange(12) % 10, state_ids=range(12))
    everything, some = sim.observe(), sim.observe([11, 2, 5])
    expected = everything.select([11, 2, 5])
    assert np.array_equal(some.images, expected.images)
    assert np.array_equal(some.state, expected.state)
    assert some.instruction == expected.instruction
    positions = sim.thing_positions()[[5, 0]]
    assert np.array_equal(sim.thing_positions([5, 0]), positions, equal_nan=True)
    assert np.array_equal(sim.camera_poses([5]).position, sim.camera_poses().position[[5]])


def model_of(sim: VectorSim, slot: int) -> mujoco.MjModel:
    return sim.suite.scenes[sim.suite.scene_of_task[sim.tasks[slot]]].model


def put(sim: VectorSim, body: str, positions: np.ndarray, slots: Iterable[int]) -> None:
    """Place a free body upright and at rest in each of `slots`."""
    states = sim.get_states()
    for slot, position in zip(slots, positions, strict=True):
        model = model_of(sim, slot)
        joint = model.body(body).jntadr[0]
        start = 1 + model.jnt_qposadr[joint]
        velocity = 1 + model.nq + model.jnt_dofadr[joint]
        states["physics"][slot, start : start + 7] = [*position, 1, 0, 0, 0]
        states["physics"][slot, velocity : velocity + 6] = 0.0
    sim.set_states(states)


@pytest.mark.parametrize(
    ("region", "offset", "is_inside"),
    [
        ("basket", (0.0, 0.0, 0.028), True),  # on the floor, 8 mm thick
        ("basket", (0.025, -0.025, 0.028), True),
        ("basket", (0.0, 0.0, 0.15), False),  # still falling after 0.1 s
        ("basket", (-0.09, 0.0, 0.02), False),  # on the table, outside the wall
        ("tray", (0.03, 0.03, 0.028), True),
        ("tray", (0.0, 0.0, 0.15), False),
        ("tray", (-0.1, 0.0, 0.02), False),
    ],
)
def test_a_task_succeeds_when_its_thing_is_in_its_region(
    suite: Suite,
    new_sim: NewSim,
    region: str,
    offset: tuple[float, float, float],
    is_inside: bool,
):
    sim = new_sim(10)
    sim.reset(range(10), tasks=range(10), state_ids=[0] * 10)
    fixture = sim.thing_positions()[:, suite.thing_index(region)]
    for scene, cube in enumerate(("red_cube", "green_cube")):
        slots = np.flatnonzero(suite.scene_of_task == scene)
        put(sim, cube, (fixture + offset)[slots], slots)
    result = sim.step_chunk(np.zeros((10, 1, len(ARM.action))))
    expected = np.zeros(10, dtype=bool)
    task = {"basket": "red_cube_in_basket", "tray": "green_cube_in_tray"}[region]
    expected[suite.task_index(task)] = is_inside
    assert np.array_equal(result.success, expected)
    assert np.array_equal(result.terminated, expected)
    assert np.array_equal(result.reward, expected.astype(np.float32))


def test_a_chunk_stops_at_success(suite: Suite, new_sim: NewSim):
    sim = new_sim(2)
    sim.reset(range(2), tasks=[0, suite.task_index("blue_cylinder_in_tray")], state_ids=[0, 0])
    over_basket = sim.thing_positions()[:, suite.thing_index("basket")] + (0.0, 0.0, 0.15)
    put(sim, "red_cube", over_basket, range(2))
    result = sim.step_chunk(np.zeros((2, 4, len(ARM.action))))
    assert result.success.tolist() == [True, False]
    assert result.num_steps.tolist() == [2, 4]  # falls 5 cm in the first step, 15 in the second


def test_an_episode_is_truncated_at_the_horizon(suite: Suite, new_sim: NewSim):
    sim = new_sim(2)
    sim.reset(range(2), tasks=[0, 1], state_ids=[0, 1])
    idle = np.zeros((2, 20, len(ARM.action)))
    results = [sim.step_chunk(idle) for _ in range(3)]
    assert [result.truncated.tolist() for result in results] == [[False] * 2] * 2 + [[True] * 2]
    assert results[2].num_steps.tolist() == [8, 8]  # 48 - 20 - 20
    assert not results[2].terminated.any()
    assert not results[2].reward.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("part", ["position", "velocity"])
def test_diverged_physics_ends_only_its_own_slot(
    new_sim: NewSim,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    part: str,
):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file there
    actions = random_actions(12, 8)
    sims = [new_sim(12), new_sim(12)]
    for sim in sims:
        sim.reset(range(12), tasks=np.arange(12) % 10, state_ids=range(12))
    states, model = sims[0].get_states(), model_of(sims[0], 4)
    column = 1 + model.joint("joint3").qposadr[0]
    if part == "velocity":
        column = 1 + model.nq + model.joint("joint3").dofadr[0]
    states["physics"][4, column] = value
    sims[0].set_states(states)
    broken, healthy = (sim.step_chunk(actions) for sim in sims)
    others = np.arange(12) != 4
    assert broken.diverged.tolist() == (~others).tolist()
    assert broken.terminated[4]
    assert not broken.success[4]
    assert not broken.truncated[4]
    assert broken.reward[4] == 0.0
    assert not healthy.diverged.any()
    for name, values in sims[0].get_states().items():
        assert np.array_equal(values[others], sims[1].get_states()[name][others])
    for sim in sims:
        sim.reset([4], tasks=[0], state_ids=[0])
    for sim in sims:
        sim.step_chunk(actions[[4]], [4])
    first, second = (sim.get_states()["physics"][4] for sim in sims)
    assert np.array_equal(first, second)


def test_a_divergence_is_diagnosed_saved_and_replayed(
    suite: Suite, new_sim: NewSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sim, actions = new_sim(3), random_actions(3, 4)
    sim.reset(range(3), tasks=[2, 3, 4], state_ids=[7, 8, 9])
    sim.step_chunk(actions)
    states = sim.get_states()
    model = model_of(sim, 1)
    states["physics"][1, 1 + model.nq + model.body("pink_egg").dofadr[0]] = 1e6
    sim.set_states(states)
    sim.step_chunk(actions)
    (divergence,) = sim.divergences
    assert (divergence.suite, divergence.task) == (suite.name, suite.tasks[3].name)
    assert (divergence.state_id, divergence.num_steps) == (8, 4)
    cause = re.fullmatch("joint 'pink_egg' moves at (.*) m/s or rad/s", divergence.cause)
    assert cause
    assert float(cause[1]) > 200.0
    assert np.array_equal(divergence.actions, actions[1])
    for text in ("'black_bottle_in_basket', initial state 8", "after 4 control", "pink_egg"):
        assert text in str(divergence)
    loaded = Divergence.load(divergence.save(tmp_path / "new"))
    other = new_sim(1)
    assert replay(loaded, other)
    assert str(other.divergences[0]) == str(divergence)
    first = next((tmp_path / "new").iterdir())
    kept = first.read_bytes()
    paths = {first, divergence.save(tmp_path / "new"), divergence.save(tmp_path / "new")}
    assert {path.name for path in paths} == {
        f"tabletop_object.black_bottle_in_basket.8.4{end}.npz" for end in ("", ".2", ".3")
    }
    assert first.read_bytes() == kept


def test_what_blew_up_first_is_to_blame_though_it_shakes_all(
    load_changed: Callable[..., Suite], new_sim: NewSim, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log of warnings
    old = '<geom class="object" name="red_cube_geom"'
    sim = new_sim(1, suite=load_changed(old, f'{old} solref="-1e15 -1e-3"', "scene.xml"))
    sim.reset([0], tasks=[0], state_ids=[0])
    expert, states = ScriptedExpert(sim), sim.get_states()
    model = model_of(sim, 0)
    states["physics"][0, 1 + model.jnt_qposadr[model.body("red_cube").jntadr[0]] + 2] -= 0.01
    sim.set_states(states)  # sunk into the table, which throws it out
    while not sim.divergences:
        result = sim.step_chunk(expert.act(np.array([0]))[:, None])
        assert not result.truncated[0]
    assert re.match("joint 'red_cube' moves at ", sim.divergences[0].cause)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("position", np.nan, "is not finite"),
        ("velocity", np.inf, "is not finite"),
        ("velocity", -1e7, r"moves at 1e\+07 m/s or rad/s"),
    ],
)
@pytest.mark.parametrize("culprit", ["joint3", "pink_egg"])
def test_what_was_broken_before_the_chunk_is_to_blame(
    new_sim: NewSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str,
    part: str, value: float, message: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    sim = new_sim(1)
    sim.reset([0], tasks=[3], state_ids=[8])
    states, model = sim.get_states(), model_of(sim, 0)
    joint = next(j for j in range(model.njnt) if joint_name(model, j) == culprit)
    column = 1 + model.jnt_qposadr[joint] + 2 * (culprit == "pink_egg")
    if part == "velocity":
        column = 1 + model.nq + model.jnt_dofadr[joint]
    states["physics"][0, column] = value
    sim.set_states(states)
    sim.step_chunk(random_actions(1, 4))
    assert re.search(f"joint '{culprit}' {message}; the episode", str(sim.divergences[0]))


def test_a_divergence_of_something_else_is_not_replayed(new_sim: NewSim, tmp_path: Path):
    record = Divergence(
        suite="tabletop_object", task="red_cube_in_basket", state_id=0, num_steps=0,
        cause="joint 'lid' is not finite", actions=np.zeros((1, 7)),
        state={"physics": np.zeros(3), "tree_asleep": np.zeros(2)},
    )  # fmt: skip
    sim, kitchen = new_sim(1), replace(record, suite="kitchen")
    with pytest.raises(ConfigError, match="'kitchen', but the simulation is of 'tabletop_object'"):
        replay(kitchen, sim)
    with pytest.raises(SpecError, match=r"the record's physics has shape \(3,\), the slot's"):
        replay(record, sim)
    state = record.state | {"physics": np.zeros(len(sim._physics(0)))}
    with pytest.raises(SpecError, match=r"the record's tree_asleep has shape \(2,\), the slot's"):
        replay(replace(record, state=state), sim)
    with pytest.raises(SpecError, match=r"the record's physics has shape \(0,\), the slot's"):
        replay(replace(record, state={}), sim)  # of a backend with other worlds
    stranger: Any = SimpleNamespace()
    with pytest.raises(SpecError, match="replay: got a SimpleNamespace, expected a VectorSim"):
        replay(kitchen, stranger)
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="torn.npz: not a whole npz file"):
        Divergence.load(tmp_path / "torn.npz")


def test_a_slot_whose_physics_diverges_stays_finite(
    scene: Scene, new_sim: NewSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sim = new_sim(1)
    sim.reset([0], tasks=[0], state_ids=[0])
    states = sim.get_states()
    states["physics"][0, 1 + scene.model.nq + scene.model.body("red_cube").dofadr[0]] = 1e9
    sim.set_states(states)
    before = sim.observe([0])
    assert sim.step_chunk(np.zeros((1, 4, len(ARM.action)))).diverged[0]
    after = sim.observe([0])
    assert np.array_equal(after.state, before.state)
    assert np.array_equal(after.images, before.images)


def test_actions_beyond_the_range_are_clipped(new_sim: NewSim):
    actions = random_actions(2, 4)
    sims = [new_sim(2), new_sim(2)]
    for sim, scale in zip(sims, (1.0, 100.0), strict=True):
        sim.reset(range(2), tasks=[0, 0], state_ids=[0, 1])
        sim.step_chunk(np.sign(actions) * scale)
    first, second = (sim.get_states()["physics"] for sim in sims)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0], [0, 0]), "2 slots, 1 tasks, 2 state_ids; expected one task and one state"),
        (([4], [0], [0]), "slot 4 is out of range, expected 0 .. 3"),
        (([-1], [0], [0]), "slot -1 is out of range, expected 0 .. 3"),
        (([0], [10], [0]), "task 10 is out of range, expected 0 .. 9"),
        (([0], [0], [10**6]), "state id 1000000 is out of range, expected 0 .. "),
    ],
)
def test_reset_refuses_what_does_not_exist(
    new_sim: NewSim, arguments: tuple[list[int], ...], message: str
):
    slots, tasks, state_ids = arguments
    with pytest.raises(SpecError, match=f"VectorSim.reset: {message}"):
        new_sim(4).reset(slots, tasks=tasks, state_ids=state_ids)


def test_only_a_running_episode_can_be_stepped(new_sim: NewSim):
    sim, one = new_sim(3), np.zeros((1, 1, len(ARM.action)))
    with pytest.raises(SpecError, match=r"slots \[1\] have no running episode; reset them first"):
        sim.step_chunk(one, [1])
    sim.reset([1], tasks=[0], state_ids=[0])
    assert sim.step_chunk(one, [1]).num_steps.tolist() == [1]
    sim.step_chunk(np.zeros((1, 48, len(ARM.action))), [1])
    with pytest.raises(SpecError, match=r"slots \[1\] have no running episode"):
        sim.step_chunk(one, [1])


def test_faulty_actions_are_refused_and_change_nothing(new_sim: NewSim):
    sim = new_sim(2)
    sim.reset(range(2), tasks=[0, 0], state_ids=[0, 1])
    before, actions = sim.get_states()["physics"], np.zeros((2, 4, len(ARM.action)))
    with pytest.raises(SpecError, match=r"got shape \(1, 4, 7\), expected \(2, steps, 7\)"):
        sim.step_chunk(actions[:1])
    with pytest.raises(SpecError, match="slot 2 is out of range, expected 0 .. 1"):
        sim.step_chunk(actions[:1], [2])
    actions[1, 2, 3] = np.nan
    with pytest.raises(SpecError, match=r"actions\[1, 2, 3\] is nan"):
        sim.step_chunk(actions)
    assert np.array_equal(sim.get_states()["physics"], before)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([0, 0], r"VectorSim: slots name one twice: \[0, 0\]"),
        (np.array([True, False]), r"slots: got bool of shape \(2,\), expected a list of integers"),
        ([0.5], r"slots: got float64 of shape \(1,\), expected a list of integers"),
        (1, r"slots: got int64 of shape \(\), expected a list of integers"),
    ],
)
def test_slots_are_different_integers(new_sim: NewSim, slots: Any, message: str):
    sim = new_sim(2)
    sim.reset(range(2), tasks=[0, 0], state_ids=[0, 1])
    with pytest.raises(SpecError, match=message):
        sim.step_chunk(np.zeros((np.size(slots), 4, len(ARM.action))), slots)
    with pytest.raises(SpecError, match=message.replace("VectorSim:", "VectorSim.reset:")):
        sim.reset(slots, tasks=[0] * np.size(slots), state_ids=[0] * np.size(slots))


def test_tasks_and_states_are_integers(new_sim: NewSim):
    sim = new_sim(1)
    with pytest.raises(SpecError, match="VectorSim.reset: tasks: got <U18 of shape"):
        sim.reset([0], tasks=["red_cube_in_basket"], state_ids=[0])  # type: ignore[list-item]
    with pytest.raises(SpecError, match="VectorSim.reset: state_ids: got float64 of shape"):
        sim.reset([0], tasks=[0], state_ids=[1.9])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "ask",
    [
        lambda sim: sim.observe(),
        lambda sim: sim.instructions(),
        lambda sim: sim.thing_positions(),
        lambda sim: sim.site_positions(0),
        lambda sim: sim.grip_pose(),
        lambda sim: sim.finger_positions(),
        lambda sim: sim.camera_poses(),
        lambda sim: sim.action_latency(),
        lambda sim: expert_of(sim).act(np.arange(3)),
    ],
)
def test_a_slot_without_an_episode_tells_nothing(new_sim: NewSim, ask: Callable[[VectorSim], Any]):
    sim = new_sim(3)
    sim.reset([1], tasks=[0], state_ids=[0])
    with pytest.raises(SpecError, match=r"VectorSim: slots \[0, 2\] have no episode; reset them"):
        ask(sim)


@pytest.mark.parametrize("name", ["tabletop_object", "metaworld_mt10"])
def test_a_closed_simulation_says_that_it_is_closed(name: str):
    sim = simulate(find_suite(name), 1)
    sim.reset([0], tasks=[0], state_ids=[0])
    sim.close()
    with pytest.raises(SpecError, match="is closed; make a new one"):
        sim.step_chunk(np.zeros((1, 1, len(ARM.action))))
    with pytest.raises(SpecError, match="is closed; make a new one"):
        sim.observe()


def test_a_variation_that_is_none_is_refused(new_sim: NewSim):
    with pytest.raises(SpecError, match="variation is a dict, expected a VariationConfig or None"):
        new_sim(1, variation={"friction_gain": (0.5, 1.0)})


@pytest.mark.parametrize("suite", ["tabletop_object", find_suite("metaworld_mt10")])
def test_only_a_suite_with_scenes_is_simulated(suite: Any):
    message = "VectorSim: got '(tabletop_object|MetaWorldSuite)' as suite, expected what"
    with pytest.raises(SpecError, match=message):
        VectorSim(suite, 1)


def test_no_slots_are_a_valid_batch(new_sim: NewSim):
    sim = new_sim(2)
    sim.reset([], tasks=[], state_ids=[])
    assert sim.step_chunk(np.zeros((0, 4, len(ARM.action))), []).success.shape == (0,)
    assert len(sim.observe([])) == 0


@pytest.mark.parametrize("setting", ["num_slots", "num_threads", "image_size"])
def test_counts_must_be_positive(suite: Suite, setting: str):
    settings: dict[str, Any] = {"num_slots": 1, "num_threads": 1, "image_size": 8} | {setting: 0}
    with pytest.raises(ConfigError, match=f"VectorSim: {setting} is 0, expected a whole number"):
        VectorSim(suite, **settings)
    for value in (1.5, True, "4"):
        settings[setting] = value
        with pytest.raises(ConfigError, match=rf"{setting} is '?{value}'?, expected a whole numb"):
            VectorSim(suite, **settings)


def test_some_slots_may_be_stepped_while_others_are_observed(new_sim: NewSim):
    actions, halves = random_actions(12, 24), (np.arange(6), np.arange(6, 12))
    sims = [new_sim(12, num_threads=threads) for threads in (1, 4)]
    for sim in sims:
        sim.reset(range(12), tasks=np.arange(12) % 10, state_ids=range(12))
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, 24, 4):
            chunk = actions[:, start : start + 4]
            for moving, seen in (halves, halves[::-1]):
                expected = sims[0].observe(seen)
                sims[0].step_chunk(chunk[moving], moving)
                stepped = pool.submit(sims[1].step_chunk, chunk[moving], moving)
                observed = pool.submit(sims[1].observe, seen).result()
                stepped.result()
                assert np.array_equal(observed.images, expected.images)
                assert np.array_equal(observed.state, expected.state)
    for name, values in sims[0].get_states().items():
        assert np.array_equal(values, sims[1].get_states()[name]), name


def test_a_camera_that_follows_a_centre_of_mass_sees_that_of_its_own_slot(
    load_changed: Callable[..., Suite], new_sim: NewSim
):
    body = '<body name="red_cube"><freejoint/>'
    camera = '<camera name="follower" mode="trackcom" pos="0 0 .3"/>'
    suite = load_changed(body, body + camera, "scene.xml")
    sim = new_sim(2, suite=suite, image_size=8)
    sim.reset([0, 1], tasks=[0, 0], state_ids=[0, 1])
    model = sim.scene_model(0)
    for slot in range(2):
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, sim._physics(slot), STATE_SPEC)
        mujoco.mj_forward(model, data)
        seen = sim._slots.poses.camera_pos[slot, model.camera("follower").id]
        assert np.allclose(seen, data.camera("follower").xpos, atol=1e-12)
