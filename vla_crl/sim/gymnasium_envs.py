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

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_crl.catalog import list_suites
from vla_crl.contracts import check_actions
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.backends import task_horizons
from vla_crl.sim.calls import require_counts
from vla_crl.sim.rewards import Reward
from vla_crl.sim.robots import RENDER_MODES, Robots, RobotSettings, TellsOfRobots
from vla_crl.sim.senses import Instruction, action_space
from vla_crl.sim.variation import VariationConfig


class TaskEnv(TellsOfRobots, gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task of a suite; a step is one control step, the reward is 1 on success.

    `reset` draws a training state; `options={"state_id": ...}` names one, test states included.
    `info` holds "success", "diverged" (physics blew up), "state_id" and "task".

    It can be pickled and copied (`copy.deepcopy`), in the middle of an episode too: the copy has
    a simulation and random numbers of its own and goes on identically, given the same actions.
    Where a backend cannot store its worlds (see `Resumable`), that is an error.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES}  # noqa: RUF012 - as Gymnasium's

    def __init__(
        self, suite: str, task: str, *, image_size: int | None = 64, render_mode: str | None = None,
        variation: VariationConfig | None = None, reward: Reward = "sparse",
        privileged: bool = False, instruction: Instruction = "text",
    ) -> None:  # fmt: skip
        """Build the environment.

        Args:
            suite: A suite of the catalogue, also "suite@controller".
            task: Name of one of its tasks.
            image_size: Height and width of the observed images, pixels; None: none are drawn.
            render_mode: "rgb_array" or None.
            variation: What episodes vary, unless the task has a variation of its own.
            reward: "sparse", or "dense": see `vla_crl.sim.rewards`.
            privileged: Whether observations tell where things are, as `privileged_names` says.
            instruction: "text"; "one_hot" or "index" among the environment's tasks, here one; or a
                function from a sentence to a vector.

        Raises:
            ConfigError: No such suite, task or setting, the backend lacks what is asked for, or the
                variation does not fit.
        """
        self._robots = Robots(
            RobotSettings(
                suite, 1, (task,), image_size, 1, render_mode, variation, reward, privileged,
                instruction,
            )
        )  # fmt: skip
        self.render_mode = render_mode
        self.metadata = self._robots.metadata
        self.observation_space = self._robots.senses.space
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
        info = self._info(success=bool(result.success[0]), diverged=bool(result.diverged[0]))
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        return self._observe(), float(result.reward[0]), terminated, truncated, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the first camera's view, [256, 256, 3] uint8; None without a render mode."""
        return None if self.render_mode is None else self._robots.frames()[0]

    def close(self) -> None:
        """Stop the threads."""
        self._robots.close()

    def _observe(self) -> dict[str, Any]:
        return {name: value[0] for name, value in self._robots.observe().items()}

    def _info(self, **outcome: bool) -> dict[str, Any]:
        robots = self._robots
        return outcome | {"state_id": int(robots.sim.state_ids[0]), "task": robots.task_names[0]}


