"""One stored episode, and its steps as a suite of LIBERO has them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla_crl.contracts import ARM
from vla_crl.datasets.config import Gripper, Seen, View
from vla_crl.errors import ConfigError, install_extra
from vla_crl.sim.libero.drawing import resized

INSTALL = install_extra("datasets")
CAMERAS = len(ARM.cameras)
_STEPS_OF_VIEW = {"upright": (1, 1), "raw": (-1, 1), "rotated": (1, -1)}
"""In which directions rows and columns run, beside what the camera sees."""
_BEYOND = 1e-6
"""How far an action may be beyond 1 by rounding."""


class Conventions(NamedTuple):
    """What the maker of a file meant; see `DatasetConfig`."""

    view: View
    gripper: Gripper
    seen: Seen


class StoredSteps(NamedTuple):
    """The T steps of an episode as they are stored.

    Attributes:
        state: [T, 8].
        actions: [T, 7].
        pictures: Of each camera of the arm the T pictures, [h, w, 3] uint8.
    """

    state: np.ndarray
    actions: np.ndarray
    pictures: tuple[Iterable[np.ndarray], ...]


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """An episode in somebody's file.

    Attributes:
        where: File and place in it, for messages.
        task: How the file calls its task.
        num_stored: T.
        conventions: What its maker meant.
        read: Reads the steps.
    """

    where: str
    task: str
    num_stored: int
    conventions: Conventions
    read: Callable[[], StoredSteps]

    @property
    def num_steps(self) -> int:
        """How many steps have both what was seen and the action that followed it."""
        return self.num_stored - (self.conventions.seen == "after")

    def fill(
        self, state: np.ndarray, label: np.ndarray, images: np.ndarray, *, is_turned: bool
    ) -> None:
        """Read the steps into arrays of as many rows as there are steps.

        Args:
            state: [num_steps, 8] to be filled; see `POSE_STATE`.
            label: [num_steps, 7] to be filled; see `POSE_ACTION`.
            images: [num_steps, C, pixels, pixels, 3] to be filled.
            is_turned: Whether policies see pictures of robosuite turned by 180 degrees.

        Raises:
            ConfigError: Something is not what LIBERO's demonstrations are.
        """
        stored, num = self.read(), self.num_steps
        self._require("states", stored.state, len(ARM.state))
        self._require("actions", stored.actions, len(ARM.action))
        actions = self._clean(np.array(stored.actions, np.float64))
        state[:] = stored.state[:num]
        label[:] = actions[self.num_stored - num :]
        rows, columns = _STEPS_OF_VIEW[self.conventions.view]
        columns *= -1 if is_turned else 1
        for camera, pictures in enumerate(stored.pictures):
            for row, picture in zip(range(num), pictures, strict=False):
                self._require_picture(picture, images.shape[2])
                turned = picture[None, None, ::rows, ::columns]
                images[row, camera] = resized(turned, images.shape[2])[0, 0]

    def _require(self, name: str, values: np.ndarray, width: int) -> None:
        if values.shape != (self.num_stored, width):
            raise ConfigError(
                f"{self.where}: {name} of shape {values.shape}, expected "
                f"({self.num_stored}, {width})"
            )
        if not np.isfinite(values).all():
            step, number = np.argwhere(~np.isfinite(values))[0]
            raise ConfigError(
                f"{self.where}: {name}[{step}, {number}] is {values[step, number]}, expected a "
                "finite number"
            )

    def _clean(self, actions: np.ndarray) -> np.ndarray:
        """Return actions in [-1, 1] whose last number closes the gripper."""
        opens = self.conventions.gripper == "opens"
        if opens and (actions[:, -1].min() < -_BEYOND or actions[:, -1].max() > 1.0 + _BEYOND):
            raise ConfigError(
                f"{self.where}: gripper numbers from {actions[:, -1].min():g} to "
                f"{actions[:, -1].max():g}, expected 0 (closed) to 1 (open); if -1 opens and 1 "
                "closes, give gripper 'closes'"
            )
        if opens:
            actions[:, -1] = 1.0 - 2.0 * actions[:, -1]
        step, number = np.unravel_index(np.argmax(np.abs(actions)), actions.shape)
        if abs(actions[step, number]) > 1.0 + _BEYOND:
            raise ConfigError(
                f"{self.where}: actions[{step}, {number}] is {actions[step, number]:g}, expected "
                "-1 to 1: LIBERO's own commands, neither normalised nor absolute poses"
            )
        return np.clip(actions, -1.0, 1.0)

    def _require_picture(self, picture: np.ndarray, pixels: int) -> None:
        shape = picture.shape
        if picture.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1]:
            raise ConfigError(
                f"{self.where}: a picture of {picture.dtype} {shape}, expected uint8 and square, "
                "[pixels, pixels, 3]"
            )
        if shape[0] < pixels:
            raise ConfigError(
                f"{self.where}: pictures of {shape[0]} pixels, but the policy looks at {pixels}; "
                f"give it an image_size of at most {shape[0]}"
            )
