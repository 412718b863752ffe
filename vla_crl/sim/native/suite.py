"""A suite of tasks as data: what `envs/<suite>/suite.toml` says, checked against its scenes.

A suite either has a scene of its own (`SceneConfig`) or collects tasks of other suites
(`CollectionConfig`), each perhaps under another name, split or variation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vla_crl.catalog import suite_path
from vla_crl.config import Settings, from_mapping, read_toml
from vla_crl.contracts import Embodiment, Split
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.native.controllers import KINDS, embodiment_of
from vla_crl.sim.native.goals import Goal, parse_goal
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.scene import Scene, is_free
from vla_crl.sim.native.scene_compilation import compile_scene
from vla_crl.sim.native.scene_config import SceneConfig, TaskConfig
from vla_crl.sim.task_suite import SuiteTask, TaskSuite
from vla_crl.sim.threads import made_once
from vla_crl.sim.variation import VariationConfig


@dataclass(frozen=True, kw_only=True)
class TaskReference(Settings):
    """A task of another suite; what is omitted is as it is there."""

    task: str
    """"suite.task"."""
    name: str | None = None
    """What it is called here; by default what `task` says."""
    split: Split | None = None
    things: tuple[str, ...] | None = None
    """Objects that are there, such as distractors."""
    variation: VariationConfig | None = None


@dataclass(frozen=True, kw_only=True)
class CollectionConfig(Settings):
    """Content of a suite.toml that collects tasks of other suites."""

    description: str
    tasks: tuple[TaskReference, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(SuiteTask):
    """One instruction with its success condition, in one of a suite's scenes.

    Attributes:
        paraphrases: Other ways to say the instruction.
        goal: Success condition, checked.
        scene: Index into the suite's scenes.
        start_qpos: [nq] m or rad, of the scene's joints; NaN leaves the initial state's.
        variation: What differs from episode to episode besides the layout.
    """

    paraphrases: tuple[str, ...]
    goal: Goal
    scene: int
    start_qpos: np.ndarray
    variation: VariationConfig | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Suite(TaskSuite):
    """Tasks with the scenes they take place in.

    All scenes show the same cameras at the same control rate and have the same numbers of initial
    states. A thing is known by its name in all of them.
    """

    backend: ClassVar[str] = "native"

    scenes: tuple[Scene, ...]
    tasks: tuple[Task, ...]
    controller: str
    """One of `controllers`."""

    @cached_property
    def _embodiment(self) -> Embodiment:
        return embodiment_of(self.controller, self.scenes[0].config)

    @property
    def embodiment(self) -> Embodiment:
        """The arm as it is commanded, and the cameras that the scenes name."""
        return self._embodiment

    @property
    def controllers(self) -> tuple[str, ...]:
        """Ways to command the arm, the suite's own first."""
        own = self.scenes[0].config.arm.controller
        return (own, *(name for name in KINDS if name != own))

    def with_controller(self, name: str) -> "Suite":
        """Return the suite with another way to command its arm, called "suite@controller".

        Raises:
            ConfigError: There is no such way, or the scenes have arms with other joints.
        """
        return _with_controller(self, name)

    @property
    def film_camera(self) -> str:
        """What people see in videos."""
        return self.scenes[0].config.film_camera

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return self.scenes[0].config.control_hz

    @property
    def train_ids(self) -> range:
        """Initial states that training may use; disjoint from `test_ids`."""
        return range(self.scenes[0].config.num_train_states)

    @property
    def test_ids(self) -> range:
        """Initial states kept for evaluation."""
        config = self.scenes[0].config
        return range(config.num_train_states, config.num_train_states + config.num_test_states)

    @property
    def things(self) -> tuple[str, ...]:
        """Names of the things of all scenes."""
        return self._things

    @cached_property
    def _things(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.name for scene in self.scenes for t in scene.things))

    @cached_property
    def thing_bodies(self) -> np.ndarray:
        """[scenes, things] body id of each thing, -1 where a scene does not have it."""
        return np.array([[s.bodies.get(name, -1) for name in self.things] for s in self.scenes])

    @cached_property
    def camera_ids(self) -> np.ndarray:
        """[scenes, C] ids of the policy's cameras."""
        names = self.embodiment.cameras
        return np.array([[s.model.camera(name).id for name in names] for s in self.scenes])

    @cached_property
    def camera_fovy_rad(self) -> np.ndarray:
        """[scenes, C] vertical fields of view of the policy's cameras."""
        scenes = zip(self.scenes, self.camera_ids, strict=True)
        return np.deg2rad([scene.model.cam_fovy[ids] for scene, ids in scenes])

    @cached_property
    def grip_sites(self) -> np.ndarray:
        """[scenes] site id of the grip."""
        return np.array([s.model.site(s.config.arm.grip_site).id for s in self.scenes])

    @cached_property
    def finger_qpos(self) -> np.ndarray:
        """[scenes, 2] index into qpos of the fingers' positions."""
        return np.array([scene.qpos_index(scene.config.arm.fingers) for scene in self.scenes])

    @cached_property
    def felt_qpos(self) -> np.ndarray:
        """[scenes, S - 6] index into qpos of what the state tells beside the grip's pose."""
        with_joints = self.controller == "joint_position"
        arms = [scene.config.arm for scene in self.scenes]
        felt = [(*(arm.joints if with_joints else ()), *arm.fingers) for arm in arms]
        pairs = zip(self.scenes, felt, strict=True)
        return np.array([scene.qpos_index(joints) for scene, joints in pairs])

    @cached_property
    def scene_of_task(self) -> np.ndarray:
        """[tasks] index of the scene of each task."""
        return np.array([task.scene for task in self.tasks])

    def goals_of(self, scene: int) -> Goals:
        """Return the goals of all tasks for compiled code; those of other scenes are empty."""
        goals = [task.goal if task.scene == scene else None for task in self.tasks]
        return self.scenes[scene].compile(goals)

    def thing_index(self, name: str) -> int:
        """Return the position of a thing in `things`."""
        if name not in self.things:
            raise unknown_name(f"suite '{self.name}'", "thing", name, self.things)
        return self.things.index(name)


