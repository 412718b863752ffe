"""A suite as a vector environment of stable-baselines3 (extra `sb3`).

from stable_baselines3 import PPO
from vla_crl.sb3.vec_env import SuiteVecEnv

env = SuiteVecEnv("tabletop_goal", 32, tasks=["open_drawer"], reward="dense", privileged=True)
PPO("MultiInputPolicy", env).learn(10_000)
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)

from vla_crl.errors import SpecError
from vla_crl.sim.rewards import Reward
from vla_crl.sim.robots import Robots, RobotSettings, TellsOfRobots
from vla_crl.sim.senses import Instruction, Senses, action_space
from vla_crl.sim.variation import VariationConfig


class SuiteVecEnv(TellsOfRobots, VecEnv):
    """N robots on tasks of one suite, given to them in turn; batched physics and rendering.

    An observation is a dictionary, for "MultiInputPolicy": "state", "instruction", "privileged"
    where it is asked for, and an image under the name of each camera where there is an image size.
    A step is one control step. Where an episode ends, the observation returned is the first of the
    next one; `infos` hold the last one ("terminal_observation") and whether time was up without
    success ("TimeLimit.truncated"), beside "success", which stable-baselines3 logs as
    "is_success", "diverged", "state_id" and "task". Episodes draw training states. It can be
    pickled and copied, in the middle of episodes too.
    """

    def __init__(  # noqa: PLR0913 - a setting each
        self, suite: str, num_envs: int = 1, *, tasks: Sequence[str] | None = None,
        image_size: int | None = None, num_threads: int = 2, render_mode: str | None = None,
        variation: VariationConfig | None = None, reward: Reward = "sparse",
        privileged: bool = False, instruction: Instruction = "one_hot",
    ) -> None:  # fmt: skip
        """Build the environments.

        Args:
            suite: A suite of the catalogue, also "suite@controller".
            num_envs: N.
            tasks: Robot i gets task i modulo their number; by default all tasks of the suite.
            image_size: Height and width of images, pixels; None: none are drawn. The convolutions
                of "MultiInputPolicy" want at least 36.
            num_threads: Threads for physics and rendering.
            render_mode: "rgb_array" or None.
            variation: What episodes vary in tasks that have no variation of their own.
            reward: "sparse", or "dense": see `vla_crl.sim.rewards`.
            privileged: Whether observations tell where things are, as `privileged_names` says.
            instruction: "one_hot" or "index" among the environment's tasks, or a function from a
                sentence to a vector, such as an embedding.

        Raises:
            ConfigError: No such suite, task or setting, a count below 1, the backend lacks what is
                asked for, or the variation does not fit.
            SpecError: The instruction is to be a text, which stable-baselines3 has no place for.
        """
        if instruction == "text":
            raise SpecError(
                "SuiteVecEnv: instruction is 'text', which stable-baselines3 does not read; "
                "expected 'one_hot', 'index' or a function from a sentence to a vector"
            )
        self.render_mode = render_mode
        self._robots = Robots(
            RobotSettings(
                suite, num_envs, tasks, image_size, num_threads, render_mode, variation, reward,
                privileged, instruction, cameras_apart=True,
            )
        )  # fmt: skip
        self._generators: list[np.random.Generator] = []
        self._actions = np.zeros(0)
        super().__init__(num_envs, self._robots.senses.space, action_space(self._robots.suite))
        self.metadata = self._robots.metadata

    @property
    def senses(self) -> Senses:
        """What is observed."""
        return self._robots.senses

    def reset(self) -> VecEnvObs:
        """Begin an episode everywhere; `seed` and `set_options` before it say which."""
        generators = self._generators or [None] * self.num_envs
        self._generators = [
            seeding.np_random(seed)[0] if generator is None or seed is not None else generator
            for generator, seed in zip(generators, self._seeds, strict=True)
        ]
        for robot, options in enumerate(self._options):
            self._robots.reset(np.array([robot]), [self._generators[robot]], options)
        self._reset_seeds()
        self._reset_options()
        nowhere = np.zeros(self.num_envs, dtype=bool)
        self.reset_infos = self._infos(success=nowhere, diverged=nowhere)
        return self._robots.observe()

    def step_async(self, actions: np.ndarray) -> None:
        """Remember actions [N, A]; they are clipped to [-1, 1]."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Take one control step everywhere, and begin the next episode where one has ended.

        Raises:
            SpecError: Actions of the wrong shape or not finite, or `reset` was never called.
        """
        robots = np.arange(self.num_envs)
        result = self._robots.step(self._actions[:, None], robots)
        infos = self._infos(success=result.success, diverged=result.diverged)
        seen, dones = self._robots.observe(), result.terminated | result.truncated
        over = np.flatnonzero(dones)
        for robot, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(result.truncated[robot])
        if len(over):
            for robot in over.tolist():
                last = {name: values[robot].copy() for name, values in seen.items()}
                infos[robot]["terminal_observation"] = last
            self._robots.reset(over, [self._generators[robot] for robot in over], None)
            for name, values in self._robots.observe(over).items():
                seen[name][over] = values
            begun = self._infos(success=np.zeros_like(dones), diverged=np.zeros_like(dones))
            for robot in over.tolist():
                self.reset_infos[robot] = begun[robot]
        return seen, result.reward.astype(np.float32), dones, infos

    def close(self) -> None:
        """Stop the threads."""
        self._robots.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return one frame [256, 256, 3] uint8 per robot; None without a render mode."""
        return list(self._robots.frames()) if self.render_mode else [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, which all environments share."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments at once.

        Raises:
            SpecError: Only some are meant.
        """
        self._require_all("set_attr", indices)
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:  # fmt: skip
        """Call a method for all environments at once.

        Raises:
            SpecError: Only some are meant.
        """
        self._require_all("env_method", indices)
        method: Callable[..., Any] = getattr(self, method_name)
        return [method(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell that no environment has a wrapper of its own."""
        return [False for _ in self._get_indices(indices)]

    def _require_all(self, where: str, indices: VecEnvIndices) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise SpecError(
                f"SuiteVecEnv.{where}: got indices {indices}, expected None: the environments are "
                "one batch and have no attributes of their own"
            )

    def _infos(self, *, success: np.ndarray, diverged: np.ndarray) -> list[dict[str, Any]]:
        columns = (success, diverged, self._robots.sim.state_ids, self._robots.task_names)
        return [
            {
                "is_success": success,
                "success": success,
                "diverged": diverged,
                "state_id": state_id,
                "task": task,
            }
            for success, diverged, state_id, task in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
