"""One stored episode, and its steps as a suite has them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla_crl.datasets.config import Gripper, Seen, View
from vla_crl.errors import ConfigError, install_extra
from vla_crl.sim.libero.drawing import resized

INSTALL = install_extra("datasets")
_STEPS_OF_VIEW = {"upright": (1, 1), "raw": (-1, 1), "rotated": (1, -1)}
"""In which directions rows and columns run, beside what the camera sees."""
_BEYOND = 1e-6
"""How far an action may be beyond 1 by rounding."""


class Conventions(NamedTuple):
    """What the maker of a file meant; see `DatasetConfig`."""

    view: View
    gripper: Gripper
    seen: Seen


class StoredLabels(NamedTuple):
    """Where things are in T steps, or room for it; see `Demonstrations`.

    Attributes:
        named: [T, 2].
        object_uv: [T, C, O, 2].
        object_visible: [T, C, O].
    """

    named: np.ndarray
    object_uv: np.ndarray
    object_visible: np.ndarray


class StoredSteps(NamedTuple):
    """The T steps of an episode as they are stored.

    Attributes:
        state: [T, n].
        actions: [T, A].
        pictures: Of each camera the T pictures, [h, w, 3] uint8.
        labels: Where things are, if somebody knows.
    """

    state: np.ndarray
    actions: np.ndarray
    pictures: tuple[Iterable[np.ndarray], ...]
    labels: StoredLabels | None = None


class StepRows(NamedTuple):
    """Room for steps.

    Attributes:
        state: [S, n] float32.
        label: [S, A] float32.
        images: [S, C, pixels, pixels, 3] uint8.
        labels: Where things are.
    """

    state: np.ndarray
    label: np.ndarray
    images: np.ndarray
    labels: StoredLabels

    def select(self, rows: slice) -> "StepRows":
        """Return a view of some of them."""
        labels = StoredLabels(*(array[rows] for array in self.labels))
        return StepRows(self.state[rows], self.label[rows], self.images[rows], labels)


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """An episode in somebody's file.

    Attributes:
        where: File and place in it, for messages.
        task: How the file calls its task, or what the robot is told in it.
        num_stored: T.
        conventions: What its maker meant.
        read: Reads the steps.
        success: Whether it reached its goal; only such ones are published.
        things: Names of what it tells the places of.
    """

    where: str
    task: str
    num_stored: int
    conventions: Conventions
    read: Callable[[], StoredSteps]
    success: bool = True
    things: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """How many steps have both what was seen and the action that followed it."""
        return self.num_stored - (self.conventions.seen == "after")

    def fill(self, out: StepRows, *, is_turned: bool) -> None:
        """Read the steps into room for as many.

        Args:
            out: `num_steps` rows to be filled.
            is_turned: Whether policies see pictures of robosuite turned by 180 degrees.

        Raises:
            ConfigError: Something is not what a robot's demonstrations are.
        """
        stored, num = self.read(), self.num_steps
        self._require("states", stored.state, out.state.shape[1])
        self._require("actions", stored.actions, out.label.shape[1])
        actions = self._clean(np.array(stored.actions, np.float64))
        out.state[:] = stored.state[:num]
        out.label[:] = actions[self.num_stored - num :]
        for array, known in zip(out.labels, stored.labels or (), strict=False):
            array[:] = known[:num]
        rows, columns = _STEPS_OF_VIEW[self.conventions.view]
        columns *= -1 if is_turned else 1
        pixels = out.images.shape[2]
        for camera, pictures in enumerate(stored.pictures):
            for row, picture in zip(range(num), pictures, strict=False):
                self._require_picture(picture, pixels)
                turned = picture[None, None, ::rows, ::columns]
                out.images[row, camera] = resized(turned, pixels)[0, 0]

    def _require(self, name: str, values: np.ndarray, width: int) -> None:
        if values.shape != (self.num_stored, width):
            raise ConfigError(
                f"{self.where}: {name} of shape {values.shape}, expected "
                f"({self.num_stored}, {width})"
            )
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(values.astype(np.float32))
        for step, number in np.argwhere(~is_finite):
            raise ConfigError(
                f"{self.where}: {name}[{step}, {number}] is {values[step, number]}, expected a "
                "finite number that float32 has"
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
                "-1 to 1: the suite's own commands, neither normalised nor absolute poses"
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