@made_once
def _with_controller(suite: Suite, name: str) -> Suite:
    if name not in suite.controllers:
        raise unknown_name(f"suite '{suite.name}'", "controller", name, suite.controllers)
    arms = {scene.config.arm.joints for scene in suite.scenes}
    if name == "joint_position" and len(arms) > 1:
        raise ConfigError(
            f"suite '{suite.name}': the joints of its arms differ between its scenes, so it has no "
            f"controller '{name}'; use another, or a suite of fewer scenes"
        )
    return replace(suite, name=f"{suite.name.partition('@')[0]}@{name}", controller=name)


@lru_cache
def load_suite(name: str) -> Suite:
    """Load a suite of the catalogue that has scenes, and compile them.

    Args:
        name: Its name, or "suite@controller".

    Raises:
        ConfigError: Suite or controller do not exist, or the suite does not fit its scenes.
    """
    suite = read_native(suite_path(name) / "suite.toml")
    _, at, controller = name.partition("@")
    return suite.with_controller(controller) if at else suite


@lru_cache
def read_native(file: Path) -> Suite:
    """Read a suite.toml and compile its scenes.

    Raises:
        ConfigError: It is not as it should be, or does not fit its scenes.
    """
    config, name = read_suite(file), file.parent.name
    if isinstance(config, CollectionConfig):
        suite = _collection(name, config, file)
    else:
        chosen = [(config, file, task) for task in config.tasks]
        suite = _assemble(name, config.description, chosen)
    _check_tasks(suite, file)
    return suite


def task_horizons(file: Path) -> dict[str, int]:
    """Return the horizons of the tasks of a suite.toml by name; no scene is compiled."""
    config = read_suite(file)
    if isinstance(config, SceneConfig):
        return {task.name: config.horizon for task in config.tasks}
    chosen = (_refer(reference, file) for reference in config.tasks)
    return {task.name: scene.horizon for scene, _, task in chosen}


def read_suite(file: Path) -> SceneConfig | CollectionConfig:
    """Read a suite.toml; one without a scene collects tasks of other suites.

    Raises:
        ConfigError: The file is not as either should be.
    """
    content = read_toml(file)
    if "backend" in content:
        raise ConfigError(
            f"{file}: has the backend '{content['backend']}' and no scene of its own; expected one "
            "with a scene, which load_suite and collections need; "
            "vla_crl.sim.backends.find_suite loads either"
        )
    own = {field.name for field in fields(SceneConfig)} - {"description", "tasks"}
    config_class = SceneConfig if own & content.keys() else CollectionConfig
    return from_mapping(config_class, content, str(file))


