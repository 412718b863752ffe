"""Tasks of original LIBERO as environments: what peers run in their processes."""

from typing import Any, cast

import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.backends import find_suite
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.original_episode import WAIT_ACTION
from vla_crl.sim.libero.package import import_libero, make_benchmark
from vla_crl.sim.libero.suite import LiberoSuite, LiberoTask


def read_suite(name: str) -> LiberoSuite:
    """Return a suite of LIBERO whose name does not say how it is to be simulated.

    Raises:
        ConfigError: There is none of that name, or its name says how it is to be simulated.
    """
    suite = find_suite(name)
    if not isinstance(suite, LiberoSuite):
        raise ConfigError(
            f"bench libero: suite '{name}' is of the backend '{suite.backend}', expected one of "
            "LIBERO, such as libero_object"
        )
    if suite.is_fast or suite.is_original:
        raise ConfigError(
            f"bench libero: '{name}': exact, fast and original are all measured; name the suite "
            "without them"
        )
    return suite


class StateEnv:
    """A task without pictures, from one official initial state; `ControlEnv` without a renderer."""

    def __init__(self, suite: LiberoSuite, task: int, state_id: int) -> None:
        """Make it.

        Args:
            suite: Of the task; its protocol says how an episode begins.
            task: Its index.
            state_id: One of the suite's test states.
        """
        own: LiberoTask = suite.tasks[task]
        self._original = OriginalTask(own.benchmark, own.name)
        self._protocol, self._official = suite.protocol, state_id - suite.test_ids.start

    def reset(self) -> dict[str, np.ndarray]:
        """Begin the episode again; the robot has waited then."""
        self._original.begin(self._official, self._protocol)
        return self._original.env._get_observations()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        """Take one control step; returns what LIBERO does."""
        return self._original.env.step(action)

    def close(self) -> None:
        """Free the environment."""
        self._original.env.close()


class PictureEnv:
    """A task as LIBERO renders it in every control step: `OffScreenRenderEnv`, two cameras."""

    def __init__(self, suite: LiberoSuite, task: int, state_id: int, pixels: int) -> None:
        """Make it, and let the robot wait as the suite's protocol says.

        Args:
            suite: Of the task.
            task: Its index.
            state_id: One of the suite's test states.
            pixels: Height and width of both cameras.
        """
        own: LiberoTask = suite.tasks[task]
        benchmark = make_benchmark(own.benchmark)
        index = benchmark.get_task_names().index(own.name)
        self._env: Any = import_libero().envs.OffScreenRenderEnv(
            bddl_file_name=benchmark.get_task_bddl_file_path(index),
            camera_heights=pixels,
            camera_widths=pixels,
            ignore_done=True,
        )
        self._env.seed(0)
        self._env.reset()
        official = benchmark.get_task_init_states(index)[state_id - suite.test_ids.start]
        self._env.set_init_state(official)
        for _ in range(suite.protocol.wait_steps):
            self._env.step(np.array(WAIT_ACTION))
        self._begun = self._env.get_sim_state()

    def reset(self) -> dict[str, np.ndarray]:
        """Return to where the robot had waited."""
        return cast(dict[str, np.ndarray], self._env.set_init_state(self._begun))

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        """Take one control step and render it."""
        return self._env.step(action)

    def close(self) -> None:
        """Free the environment and OpenGL."""
        self._env.close()
