"""A baseline that others wrote: PPO of stable-baselines3 learns one task, measured as ours are."""

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, cast

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from vla_crl.config import save_json, to_mapping
from vla_crl.files.writing import replacing, write_atomically
from vla_crl.progress import console
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.runs.directory import describe_run
from vla_crl.sb3.agent import SB3Agent
from vla_crl.sb3.recipe import BaselineConfig
from vla_crl.sb3.vec_env import SuiteVecEnv
from vla_crl.sim.backends import find_suite
from vla_crl.sim.simulation import Simulation

NORMALIZED = ("state", "privileged")
"""Observations that are normalised by their running mean and variance."""


class Point(NamedTuple):
    """One point of a learning curve: a line of `curve.csv`.

    Attributes:
        num_steps: Control steps of training until then.
        seconds: Of training until then, without evaluations.
        successes: Test states that succeeded.
        episodes: Test states.
        training_success: Part of the latest 100 training episodes; NaN where none has ended.
        training_reward: Mean sum of their rewards.
    """

    num_steps: int
    seconds: float
    successes: int
    episodes: int
    training_success: float
    training_reward: float


def train_baseline(
    config: BaselineConfig, output: Path, command: Sequence[str] = ()
) -> list[Point]:
    """Train, and keep `model.zip`, `normalization.pkl` and `curve.csv` in a folder.

    They are written at every point of the curve, so that a run that is stopped leaves the last one.
    `settings.json` tells from the beginning with what settings and versions, and where.

    Args:
        config: What.
        output: A new folder.
        command: The command line that asks for it.

    Returns:
        The learning curve; its last point is of the model that is kept.

    Raises:
        ConfigError: A device is missing, or suite or task do not fit.
    """
    config.compute.prepare()
    suite = find_suite(config.suite)
    suite.require_states(num_eval_episodes=config.num_eval_episodes)
    inner = SuiteVecEnv(
        config.suite, config.num_envs, tasks=[config.task], image_size=config.image_size,
        num_threads=config.compute.num_sim_threads, reward=config.reward,
        privileged=config.privileged,
    )  # fmt: skip
    normalized = [name for name in NORMALIZED if name in inner.senses.space.spaces]
    env = VecNormalize(VecMonitor(inner), norm_obs_keys=normalized, norm_reward=False, clip_obs=5.0)
    ppo = config.ppo
    with closing(env):
        model = PPO(
            "MultiInputPolicy", env, n_steps=ppo.n_steps, batch_size=ppo.batch_size,
            n_epochs=ppo.n_epochs, learning_rate=ppo.learning_rate, gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda, ent_coef=ppo.ent_coef, seed=config.seed,
            policy_kwargs={"net_arch": list(ppo.net_arch), "log_std_init": ppo.log_std_init},
            device=config.compute.device,
        )  # fmt: skip
        model.set_logger(Logger(folder=None, output_formats=[]))  # its own leaves folders in /tmp
        agent = SB3Agent(model, env)
        sims = simulate_lanes(
            suite, config.num_eval_episodes, image_size=agent.image_size, compute=config.compute,
            tasks=[suite.task_index(config.task)],
        )  # fmt: skip
        try:
            output.mkdir(parents=True)
            made = {"settings": to_mapping(config), **describe_run(config.seed, command)}
            save_json(made, output / "settings.json")
            curve = _Curve(config, agent, sims, output)
            model.learn(config.num_steps, callback=curve)
            curve.measure()
        finally:
            close_lanes(sims)
    return curve.points


class _Curve(BaseCallback):
    """Measures the model on test states between updates."""

    def __init__(
        self, config: BaselineConfig, agent: SB3Agent, sims: Sequence[Simulation], output: Path
    ) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._config, self._agent, self._sims, self._output = config, agent, sims, output
        self._begun, self._paused_s = perf_counter(), 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= len(self.points) * self._config.evaluate_every:
            self.measure()

    def measure(self) -> None:
        """Add a point to the curve, and keep the model."""
        begun, config = perf_counter(), self._config
        (result,) = evaluate(
            self._agent, self._sims, [config.task], num_episodes=config.num_eval_episodes
        )
        rewards = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        point = Point(
            self.num_timesteps,
            round(begun - self._begun - self._paused_s, 1),
            result.successes,
            result.episodes,
            round(float(np.mean(self.model.ep_success_buffer or [np.nan])), 3),
            round(float(np.mean(rewards or [np.nan])), 3),
        )
        self.points.append(point)
        self._paused_s += perf_counter() - begun
        with replacing(self._output / "model.zip") as file, file.open("wb") as stream:
            self.model.save(stream)
        with replacing(self._output / "normalization.pkl") as file:
            cast(VecNormalize, self.training_env).save(str(file))
        write_atomically(self._output / "curve.csv", _as_csv(self.points))
        console.print(
            f"{point.num_steps} steps, {point.seconds:.0f} s: {point.successes} of "
            f"{point.episodes} test states, reward {point.training_reward:.2f}"
        )


def _as_csv(points: Sequence[Point]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([Point._fields, *points])
    return text.getvalue()
