"""Suites that collect tasks of others: files, errors, subsets of objects, one batch of all."""

import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from vla_crl import catalog
from vla_crl.config import from_mapping
from vla_crl.errors import ConfigError
from vla_crl.sim.backends import task_horizons
from vla_crl.sim.grounding import ground
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.scene_config import TaskConfig
from vla_crl.sim.native.suite import CollectionConfig, Suite, load_suite, read_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.variation import VariationConfig

COLLECTIONS = ("tabletop_30", "tabletop_perturbed")
README = (catalog.catalog_dir("envs") / "README.md").read_text(encoding="utf-8")
README_EXAMPLES = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
Collect = Callable[..., Suite]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of its own with the shipped suites in it."""
    ignored = shutil.ignore_patterns("*.png", "*.md")
    shutil.copytree(catalog.catalog_dir("envs"), tmp_path / "envs", ignore=ignored)
    monkeypatch.setattr(catalog, "catalog_dir", lambda kind: tmp_path / kind)
    return tmp_path / "envs"


@pytest.fixture
def collect(folder: Path) -> Collect:
    """Load a new suite from the text of its file."""

    def collect(*tasks: str, text: str = "") -> Suite:
        (folder / "mine").mkdir(exist_ok=True)
        sections = "\n".join(f"[[tasks]]\n{task}" for task in tasks)
        (folder / "mine" / "suite.toml").write_text(f'description = "Mine."\n{text}\n{sections}')
        return load_suite.__wrapped__("mine")

    return collect


def config_of(name: str) -> CollectionConfig:
    config = read_suite(catalog.suite_path(name) / "suite.toml")
    assert isinstance(config, CollectionConfig)
    return config


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_task_is_as_in_its_source_unless_the_collection_says_otherwise(name: str):
    suite = load_suite(name)
    for task, reference in zip(suite.tasks, config_of(name).tasks, strict=True):
        source_name, task_name = reference.task.split(".")
        source = load_suite(source_name)
        original = source.tasks[source.task_index(task_name)]
        for field in ("instruction", "paraphrases", "goal", "horizon"):
            assert getattr(task, field) == getattr(original, field)
        assert task.name == (reference.name or reference.task)
        assert task.split == (reference.split or original.split)
        assert task.variation == (reference.variation or original.variation)
        if reference.things is None:
            assert suite.scenes[task.scene] is source.scenes[original.scene]  # compiled once
            assert np.array_equal(task.start_qpos, original.start_qpos, equal_nan=True)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_names_are_known_without_compiling_anything(name: str):
    names = list(task_horizons(name))
    assert names == [task.name for task in load_suite(name).tasks]


def test_a_scene_is_shared_by_all_tasks_with_the_same_things():
    thirty = load_suite("tabletop_30")
    assert len(thirty.scenes) == 5  # of tabletop_object two
    for task, scene in zip(thirty.tasks, thirty.scene_of_task, strict=True):
        source = load_suite(task.name.split(".")[0])
        assert thirty.scenes[scene] in source.scenes
    assert len(load_suite("tabletop_perturbed").scenes) == 2  # with and without distractors
    horizons = {task.name.split(".")[0]: task.horizon for task in thirty.tasks}
    assert horizons == {
        "tabletop_object": 48, "tabletop_spatial": 60, "tabletop_goal": 60, "tabletop_long": 120,
    }  # fmt: skip
    assert thirty.horizon == 120


def test_what_a_reference_omits_is_as_in_its_source(collect: Collect):
    suite = collect(
        'task = "tabletop_object.red_cube_in_basket"',
        'task = "tabletop_object.pink_egg_in_tray"\nname = "egg"\nsplit = "train"',
        'task = "tabletop_goal.open_drawer"\n[tasks.variation]\naction_latency = [1, 1]',
    )
    assert suite.description == "Mine."
    assert [task.name for task in suite.tasks] == [
        "tabletop_object.red_cube_in_basket", "egg", "tabletop_goal.open_drawer",
    ]  # fmt: skip
    assert [task.split for task in suite.tasks] == ["train"] * 3
    assert suite.tasks[0].variation is None
    assert suite.tasks[2].variation == VariationConfig(action_latency=(1, 1))
    assert suite.scene_of_task.tolist() == [0, 1, 2]


OBJECT, GOAL = 'task = "tabletop_object.red_cube_in_basket"', 'task = "tabletop_goal.press_button"'


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (('task = "tabletop_objct.red_cube"',), "unknown suite 'tabletop_objct'. Did you mean"),
        (
            ('task = "tabletop_object.red_cube_in_baskt"',),
            "task 'tabletop_object.red_cube_in_baskt': unknown task 'red_cube_in_baskt'. Did you",
        ),
        (
            ('task = "tabletop_object"',),
            "task 'tabletop_object': expected the name of a suite, a dot and",
        ),
        (
            ('task = "tabletop_30.tabletop_goal.open_drawer"',),
            "suite 'tabletop_30' is a collection, name its source",
        ),
        (
            ('task = "metaworld_mt10.reach-v3"',),
            "mine.suite.toml: task 'metaworld_mt10.reach-v3': .*has the backend 'metaworld'",
        ),
        ((OBJECT, OBJECT), "mine.suite.toml: task names must be unique, repeated: .*red_cube_in_"),
        (
            (f'{OBJECT}\nthings = ["red cube", "blue cylindr"]',),
            "'mine': task 'tabletop_object.red_cube_in_basket': unknown thing 'blue cylindr'. Did",
        ),
        (
            (f'{OBJECT}\nthings = ["pink egg"]',),
            "its goal names 'red cube', which its things leave out",
        ),
        ((f'{OBJECT}\nsplit = "tset"',), "split = 'tset', expected .* Did you mean 'test'|heldout"),
        ((f"{OBJECT}\nhorizon = 5",), "unknown key 'horizon' in TaskReference"),
        (
            (f"{OBJECT}\n[tasks.variation]\nmass_gain = [2.0, 1.0]",),
            "mine.suite.toml.*mass_gain = .2.0, 1.0., expected low before high",
        ),
        ((f"{OBJECT}\n[tasks.variation]\nmas_gain = [1.0, 1.0]",), "Did you mean 'mass_gain'"),
    ],
)
def test_a_faulty_collection_is_refused(collect: Collect, tasks: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        collect(*tasks)


def test_a_collection_without_tasks_is_refused(collect: Collect):
    with pytest.raises(ConfigError, match="mine.suite.toml: tasks is empty, expected at least one"):
        collect(text="tasks = []")


def test_a_suite_that_forgot_its_scene_is_told_so(folder: Path):
    file = folder / "tabletop_goal" / "suite.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('scene = "scene.xml"', ""))
    with pytest.raises(ConfigError, match="suite.toml: key 'scene' of SceneConfig is missing"):
        read_suite(file)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"agentview", "eye_in_hand"', '"eye_in_hand", "agentview"', "cameras"),
        ('film_camera = "overview"', 'film_camera = "agentview"', "film_camera"),
        ("control_hz = 10.0", "control_hz = 20.0", "control_hz"),
        ("num_train_states = 4000", "num_train_states = 40", "num_train_states"),
        ("num_test_states = 200", "num_test_states = 20", "num_test_states"),
        ("[arm]", '[arm]\ncontroller = "eef_position"', "arm.controller"),
    ],
)
def test_suites_that_disagree_are_not_collected(
    folder: Path, collect: Collect, old: str, new: str, field: str
):
    file = folder / "tabletop_goal" / "suite.toml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    message = f"disagree about {field}: .* and .*; leave one of them out"
    with pytest.raises(ConfigError, match=f"its tasks come from suites that {message}"):
        collect(OBJECT, GOAL)


def test_objects_that_a_task_leaves_out_are_gone(collect: Collect):
    suite = collect(
        f'{OBJECT}\nname = "three"\nthings = ["red cube", "white mug", "pink egg"]',
        f'{OBJECT}\nname = "two"\nthings = ["red cube", "pink egg"]',
        f'{GOAL}\nname = "none"\nthings = []',
    )
    three, two, none = suite.scenes
    assert (three.model.nq, two.model.nq, none.model.nq) == (9 + 3 * 7, 9 + 2 * 7, 9 + 4)
    bodies = {two.model.body(i).name for i in range(two.model.nbody)}
    assert {"red_cube", "pink_egg", "basket", "tray"} < bodies
    assert not bodies & {"white_mug", "green_cube", "blue_cylinder"}
    assert two.model.ngeom == three.model.ngeom - 2  # cup and handle of the mug
    assert [thing.name for thing in two.things] == ["red cube", "pink egg", "basket", "tray"]
    assert list(none.bodies)[:2] == ["cabinet", "drawer"]  # fixtures and their parts stay

    sim = VectorSim(suite, 3)
    sim.reset(range(3), tasks=range(3), state_ids=[0, 0, 0])
    for _ in range(2):
        is_there = np.isfinite(sim.thing_positions()[..., 0])
        for slot, scene in enumerate(suite.scenes):
            assert {suite.things[i] for i in np.flatnonzero(is_there[slot])} == set(scene.bodies)
        visible = ground(sim, np.arange(3)).visible
        assert not visible.transpose(0, 2, 1)[~is_there].any()
        sim.step_chunk(np.zeros((3, 2, 7)))
    sim.close()


def test_the_expert_works_among_any_number_of_objects(collect: Collect):
    names = [thing.name for thing in load_suite("tabletop_object").scenes[0].config.things]
    suite = collect(
        *(f'{OBJECT}\nname = "{n}"\nthings = {names[:n]}' for n in (1, 2, 6)),
        f'{GOAL}\nname = "empty"\nthings = []',
    )
    sim, running = VectorSim(suite, 4), np.arange(4)
    sim.reset(running, tasks=running, state_ids=running)
    expert, success = ScriptedExpert(sim), np.zeros(4, bool)
    while len(running):
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
    sim.close()
    assert success.all()


NUM_EPISODES, NUM_CHUNKS, CHUNK_STEPS = 64, 3, 3
End = dict[str, np.ndarray]


def play(sim: VectorSim, tasks: np.ndarray, state_ids: np.ndarray) -> list[End]:
    """Play the expert's first chunks, as many episodes at a time as fit, in the last slots.

    Returns:
        All that can be known of each episode then.
    """
    expert, ends = ScriptedExpert(sim), []
    for first in range(0, len(tasks), sim.num_slots):
        episodes = np.arange(first, min(first + sim.num_slots, len(tasks)))
        slots = sim.num_slots - len(episodes) + np.arange(len(episodes))
        sim.reset(slots, tasks=tasks[episodes], state_ids=state_ids[episodes])
        for _ in range(NUM_CHUNKS):
            noise = np.linspace(-0.3, 0.3, CHUNK_STEPS)[:, None]
            sim.step_chunk(expert.act(slots)[:, None] + noise, slots)
        ends += [end_of(sim, int(slot)) for slot in slots]
    return ends


def end_of(sim: VectorSim, slot: int) -> End:
    suite, states, seen = sim.suite, sim.get_states(), sim.observe([slot])
    scene = suite.scenes[suite.scene_of_task[sim.tasks[slot]]]
    things = [sim.thing_positions([slot])[0, suite.thing_index(name)] for name in scene.bodies]
    return {
        "physics": states["physics"][slot, : mujoco.mj_stateSize(scene.model, STATE_SPEC)],
        **{name: states[name][slot] for name in ("controller", "num_steps", "outcome", "pending")},
        "things": np.stack(things),
        "grip": sim.grip_pose([slot])[1],
        "images": seen.images,
        "state": seen.state,
        "instruction": np.array(seen.instruction),
        "uv": ground(sim, np.array([slot])).uv[0, :, [suite.thing_index(n) for n in scene.bodies]],
    }


@pytest.fixture(scope="module", params=COLLECTIONS)
def episodes(request: pytest.FixtureRequest) -> tuple[Suite, np.ndarray, np.ndarray, list[End]]:
    """Episodes of all tasks in random order, each played in a simulation of its task alone."""
    suite = load_suite(request.param)
    rng = np.random.default_rng(0)
    tasks = rng.permutation(np.arange(NUM_EPISODES) % len(suite.tasks))
    state_ids = rng.integers(suite.test_ids.stop, size=NUM_EPISODES)
    ends: list[End] = [{} for _ in tasks]
    for index, task in enumerate(suite.tasks):
        scenes, tasks_alone = (suite.scenes[task.scene],), (replace(task, scene=0),)
        alone = replace(suite, scenes=scenes, tasks=tasks_alone)
        sim = VectorSim(alone, 1, num_threads=1)
        for episode in np.flatnonzero(tasks == index):
            (ends[episode],) = play(sim, np.array([0]), state_ids[[episode]])
        sim.close()
    return suite, tasks, state_ids, ends


@pytest.mark.parametrize(
    ("num_slots", "num_threads"), [(64, 1), (64, 2), (64, 4), (7, 1), (7, 2), (7, 4), (1, 2)]
)
def test_one_batch_over_several_scenes_plays_the_episodes_of_each_task_alone(
    episodes: tuple[Suite, np.ndarray, np.ndarray, list[End]], num_slots: int, num_threads: int
):
    suite, tasks, state_ids, expected = episodes
    sim = VectorSim(suite, num_slots, num_threads=num_threads)
    ends = play(sim, tasks, state_ids)
    sim.close()
    for end, alone in zip(ends, expected, strict=True):
        for name, value in alone.items():
            assert np.array_equal(end[name], value), name


def test_a_slot_forgets_the_scene_it_was_in(new_sim: Callable[..., VectorSim]):
    suite = load_suite("tabletop_30")
    sim, fresh = new_sim(1, suite=suite), new_sim(1, suite=suite)
    for task in (3, 1, 0, 2):
        sim.reset([0], tasks=[task], state_ids=[7])
        sim.step_chunk(np.full((1, 2, 7), 0.2))
        fresh.reset([0], tasks=[task], state_ids=[7])
        fresh.step_chunk(np.full((1, 2, 7), 0.2))
        for name, value in fresh.get_states().items():
            assert np.array_equal(sim.get_states()[name], value), name
        assert np.array_equal(sim.observe().images, fresh.observe().images)
        fresh = new_sim(1, suite=suite)


def test_robots_with_other_arms_share_a_batch(folder: Path, collect: Collect):
    """The second robot has no seventh joint; its hand is mounted as a wrist at zero needs it."""
    arm = (folder / "robots" / "arm7.xml").read_text(encoding="utf-8")
    for lost in (
        'quat=".9238795 0 0 -.3826834"',
        '<joint class="arm" name="joint7" range="-2.8973 2.8973"/>',
        '<position name="joint7" joint="joint7" kp="1000" kv="30" forcerange="-8 8"/>',
    ):
        assert lost in arm
        arm = arm.replace(lost, "")
    (folder / "robots" / "arm6.xml").write_text(arm, encoding="utf-8")
    scene = folder / "tabletop_goal" / "scene.xml"
    scene.write_text(scene.read_text(encoding="utf-8").replace("arm7.xml", "arm6.xml"))
    file = folder / "tabletop_goal" / "suite.toml"
    text = file.read_text(encoding="utf-8")
    text = text.replace(', "joint7"]', "]").replace(", 0.785398163]", "]")
    file.write_text(text, encoding="utf-8")
    suite = collect(OBJECT, GOAL)
    assert [len(scene.config.arm.joints) for scene in suite.scenes] == [7, 6]
    with pytest.raises(ConfigError, match="the joints of its arms differ between its scenes, so"):
        suite.with_controller("joint_position")
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 6, 7))
    sim = VectorSim(suite, 2)
    sim.reset(range(2), tasks=[1, 0], state_ids=[3, 3])
    sim.step_chunk(actions)
    for slot, task in enumerate((1, 0)):
        only = (replace(suite.tasks[task], scene=0),)
        alone = replace(suite, name="alone", scenes=(suite.scenes[task],), tasks=only)
        other = VectorSim(alone, 1)
        other.reset([0], tasks=[0], state_ids=[3])
        other.step_chunk(actions[[slot]])
        end = other.get_states()
        for name in ("physics", "controller"):
            values = end[name][0]
            assert np.array_equal(sim.get_states()[name][slot, : len(values)], values)
        other.close()
    sim.close()


def test_the_examples_of_the_readme_work(collect: Collect):
    task, collection, *_ = README_EXAMPLES  # others are of other backends
    written = from_mapping(TaskConfig, tomllib.loads(task)["tasks"][0], "README.md")
    assert written.variation == VariationConfig(friction_gain=(0.5, 1.0), paraphrase=True)
    assert written.things == ("red cube", "blue cylinder", "purple ball")
    suite = collect(text=collection.replace("description", "# description"))
    names = [(task.name, task.split) for task in suite.tasks]
    assert names == [
        ("in_the_dark", "train"), ("alone", "heldout"), ("tabletop_goal.open_drawer", "heldout"),
    ]  # fmt: skip
