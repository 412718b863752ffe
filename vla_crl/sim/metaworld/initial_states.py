"""How episodes begin: Meta-World's own environments are reset, and what they drew is remembered."""

import copy
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.metaworld.kernel.slots import NUM_SENSED
from vla_crl.sim.metaworld.models import env_class, simulated_model
from vla_crl.sim.packed_state import STATE_SPEC

MAX_REMEMBERED = 1 << 14
"""Initial states, of 2 kB each, that are kept in memory."""


class InitialState(NamedTuple):
    """The first moment of an episode; what its fields are is said in `kernel.slots`."""

    physics: np.ndarray
    body_pos: np.ndarray
    site_pos: np.ndarray
    goal: np.ndarray
    sensed: np.ndarray


@lru_cache(MAX_REMEMBERED)
def initial_state(task: str, state_id: int) -> InitialState:
    """Return an initial state, a function of the task's name and a number alone; not to be changed.

    Meta-World draws goals from numpy's global generator and keeps values from one episode to the
    next. Here an environment lives for one reset, and all that it draws comes from a generator of
    its own, through Meta-World's own ranges and rejections.
    """
    env = drawn_env(task, state_id)
    model, data = env.model, env.data
    physics = np.empty(mujoco.mj_stateSize(model, STATE_SPEC))
    mujoco.mj_getState(model, data, physics, STATE_SPEC)
    return InitialState(
        physics,
        model.body_pos.copy(),
        model.site_pos.copy(),
        np.array(env._target_pos, float),
        env._prev_obs[:NUM_SENSED].copy(),
    )


def drawn_env(task: str, state_id: int) -> Any:
    """Return a new environment of Meta-World after its reset to an initial state."""
    env = observing(_env_class(task)())
    env.np_random = np.random.default_rng([zlib.crc32(task.encode()), state_id])
    env.seeded_rand_vec, env._freeze_rand_vec = True, False
    env.reset()
    return env


def observing(env: Any) -> Any:
    """Let an environment of Meta-World show the goal, as its scripted policies need it."""
    env._set_task_called, env._partially_observable = True, False
    vars(env).pop("sawyer_observation_space", None)  # cached for the hidden goal
    return env


@lru_cache
def _env_class(task: str) -> Any:
    """Derive a class that copies a compiled model, draws once and brings the hand up once."""
    base = env_class(task)

    class Env(base):
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            model = copy.copy(simulated_model(task))
            return model, mujoco.MjData(model)

        def reset_model(self) -> Any:
            observation = super().reset_model()
            self._freeze_rand_vec = True  # `reset` calls it twice
            return observation

        def _reset_hand(self, steps: int = 50) -> None:
            # All that moves is reset between the two calls, so that only the second way counts.
            super()._reset_hand(steps=steps if self._freeze_rand_vec else 0)

    return Env