_Chosen = tuple[SceneConfig, Path, TaskConfig]
"""A task with the file whose scene it takes place in."""


def _collection(name: str, config: CollectionConfig, file: Path) -> Suite:
    chosen = [_refer(reference, file) for reference in config.tasks]
    return _assemble(name, config.description, chosen)


def _refer(reference: TaskReference, file: Path) -> _Chosen:
    """Look up what a collection refers to."""
    where = f"{file}: task '{reference.task}'"
    suite_name, dot, task_name = reference.task.partition(".")
    if not dot:
        raise ConfigError(f"{where}: expected the name of a suite, a dot and a task of it")
    try:
        source = suite_path(suite_name) / "suite.toml"
        scene = read_suite(source)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if isinstance(scene, CollectionConfig):
        raise ConfigError(f"{where}: suite '{suite_name}' is a collection, name its source")
    found = [task for task in scene.tasks if task.name == task_name]
    if not found:
        raise unknown_name(where, "task", task_name, [task.name for task in scene.tasks])
    changes = {
        field: value
        for field in ("split", "things", "variation")
        if (value := getattr(reference, field)) is not None
    }
    renamed = replace(found[0], name=reference.name or reference.task, **changes)
    return scene, source, renamed


def _assemble(name: str, description: str, chosen: Sequence[_Chosen]) -> Suite:
    """Compile each scene once for every choice of objects, and check the tasks against them."""
    scenes: dict[tuple[Path, tuple[str, ...]], Scene] = {}
    tasks: list[Task] = []
    for config, file, task in chosen:
        where = f"suite '{name}': task '{task.name}'"
        names = [thing.name for thing in config.things]
        for thing in task.things or ():
            if thing not in names:
                raise unknown_name(where, "thing", thing, names)
        key = (file, tuple(sorted(names if task.things is None else task.things)))
        if key not in scenes:
            scenes[key] = _scene(file, key[1])
        scene = scenes[key]
        for thing in task.things or ():
            if not is_free(scene.model, scene.bodies[thing]):
                raise ConfigError(
                    f"{where}: things: '{thing}' has no free joint and so is always there; name "
                    "objects only"
                )
        left_out = set(names) - {thing.name for thing in scene.things}
        if missing := left_out & set(_words(task.goal)):
            raise ConfigError(
                f"{where}: its goal names '{min(missing)}', which its things leave out; "
                "add it there"
            )
        tasks.append(
            Task(
                name=task.name,
                instruction=task.instruction,
                paraphrases=task.paraphrases,
                split=task.split,
                goal=parse_goal(task.goal, where, scene.known),
                scene=list(scenes).index(key),
                horizon=config.horizon,
                start_qpos=scene.start_qpos(task.start, where),
                variation=task.variation,
            )
        )
    return Suite(
        name=name,
        description=description,
        scenes=tuple(scenes.values()),
        tasks=tuple(tasks),
        controller=chosen[0][0].arm.controller if chosen else "eef_pose",
    )


def _words(written: Any) -> Iterator[str]:
    """Yield all words of a goal as it is written, right or wrong."""
    if isinstance(written, (list, tuple)):
        for part in written:
            yield from _words(part)
    elif isinstance(written, str):
        yield written


@made_once
def _scene(file: Path, objects: tuple[str, ...]) -> Scene:
    config = read_suite(file)
    assert isinstance(config, SceneConfig)
    return compile_scene(config, file, objects)


def _check_tasks(suite: Suite, path: Path) -> None:
    if not suite.tasks:
        raise ConfigError(f"{path}: tasks is empty, expected at least one task")
    names = [task.name for task in suite.tasks]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ConfigError(f"{path}: task names must be unique, repeated: {sorted(duplicates)}")
    fields = ("cameras", "film_camera", "control_hz", "num_train_states", "num_test_states")
    fields = (*fields, "arm.controller")
    for field in fields:
        expected, *others = (attrgetter(field)(scene.config) for scene in suite.scenes)
        for value in others:
            if value != expected:
                raise ConfigError(
                    f"{path}: its tasks come from suites that disagree about {field}: "
                    f"{expected} and {value}; leave one of them out"
                )
