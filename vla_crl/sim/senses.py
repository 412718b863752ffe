"""What a learner observes in an environment, as Gymnasium's spaces, and how it is read."""

import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import numpy as np
from gymnasium import spaces

from vla_crl.contracts import JOINT_ANGLE, POSE_STATE, Embodiment, check_fits
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.calls import require_counts
from vla_crl.sim.simulation import Privileged, Simulation, require
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH, TaskSuite

InstructionKind = Literal["text", "one_hot", "index"]
Instruction = InstructionKind | Callable[[str], np.ndarray]
"""How the task is told: in words, as its place among the environment's tasks, or by vectors [E] of
one's own, such as the embeddings of a language model."""

_BOUNDS: dict[str, float] = dict(
    zip(POSE_STATE, [2.0] * 3 + [2 * np.pi] * 3 + [1.0] * 2, strict=True)
)
"""Of numbers of the state (m, rad, m): beyond the arm's reach, a full turn and the fingers, each
with the greatest noise."""


def state_space(robot: Embodiment) -> spaces.Box:
    """Return the space of a robot's state; numbers that only its suite knows have no bound."""
    bound = np.array([_bound(name) for name in robot.state], np.float32)
    return spaces.Box(-bound, bound)


def _bound(name: str) -> float:
    return 2 * np.pi if name.startswith(JOINT_ANGLE) else _BOUNDS.get(name, np.inf)


def action_space(suite: TaskSuite) -> spaces.Box:
    """Return the space of one robot's action."""
    return spaces.Box(-1.0, 1.0, (len(suite.embodiment.action),))


