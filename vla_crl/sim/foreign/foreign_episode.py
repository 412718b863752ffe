"""What makes an environment of somebody else a suite: one class, of which every slot has one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

DEFAULT_TIMEOUT_S = 300.0


class ForeignTask(NamedTuple):
    """What an episode is told of its task.

    Attributes:
        name: Of the suite's file.
        instruction: What the policy is told.
        arguments: The table `arguments` of the task in the suite's file.
    """

    name: str
    instruction: str
    arguments: Mapping[str, Any]


class ForeignEpisode(ABC):
    """One slot's environment: begins one episode after the other, steps it, looks at it.

    It lives in a worker process. Standard input is empty there, and what is written to standard
    output and error is kept for error messages alone. Import the foreign package in `__init__`.

    An episode must depend on (task, state id, actions) alone, whatever the environment did before.
    Python's and numpy's global generators are seeded before `begin`, and kept apart for each slot.
    What any method raises ends the worker, and the episode is played again once, unless it is a
    `ConfigError` (told as it is) or a `PhysicsError` (physics blew up: the episode failed).

    Example:
        A suite.toml with `backend = "foreign"` and `episode = "my_package.reach:Reach"`, and

            class Reach(ForeignEpisode):
                def __init__(self, cameras, image_size, version):
                    super().__init__(cameras, image_size)
                    self._env = gymnasium.make(f"FetchReach-v{version}", render_mode="rgb_array")

                def begin(self, task, state_id, seed):
                    self._observation, _ = self._env.reset(seed=seed)

                def step(self, action):
                    self._observation, _, _, _, info = self._env.step(action)
                    return bool(info["is_success"])

                def state(self):
                    return self._observation["observation"]

                def images(self, cameras, pixels):
                    frame = cv2.resize(self._env.render(), (pixels, pixels))
                    return np.stack([frame] * len(cameras))
    """

    def __init__(self, cameras: tuple[str, ...], image_size: int) -> None:
        """Keep what policies see; a class with settings takes them as further keywords.

        Args:
            cameras: The C cameras that policies see.
            image_size: Height and width of what policies see, pixels.
        """
        self.cameras, self.image_size = cameras, image_size
        self.goes_on: Callable[[], None] = _nobody_waits
        """To be called in what may take longer than `timeout_s`: the time begins anew."""

    @abstractmethod
    def begin(self, task: ForeignTask, state_id: int, seed: int) -> None:
        """Begin an episode, from wherever the last one stopped.

        Args:
            task: What is to be done.
            state_id: Number of the initial state.
            seed: A number made of the task's name and of `state_id`, below 2^32.
        """

    @abstractmethod
    def step(self, action: np.ndarray) -> bool:
        """Execute one action [A], in [-1, 1], and tell whether the task is done now."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """Return [S] what the robot feels."""

    @abstractmethod
    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw what cameras see now: [C, pixels, pixels, 3] uint8, upright, RGB.

        Args:
            cameras: `self.cameras` for policies (`pixels` is `self.image_size`), the suite's
                `film_camera` for people.
            pixels: Height and width.
        """

    def close(self) -> None:  # noqa: B027 - not all have anything to let go of
        """Let go of what the environment holds."""


def _nobody_waits() -> None: ...


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """How workers make the episodes of a suite."""

    episode: str
    """ "package.module:Class" of a `ForeignEpisode`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the class besides `cameras` and `image_size`; what JSON can say."""
    task_arguments: tuple[Mapping[str, Any], ...]
    """`ForeignTask.arguments` of each task of the suite."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Longest time that one call may take: to make an environment and begin, to execute one action,
    to draw."""
