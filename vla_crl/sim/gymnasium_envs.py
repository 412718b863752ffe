"""The suites as Gymnasium environments.

Importing this module registers them, as Gymnasium's "module:id" form expects:

    import gymnasium

    env = gymnasium.make(
        "vla_crl.sim.gymnasium_envs:vla_crl/tabletop_object.red_cube_in_basket-v0"
    )
    envs = gymnasium.make_vec("vla_crl.sim.gymnasium_envs:vla_crl/tabletop_object-v0", num_envs=64)

Suites in the folders of VLA_CRL_PATH are registered as well, whatever simulates them. Another
controller of a suite, or another option, is chosen by `suite`, which Gymnasium's ids have no sign
for:

    env = gymnasium.make("vla_crl/metaworld_mt10.push-v3-v0", suite="metaworld_mt10@eef_position")
    envs = gymnasium.make_vec("vla_crl/libero_object-v0", num_envs=8, suite="libero_object@openpi")
"""

import string
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_crl.catalog import list_suites
from vla_crl.contracts import (
    JOINT_ANGLE,
    POSE_STATE,
    ChunkResult,
    Embodiment,
    Observation,
    check_actions,
)
from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.sim.backends import find_suite, simulate, task_names
from vla_crl.sim.calls import require_counts
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.simulation import Filmed, require
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH, TaskSuite
from vla_crl.sim.variation import VariationConfig

RENDER_PIXELS = 256
"""Height and width of a frame from `render`."""
RENDER_MODES = ["rgb_array"]
_BOUNDS: dict[str, float] = dict(
    zip(POSE_STATE, [2.0] * 3 + [2 * np.pi] * 3 + [1.0] * 2, strict=True)
)
"""Of numbers of the state (m, rad, m): beyond the arm's reach, a full turn and the fingers, each
with the greatest noise."""


def state_space(robot: Embodiment) -> spaces.Box:
    """Return the space of a robot's state; numbers that only its suite knows have no bound."""
    bound = np.array([_bound(name) for name in robot.state], np.float32)
    return spaces.Box(-bound, bound)


def _bound(name: str) -> float:
    return 2 * np.pi if name.startswith(JOINT_ANGLE) else _BOUNDS.get(name, np.inf)


def observation_space(suite: TaskSuite, image_size: int) -> spaces.Dict:
    """Return the space of one robot's images, state and instruction."""
    shape = (len(suite.embodiment.cameras), image_size, image_size, 3)
    text = string.ascii_letters + string.digits + string.punctuation + " "
    return spaces.Dict(
        images=spaces.Box(0, 255, shape, np.uint8),
        state=state_space(suite.embodiment),
        instruction=spaces.Text(MAX_INSTRUCTION_LENGTH, charset=text),
    )


def action_space(suite: TaskSuite) -> spaces.Box:
    """Return the space of one robot's action."""
    return spaces.Box(-1.0, 1.0, (len(suite.embodiment.action),))


class TaskEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task of a suite; a step is one control step, the reward is 1 on success.

    `reset` draws a training state; `options={"state_id": ...}` names one, test states included.
    `info` holds "success", "diverged" (physics blew up), "state_id" and "task".
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES}  # noqa: RUF012 - as Gymnasium's

    def __init__(
        self, suite: str, task: str, *, image_size: int = 64, render_mode: str | None = None,
        variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Build the environment.

        Args:
            suite: A suite of the catalogue, also "suite@controller".
            task: Name of one of its tasks.
            image_size: Height and width of the observed images, pixels.
            render_mode: "rgb_array" or None.
            variation: What episodes vary, unless the task has a variation of its own.

        Raises:
            ConfigError: No such suite, task or render mode, the backend has no frames, or the
                variation does not fit.
        """
        self._robots = _Robots(
            suite, [task], image_size, render_mode=render_mode, variation=variation
        )
        self.render_mode = render_mode
        self.metadata = _metadata(self._robots.suite)
        self.observation_space = observation_space(self._robots.suite, image_size)
        self.action_space = action_space(self._robots.suite)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; the seed determines its initial state and those that follow.

        Raises:
            SpecError: An unknown option or state id.
        """
        super().reset(seed=seed)
        self._robots.reset(np.array([0]), [self.np_random], options)
        return self._observe(), self._info(success=False, diverged=False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one control step; the action is clipped to [-1, 1].

        Raises:
            SpecError: An action of the wrong shape or not finite, or the episode is over.
        """
        if np.shape(action) != self.action_space.shape:
            shape = self.action_space.shape
            raise SpecError(f"action: got shape {np.shape(action)}, expected {shape}")
        result = self._robots.step(np.asarray(action)[None, None], np.array([0]))
        success, diverged = bool(result.success[0]), bool(result.diverged[0])
        info = self._info(success=success, diverged=diverged)
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        return self._observe(), float(success), terminated, truncated, info

    @property
    def divergences(self) -> list[Divergence]:
        """Every step under which physics blew up; whoever reads it may clear it."""
        return self._robots.divergences

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the first camera's view, [256, 256, 3] uint8; None without a render mode."""
        return None if self.render_mode is None else self._robots.frames()[0]

    def close(self) -> None:
        """Stop the threads."""
        self._robots.sim.close()

    def _observe(self) -> dict[str, Any]:
        observation = self._robots.observe()
        return {
            "images": observation.images[0],
            "state": observation.state[0],
            "instruction": observation.instruction[0],
        }

    def _info(self, **outcome: bool) -> dict[str, Any]:
        sim = self._robots.sim
        task = self._robots.suite.tasks[sim.tasks[0]]
        return outcome | {"state_id": int(sim.state_ids[0]), "task": task.name}


class SuiteVectorEnv(VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """N robots on tasks of one suite, given to them in turn; batched physics and rendering.

    Episodes equal those of `SyncVectorEnv` over `TaskEnv`, with the same seeds and info. A robot
    whose episode has ended is reset by the next step, which ignores its action
    (`AutoresetMode.NEXT_STEP`).
    """

    def __init__(
        self, suite: str, *, num_envs: int = 1, tasks: Sequence[str] | None = None,
        image_size: int = 64, num_threads: int = 2, render_mode: str | None = None,
        variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Build the environments.

        Args:
            suite: A suite of the catalogue, also "suite@controller".
            num_envs: N.
            tasks: Robot i gets task i modulo their number; by default all tasks of the suite.
            image_size: Height and width of the observed images, pixels.
            num_threads: Threads for physics and rendering.
            render_mode: "rgb_array" or None.
            variation: What episodes vary in tasks that have no variation of their own.

        Raises:
            ConfigError: No such suite, task or render mode, a count below 1, the backend has no
                frames, or the variation does not fit.
        """
        require_counts("SuiteVectorEnv", num_envs=num_envs)
        if tasks is not None and (isinstance(tasks, str) or not len(tasks)):
            raise ConfigError(f"tasks: got {tasks!r}, expected task names, or None for all")
        names = tasks or [task.name for task in find_suite(suite).tasks]
        self._robots = _Robots(
            suite, [names[i % len(names)] for i in range(num_envs)], image_size, num_threads,
            render_mode=render_mode, variation=variation,
        )  # fmt: skip
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = _metadata(self._robots.suite) | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = observation_space(self._robots.suite, image_size)
        self.single_action_space = action_space(self._robots.suite)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._is_over = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        """Begin an episode everywhere; robot i is seeded with `seed` + i, or with `seed`[i].

        Raises:
            SpecError: An unknown option or state id, or not one seed per robot.
        """
        if isinstance(seed, int | np.integer):
            seed = range(int(seed), int(seed) + self.num_envs)
        seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise SpecError(f"reset: {len(seeds)} seeds, expected {self.num_envs}, one per robot")
        generators = self._generators or [None] * self.num_envs
        self._generators = [
            seeding.np_random(seed)[0] if generator is None or seed is not None else generator
            for generator, seed in zip(generators, seeds, strict=True)
        ]
        self._robots.reset(np.arange(self.num_envs), self._generators, options)
        self._is_over[:] = False
        nowhere = np.zeros(self.num_envs, dtype=bool)
        return self._observe(), self._infos(success=nowhere, diverged=nowhere.copy())

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one control step, or begin the next episode where the last one has ended.

        Raises:
            SpecError: Actions of the wrong shape or not finite, or `reset` was never called.
        """
        if np.shape(actions) != self.action_space.shape:
            shape = self.action_space.shape
            raise SpecError(f"actions: got shape {np.shape(actions)}, expected {shape}")
        actions = check_actions(np.asarray(actions)[:, None], *np.shape(actions))
        running, over = np.flatnonzero(~self._is_over), np.flatnonzero(self._is_over)
        success, diverged, terminated, truncated = np.zeros((4, self.num_envs), dtype=bool)
        result = self._robots.step(actions[running], running)
        success[running], diverged[running] = result.success, result.diverged
        terminated[running], truncated[running] = result.terminated, result.truncated
        self._robots.reset(over, [self._generators[robot] for robot in over], None)
        self._is_over = terminated | truncated
        infos = self._infos(success=success, diverged=diverged)
        return self._observe(), success.astype(float), terminated, truncated, infos

    @property
    def divergences(self) -> list[Divergence]:
        """Every step under which physics blew up; whoever reads it may clear it."""
        return self._robots.divergences

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return one frame [256, 256, 3] uint8 per robot; None without a render mode."""
        return None if self.render_mode is None else tuple(self._robots.frames())

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        self._robots.sim.close()

    def _observe(self) -> dict[str, Any]:
        observation = self._robots.observe()
        return {
            "images": observation.images,
            "state": observation.state,
            "instruction": observation.instruction,
        }

    def _infos(self, **outcome: np.ndarray) -> dict[str, Any]:
        sim, suite = self._robots.sim, self._robots.suite
        names = np.array([suite.tasks[task].name for task in sim.tasks], dtype=object)
        infos = outcome | {"state_id": sim.state_ids, "task": names}
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}


class _Robots:
    """What both environments share: a simulation, initial states and frames."""

    def __init__(
        self, suite: str, tasks: Sequence[str], image_size: int, num_threads: int = 1,
        *, render_mode: str | None, variation: VariationConfig | None,
    ) -> None:  # fmt: skip
        if render_mode not in (None, *RENDER_MODES):
            raise unknown_name(
                "Gymnasium environment", "render_mode", str(render_mode), RENDER_MODES
            )
        self.suite = find_suite(suite)
        self._tasks = np.array([self.suite.task_index(task) for task in tasks], dtype=np.int64)
        self.sim = simulate(
            self.suite,
            len(tasks),
            num_threads=num_threads,
            image_size=image_size,
            tasks=np.unique(self._tasks).tolist(),
            variation=variation,
        )
        if render_mode is not None:
            require(self.sim, Filmed, "rendered")
        self.divergences: list[Divergence] = []

    def reset(
        self,
        slots: np.ndarray,
        generators: Sequence[np.random.Generator],
        options: dict[str, Any] | None,
    ) -> None:
        unknown = set(options or {}) - {"state_id"}
        if unknown:
            raise SpecError(f"reset: unknown options {sorted(unknown)}, expected 'state_id'")
        drawn = np.array([rng.choice(self.suite.train_ids) for rng in generators], np.int64)
        ids = np.asarray((options or {}).get("state_id", drawn))
        if ids.shape not in {(), slots.shape} or not np.issubdtype(ids.dtype, np.integer):
            raise SpecError(
                f"reset: state_id is {ids.dtype} {ids.shape}, expected whole numbers () or "
                f"{slots.shape}"
            )
        self.sim.reset(slots, tasks=self._tasks[slots], state_ids=np.broadcast_to(ids, slots.shape))

    def step(self, actions: np.ndarray, slots: np.ndarray) -> ChunkResult:
        result = self.sim.step_chunk(actions, slots)
        for divergence in self.sim.divergences:
            warnings.warn(str(divergence), stacklevel=3)
        self.divergences += self.sim.divergences
        self.sim.divergences.clear()
        return result

    def observe(self) -> Observation:
        return self.sim.observe(range(self.sim.num_slots))  # named slots: images of its own

    def frames(self) -> np.ndarray:
        camera = self.suite.embodiment.cameras[0]
        return require(self.sim, Filmed, "rendered").frames(camera, RENDER_PIXELS)


def _metadata(suite: TaskSuite) -> dict[str, Any]:
    return {"render_modes": RENDER_MODES, "render_fps": round(suite.control_hz)}


def make_task_vector_env(suite: str, task: str, **kwargs: Any) -> SuiteVectorEnv:
    """Build the vector environment of a single task."""
    return SuiteVectorEnv(suite, tasks=[task], **kwargs)


def register_envs() -> None:
    """Register `vla_crl/<suite>-v0` and `vla_crl/<suite>.<task>-v0`; no scene is compiled.

    A suite that cannot be read is left out, with a warning.
    """
    for suite in list_suites():
        try:
            tasks = task_names(suite)
        except ConfigError as error:
            warnings.warn(f"suite '{suite}' is not registered: {error}", stacklevel=2)
            continue
        gymnasium.register(
            f"vla_crl/{suite}-v0",
            vector_entry_point=f"{__name__}:SuiteVectorEnv",
            kwargs={"suite": suite},
        )
        for task in tasks:
            gymnasium.register(
                f"vla_crl/{suite}.{task}-v0",
                entry_point=f"{__name__}:TaskEnv",
                vector_entry_point=f"{__name__}:make_task_vector_env",
                kwargs={"suite": suite, "task": task},
            )


register_envs()