class Senses:
    """Which senses there are, for robots on some tasks of a suite.

    An observation is a dictionary:

        images        [C, S, S, 3] uint8; or one [S, S, 3] for each camera, under its name
        state         [state] float32: what the robot feels
        privileged    [P] float32: where things are, where it is asked for
        instruction   a text, an index, or float32 numbers

    Attributes:
        space: Of one robot's observation.
    """

    def __init__(
        self, sim: Simulation, tasks: Sequence[int], *, image_size: int | None,
        privileged: bool = False, instruction: Instruction = "text", cameras_apart: bool = False,
    ) -> None:  # fmt: skip
        """Choose the senses.

        Args:
            sim: Of whose suite the robots are.
            tasks: Indices of the tasks that they have, in the order of the index.
            image_size: Height and width of images, pixels; None: nothing is drawn.
            privileged: Whether the observation tells where things are.
            instruction: How the task is told.
            cameras_apart: Whether every camera's image is an entry of its own.

        Raises:
            ConfigError: A setting is none of those, or the backend has no privileged state.
        """
        suite = sim.suite
        self.image_size, self.instruction = image_size, instruction
        self._privileged, self._cameras_apart = privileged, cameras_apart
        self._cameras, self._tasks = suite.embodiment.cameras, list(tasks)
        space: dict[str, spaces.Space[Any]] = {}
        if image_size is not None:
            require_counts("image_size", image_size=image_size)
            image = (image_size, image_size, 3)
            if cameras_apart:
                space |= {name: spaces.Box(0, 255, image, np.uint8) for name in self._cameras}
            else:
                space["images"] = spaces.Box(0, 255, (len(self._cameras), *image), np.uint8)
        space["state"] = state_space(suite.embodiment)
        names: tuple[str, ...] = ()
        if privileged:
            names = require(sim, Privileged, "seen through").privileged_names
            space["privileged"] = spaces.Box(-np.inf, np.inf, (len(names),))
        self._suite, self._privileged_names = suite, names
        self._embedded: Callable[[str], np.ndarray] | None = None
        if callable(instruction):
            self._embedded = lru_cache(None)(instruction)
        space["instruction"] = self._instruction_space(suite)
        self.space = spaces.Dict(space)

    def require_alike(self, sim: Simulation) -> None:
        """Check that an observation in a simulation means what it means in the suite of these.

        Raises:
            ConfigError: Another robot, other things, or tasks that are counted differently.
        """
        own, other = self._suite, sim.suite
        where = f"suite '{other.name}', observed as '{own.name}'"
        check_fits(own.embodiment, other.embodiment, where)
        if self._privileged and require(sim, Privileged, "seen through").privileged_names != (
            self._privileged_names
        ):
            raise ConfigError(f'{where}: "privileged" has other numbers there; leave it out')
        tasks, others = ([task.name for task in suite.tasks] for suite in (own, other))
        if self.instruction in ("index", "one_hot") and tasks != others:
            raise ConfigError(
                f"{where}: instruction is '{self.instruction}', which counts the tasks of "
                f"'{own.name}', and that one has others; tell tasks by a function from a sentence "
                "to a vector"
            )

    def read(self, sim: Simulation, slots: np.ndarray) -> dict[str, Any]:
        """Return what the robots in `slots` [B] observe; nothing overwrites it later.

        Raises:
            ConfigError: A task is not among those that are counted, or a vector of one's own for
                its instruction is not as that of the first.
        """
        seen = sim.observe(slots, images=self.image_size is not None)
        read: dict[str, Any] = {}
        if self.image_size is not None:
            if self._cameras_apart:
                read |= {name: seen.images[:, k] for k, name in enumerate(self._cameras)}
            else:
                read["images"] = seen.images
        read["state"] = seen.state
        if self._privileged:
            read["privileged"] = cast(Privileged, sim).privileged_state(slots)
        if self.instruction == "text":
            read["instruction"] = seen.instruction
        elif self._embedded:
            length = cast(spaces.Box, self.space["instruction"]).shape
            read["instruction"] = np.array([self._vector(s, length) for s in seen.instruction])
        else:
            self._require_known(sim.tasks[slots])
            index = np.array([self._tasks.index(task) for task in sim.tasks[slots]], np.int64)
            one_hot = np.eye(len(self._tasks), dtype=np.float32)
            read["instruction"] = index if self.instruction == "index" else one_hot[index]
        return read

    def _instruction_space(self, suite: TaskSuite) -> spaces.Space[Any]:
        if self._embedded:
            sentences = [suite.tasks[task].instruction for task in self._tasks]
            vectors = [self._vector(sentences[0], None)]
            vectors += [self._vector(sentence, vectors[0].shape) for sentence in sentences[1:]]
            return spaces.Box(-np.inf, np.inf, vectors[0].shape)
        match self.instruction:
            case "text":
                letters = string.ascii_letters + string.digits + string.punctuation + " "
                return spaces.Text(MAX_INSTRUCTION_LENGTH, charset=letters)
            case "index":
                return spaces.Discrete(len(self._tasks))
            case "one_hot":
                return spaces.Box(0.0, 1.0, (len(self._tasks),))
        known = get_args(InstructionKind)
        raise unknown_name(f"suite '{suite.name}'", "instruction", str(self.instruction), known)

    def _vector(self, sentence: str, shape: tuple[int, ...] | None) -> np.ndarray:
        """Return the checked vector of a sentence, of this shape unless it is the first."""
        vector = np.asarray(cast(Callable[[str], np.ndarray], self._embedded)(sentence))
        if vector.ndim != 1 or vector.dtype.kind not in "fiu":
            raise ConfigError(
                f"instruction: of {sentence!r} it makes {vector.dtype} of shape {vector.shape}, "
                "expected a vector of numbers"
            )
        if shape is not None and vector.shape != shape:
            raise ConfigError(
                f"instruction: of {sentence!r} it makes {len(vector)} numbers, expected {shape[0]} "
                "as of the first task's"
            )
        with np.errstate(over="ignore"):
            vector = vector.astype(np.float32)
        if not np.isfinite(vector).all():
            place = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise ConfigError(
                f"instruction: of {sentence!r} it makes {vector[place]} at [{place}], expected "
                "numbers that are finite in float32"
            )
        return vector

    def _require_known(self, tasks: np.ndarray) -> None:
        for task in tasks.tolist():
            if task not in self._tasks:
                names = [self._suite.tasks[known].name for known in self._tasks]
                raise ConfigError(
                    f"task '{self._suite.tasks[task].name}': instruction is "
                    f"'{self.instruction}' among {', '.join(names)}, which leaves it out; train on "
                    "it too, or tell tasks by a function from a sentence to a vector"
                )
