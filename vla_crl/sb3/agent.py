"""A policy of stable-baselines3 in our evaluations: the same test states, the same counts."""

import hashlib
from threading import Lock
from typing import Any, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from vla_crl.errors import SpecError
from vla_crl.rollout.agents import Act, SameInAllTasks
from vla_crl.sb3.vec_env import SuiteVecEnv
from vla_crl.sim.robots import DRAWN_PIXELS
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite


class SB3Agent(SameInAllTasks):
    """Lets a model of stable-baselines3 act, most probable action first, one step at a time.

    evaluate(SB3Agent(model, env), simulate_lanes(...), ["open_drawer"])
    """

    def __init__(self, model: BaseAlgorithm, env: VecEnv) -> None:
        """Prepare to act.

        Args:
            model: Trained in `env`.
            env: A `SuiteVecEnv`, perhaps wrapped: it says what is observed, and a `VecNormalize`
                around it how that is normalised.

        Raises:
            SpecError: It is the environment of something else, or a wrapper changes what is
                observed in a way that an evaluation does not.
        """
        inner = env.unwrapped
        if not isinstance(inner, SuiteVecEnv):
            raise SpecError(f"SB3Agent: got a {type(inner).__name__}, expected a SuiteVecEnv")
        _require_known_wrappers(env)
        self._model, self._senses = model, inner.senses
        self._normalize: VecNormalize | None = unwrap_vec_normalize(env)
        self._turn = Lock()  # a policy keeps the distribution that it acts from in itself

    @property
    def image_size(self) -> int:
        """What the environment draws."""
        return self._senses.image_size or DRAWN_PIXELS

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return its weights and how it acts."""
        digest = hashlib.sha256()
        for name, tensor in self._model.policy.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return {
            "weights": digest.hexdigest()[:16],
            "algorithm": type(self._model).__name__,
            "observed": ", ".join(self._senses.space.spaces),
            "actions": "deterministic",
            "executed_actions": 1,
        }

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`.

        Raises:
            ConfigError: What is observed there means something else than in training.
        """
        self._senses.require_alike(sim)

        def act(slots: np.ndarray) -> np.ndarray:
            seen = self._senses.read(sim, slots)
            if self._normalize is not None:
                seen = cast(dict[str, np.ndarray], self._normalize.normalize_obs(seen))
            with self._turn:
                actions, _ = self._model.predict(seen, deterministic=True)
            return actions[:, None]

        return act


def _require_known_wrappers(env: VecEnv | None) -> None:
    """Check that only normalisation and the order of an image's channels differ."""
    while isinstance(env, VecEnvWrapper):
        changes = env.observation_space != env.venv.observation_space
        if changes and not isinstance(env, VecNormalize | VecTransposeImage):
            raise SpecError(
                f"SB3Agent: {type(env).__name__} changes what is observed, which an evaluation "
                "does not; expected wrappers that leave it alone, or VecNormalize"
            )
        env = env.venv
