"""An environment of somebody else for tests: it chats, keeps state, hangs, raises and dies."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.foreign.foreign_episode import ForeignEpisode, ForeignTask


class WalkEnv:
    """A point walks a line, in wind that global generators draw; like old gym environments."""

    def reset(self) -> np.ndarray:
        sys.stdout.write("resetting\n")
        self.position = random.uniform(-0.5, 0.5)
        self.height = np.random.uniform(-0.5, 0.5)
        return self.observation()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, bool]]:
        self.position += 0.1 * action[0] + 1e-3 * np.random.normal()
        reached = self.position > 1.0
        return self.observation(), float(reached), reached, {"success": reached}

    def observation(self) -> np.ndarray:
        return np.array([self.position, self.height])

    def render(self, pixels: int) -> np.ndarray:
        levels = 127.0 * (1.0 + np.tanh([self.position, self.height, 0.0]))
        return np.broadcast_to(levels.astype(np.uint8), (pixels, pixels, 3))


class Walk(ForeignEpisode):
    """Walks; has a mishap of a kind, in its seventh step, once or whenever it comes there."""

    def __init__(
        self, cameras: tuple[str, ...], image_size: int, mishap: str = "none", marker: str = ""
    ) -> None:
        super().__init__(cameras, image_size)
        self._env, self._mishap, self._marker = WalkEnv(), mishap, marker
        self._count = 0
        if mishap == "at start":
            raise ValueError("no\nlicence")
        if sys.stdin.read():
            raise AssertionError("standard input is for the user")

    def begin(self, task: ForeignTask, state_id: int, seed: int) -> None:
        self._sign = task.arguments.get("sign", 1.0)
        self._steps, self._state_id = 0, state_id
        self._seen = self._env.reset()
        self._count += 1
        if self._mishap == "slow":
            for _ in range(6):
                time.sleep(0.3)
                self.goes_on()
        if self._mishap == "refused":
            raise ConfigError(f"there is no state {state_id}")
        if self._mishap == "broken":
            self._seen = np.full(2, np.nan)

    def step(self, action: np.ndarray) -> bool:
        self._steps += 1
        if self._steps == 7 and self._state_id % 2 == 0:
            self._have_mishap()
        self._seen, _, _, info = self._env.step(self._sign * action)
        return info["success"]

    def state(self) -> np.ndarray:
        return self._seen + (self._count if self._mishap == "forgetful" else 0.0)

    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        if self._mishap == "small":
            pixels //= 2
        return np.stack([self._env.render(pixels)] * len(cameras))

    def _have_mishap(self) -> None:
        if self._marker:
            if Path(self._marker).exists():
                return
            Path(self._marker).touch()
        if self._mishap == "hang":
            time.sleep(60.0)
        elif self._mishap == "raise":
            raise RuntimeError("the wind is\ntoo strong")
        elif self._mishap == "kill":
            sys.stdout.write("the last word\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self._mishap == "exit":
            os._exit(3)
        elif self._mishap == "refused in between":
            raise ConfigError("there is no seventh step")
        elif self._mishap == "blow up":
            raise PhysicsError("the line is gone", {})
        elif self._mishap == "infinite":
            self._env.position = np.inf


class NoEpisode:
    """Is derived from nothing."""
