"""Any registered Gymnasium environment as an episode; a suite of it needs no Python."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from vla_crl.config import Settings, from_mapping
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.foreign.foreign_episode import ForeignEpisode, ForeignTask


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig(Settings):
    """Keywords of `GymnasiumEpisode`."""

    id: str
    """What `gymnasium.make` gets; "module:ID" imports what registers it."""
    make: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further keywords of `gymnasium.make`; those in `arguments` of a task come on top."""
    success: str = "success"
    """Key of `info` that is true when the task is done."""
    observation: tuple[str, ...] = ()
    """Of a dictionary of observations those that the robot feels, in this order."""
    remakes: bool = False
    """Whether every episode makes its environment anew, with a keyword `seed`: for environments of
    which `reset(seed=...)` does not determine all."""


class GymnasiumEpisode(ForeignEpisode):
    """A Gymnasium environment with a box of actions and one view.

    Actions in [-1, 1] are stretched over the box. The environment must go on as long as the suite's
    horizon; where it ends before, without success, nothing moves any more.
    """

    def __init__(self, cameras: tuple[str, ...], image_size: int, **config: Any) -> None:
        """Read the keywords.

        Args:
            cameras: One name, for what `render` returns.
            image_size: Height and width of what policies see, pixels.
            config: Fields of `GymnasiumConfig`.

        Raises:
            ConfigError: A field is not as it should be, or there are several cameras.
        """
        super().__init__(cameras, image_size)
        self._config = from_mapping(GymnasiumConfig, config, type(self).__name__)
        if len(cameras) != 1:
            raise ConfigError(
                f"{type(self).__name__}: cameras are {list(cameras)}, but Gymnasium environments "
                "render one view; name one, or derive a class from ForeignEpisode"
            )
        self._env: Any = None
        self._made: dict[str, Any] = {}

    def begin(self, task: ForeignTask, state_id: int, seed: int) -> None:
        """Begin an episode; see `ForeignEpisode`."""
        import gymnasium

        wanted = {**self._config.make, **task.arguments}
        if self._config.remakes:
            wanted["seed"] = seed
        if self._env is None or self._made != wanted or self._config.remakes:
            self.close()
            self._env = gymnasium.make(
                self._config.id, render_mode="rgb_array", disable_env_checker=True, **wanted
            )
            self._made, box = wanted, self._env.action_space
            if (
                not isinstance(box, gymnasium.spaces.Box)
                or not np.isfinite([box.low, box.high]).all()
            ):
                raise ConfigError(f"{self._config.id}: actions are {box}, expected a bounded box")
        observation, _ = self._env.reset(seed=seed)
        self._state, self._is_over = self._felt(observation), False

    def step(self, action: np.ndarray) -> bool:
        """Execute one action."""
        if self._is_over:
            return False
        box = self._env.action_space
        stretched = box.low + (action.reshape(box.shape) + 1.0) / 2.0 * (box.high - box.low)
        observation, _, terminated, truncated, info = self._env.step(stretched.astype(box.dtype))
        self._state, self._is_over = self._felt(observation), terminated or truncated
        if self._config.success not in info:
            raise unknown_name(self._config.id, "key of info", self._config.success, info)
        return bool(info[self._config.success])

    def state(self) -> np.ndarray:
        """Return the environment's observation, or the parts of it that are named."""
        return self._state

    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw what `render` returns, its middle square in the size wanted."""
        from PIL import Image

        frame = np.asarray(self._env.render())
        side = min(frame.shape[:2])
        top, left = ((length - side) // 2 for length in frame.shape[:2])
        square = Image.fromarray(frame[top : top + side, left : left + side])
        resized = square.resize((pixels, pixels), Image.Resampling.BOX)
        return np.stack([np.asarray(resized)] * len(cameras))

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _felt(self, observation: Any) -> np.ndarray:
        if not isinstance(observation, dict):
            return np.ravel(observation)
        parts = cast(dict[str, Any], observation)
        if not self._config.observation:
            raise ConfigError(
                f"{self._config.id}: it observes several things; name what the robot feels in "
                f"observation = [...], of {', '.join(parts)}"
            )
        for name in self._config.observation:
            if name not in parts:
                raise unknown_name(self._config.id, "observation", name, parts)
        return np.concatenate([np.ravel(parts[name]) for name in self._config.observation])