class SuiteVectorEnv(TellsOfRobots, VectorEnv[dict[str, Any], np.ndarray, np.ndarray]):
    """N robots on tasks of one suite, given to them in turn; batched physics and rendering.

    Episodes equal those of `SyncVectorEnv` over `TaskEnv`, with the same seeds and info. A robot
    whose episode has ended is reset by the next step, which ignores its action
    (`AutoresetMode.NEXT_STEP`). It can be pickled and copied as `TaskEnv` can.
    """

    def __init__(  # noqa: PLR0913 - a setting each
        self, suite: str, *, num_envs: int = 1, tasks: Sequence[str] | None = None,
        max_episode_steps: int | None = None, image_size: int | None = 64, num_threads: int = 2,
        render_mode: str | None = None, variation: VariationConfig | None = None,
        reward: Reward = "sparse", privileged: bool = False, instruction: Instruction = "text",
    ) -> None:  # fmt: skip
        """Build the environments.

        Args:
            suite: A suite of the catalogue, also "suite@controller".
            num_envs: N.
            tasks: Robot i gets task i modulo their number; by default all tasks of the suite.
            max_episode_steps: Steps after which an episode is truncated, at most those of its task;
                by default those.
            image_size: Height and width of the observed images, pixels; None: none are drawn.
            num_threads: Threads for physics and rendering.
            render_mode: "rgb_array" or None.
            variation: What episodes vary in tasks that have no variation of their own.
            reward: "sparse", or "dense": see `vla_crl.sim.rewards`.
            privileged: Whether observations tell where things are, as `privileged_names` says.
            instruction: "text"; "one_hot" or "index" among the environment's tasks; or a function
                from a sentence to a vector.

        Raises:
            ConfigError: No such suite, task or setting, a count below 1, the backend lacks what is
                asked for, or the variation does not fit.
        """
        if max_episode_steps is not None:
            require_counts("SuiteVectorEnv", max_episode_steps=max_episode_steps)
        self._robots = Robots(
            RobotSettings(
                suite, num_envs, tasks, image_size, num_threads, render_mode, variation, reward,
                privileged, instruction,
            )
        )  # fmt: skip
        longest = max(task.horizon for task in self._robots.tasks)
        if max_episode_steps is not None and max_episode_steps > longest:
            raise ConfigError(
                f"max_episode_steps is {max_episode_steps}, but episodes of '{suite}' end after "
                f"{longest} control steps; choose fewer, or write a suite with another horizon"
            )
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = self._robots.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._robots.senses.space
        self.single_action_space = action_space(self._robots.suite)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_episode_steps = max_episode_steps or longest
        self._num_steps = np.zeros(num_envs, np.int64)
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
        self._is_over[:], self._num_steps[:] = False, 0
        nowhere = np.zeros(self.num_envs, dtype=bool)
        return self._robots.observe(), self._infos(success=nowhere, diverged=nowhere.copy())

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
        reward = np.zeros(self.num_envs)
        result = self._robots.step(actions[running], running)
        self._num_steps[running] += 1
        is_late = self._num_steps[running] >= self._max_episode_steps
        success[running], diverged[running] = result.success, result.diverged
        terminated[running] = result.terminated
        truncated[running] = result.truncated | (is_late & ~result.terminated)
        reward[running] = result.reward
        self._robots.reset(over, [self._generators[robot] for robot in over], None)
        self._num_steps[over] = 0
        self._is_over = terminated | truncated
        infos = self._infos(success=success, diverged=diverged)
        return self._robots.observe(), reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return one frame [256, 256, 3] uint8 per robot; None without a render mode."""
        return None if self.render_mode is None else tuple(self._robots.frames())

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        self._robots.close()

    def _infos(self, **outcome: np.ndarray) -> dict[str, Any]:
        robots = self._robots
        infos = outcome | {"state_id": robots.sim.state_ids, "task": robots.task_names}
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}


def make_task_vector_env(suite: str, task: str, **kwargs: Any) -> SuiteVectorEnv:
    """Build the vector environment of a single task."""
    return SuiteVectorEnv(suite, tasks=[task], **kwargs)


def register_envs() -> None:
    """Register `vla_crl/<suite>-v0` and `vla_crl/<suite>.<task>-v0`; no scene is compiled.

    A suite that cannot be read is left out, with a warning.
    """
    for suite in list_suites():
        try:
            horizons = task_horizons(suite)
        except ConfigError as error:
            warnings.warn(f"suite '{suite}' is not registered: {error}", stacklevel=2)
            continue
        gymnasium.register(
            f"vla_crl/{suite}-v0",
            vector_entry_point=f"{__name__}:SuiteVectorEnv",
            max_episode_steps=max(horizons.values()),
            kwargs={"suite": suite},
        )
        for task, horizon in horizons.items():
            gymnasium.register(
                f"vla_crl/{suite}.{task}-v0",
                entry_point=f"{__name__}:TaskEnv",
                vector_entry_point=f"{__name__}:make_task_vector_env",
                max_episode_steps=horizon,
                kwargs={"suite": suite, "task": task},
            )


register_envs()
