"""What the environments of Gymnasium and stable-baselines3 are made of: robots on their tasks."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_crl.contracts import ChunkResult
from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.calls import require_counts
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.rewards import Reward, check_reward, step_rewarded
from vla_crl.sim.senses import Instruction, Senses
from vla_crl.sim.simulation import Filmed, Privileged, Resumable, require
from vla_crl.sim.task_suite import SuiteTask
from vla_crl.sim.variation import VariationConfig

RENDER_PIXELS = 256
"""Height and width of a frame from `render`."""
RENDER_MODES = ["rgb_array"]
DRAWN_PIXELS = 64
"""Of images that nobody observes."""


class RobotSettings(NamedTuple):
    """How robots are built, so that they can be built again."""

    suite: str
    """Of the catalogue, also "suite@controller"."""
    num_robots: int
    tasks: Sequence[str] | None
    """Robot i has task i modulo their number; None: all of the suite."""
    image_size: int | None
    """Height and width of the observed images, pixels; None: nothing is drawn."""
    num_threads: int
    """For physics and rendering."""
    render_mode: str | None
    variation: VariationConfig | None
    """Of tasks that have none of their own."""
    reward: Reward
    privileged: bool
    """Whether observations tell where things are."""
    instruction: Instruction
    """How observations tell the task."""
    cameras_apart: bool = False
    """Whether every camera's image is an entry of its own in an observation."""


class TellsOfRobots:
    """What environments tell of the robots that they are made of."""

    _robots: "Robots"

    @property
    def divergences(self) -> list[Divergence]:
        """Every step under which physics blew up; whoever reads it may clear it."""
        return self._robots.divergences

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """What the numbers of the observation "privileged" are."""
        return self._robots.privileged_names


class Robots:
    """N robots, each on one task of a suite, and which initial states they begin from.

    They can be pickled and copied, in the middle of an episode too, and go on identically.

    Attributes:
        suite: What their tasks are of.
        sim: In which they are.
        senses: What they observe.
        divergences: Every step under which physics blew up; whoever reads it may clear it.
    """

    def __init__(self, settings: RobotSettings) -> None:
        """Build the simulation.

        Raises:
            ConfigError: A setting does not fit.
        """
        render_mode = settings.render_mode
        if render_mode not in (None, *RENDER_MODES):
            raise unknown_name("environment", "render_mode", str(render_mode), RENDER_MODES)
        require_counts("environment", num_envs=settings.num_robots)
        tasks = settings.tasks
        if tasks is not None and (isinstance(tasks, str) or not len(tasks)):
            raise ConfigError(f"tasks: got {tasks!r}, expected task names, or None for all")
        self._settings = settings
        self.suite = find_suite(settings.suite)
        names = tasks or tuple(task.name for task in self.suite.tasks)
        indices = [self.suite.task_index(name) for name in names]
        self._tasks = np.resize(np.array(indices, np.int64), settings.num_robots)
        self.sim = simulate(
            self.suite,
            settings.num_robots,
            num_threads=settings.num_threads,
            image_size=settings.image_size or DRAWN_PIXELS,
            tasks=np.unique(self._tasks).tolist(),
            variation=settings.variation,
        )
        if render_mode is not None:
            require(self.sim, Filmed, "rendered")
        check_reward(self.sim, settings.reward)
        self.senses = Senses(
            self.sim,
            list(dict.fromkeys(indices)),
            image_size=settings.image_size,
            privileged=settings.privileged,
            instruction=settings.instruction,
            cameras_apart=settings.cameras_apart,
        )
        self.divergences: list[Divergence] = []

    @property
    def metadata(self) -> dict[str, Any]:
        """What Gymnasium wants to know about rendering."""
        return {"render_modes": RENDER_MODES, "render_fps": round(self.suite.control_hz)}

    @property
    def tasks(self) -> list[SuiteTask]:
        """The N tasks."""
        return [self.suite.tasks[task] for task in self._tasks]

    @property
    def task_names(self) -> np.ndarray:
        """[N] names of the tasks."""
        return np.array([task.name for task in self.tasks], dtype=object)

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """What the numbers of the observation "privileged" are."""
        return require(self.sim, Privileged, "seen through").privileged_names

    def reset(
        self,
        robots: np.ndarray,
        generators: Sequence[np.random.Generator],
        options: dict[str, Any] | None,
    ) -> None:
        """Begin an episode of each of `robots` [B], in a training state that it draws.

        Args:
            robots: Which.
            generators: [B] to draw with.
            options: "state_id" names one state, or one for each, test states included.

        Raises:
            SpecError: An unknown option or state id.
        """
        unknown = set(options or {}) - {"state_id"}
        if unknown:
            raise SpecError(f"reset: unknown options {sorted(unknown)}, expected 'state_id'")
        drawn = np.array([rng.choice(self.suite.train_ids) for rng in generators], np.int64)
        ids = np.asarray((options or {}).get("state_id", drawn))
        if ids.shape not in {(), robots.shape} or not np.issubdtype(ids.dtype, np.integer):
            raise SpecError(
                f"reset: state_id is {ids.dtype} {ids.shape}, expected whole numbers () or "
                f"{robots.shape}"
            )
        ids = np.broadcast_to(ids, robots.shape)
        self.sim.reset(robots, tasks=self._tasks[robots], state_ids=ids)

    def step(self, actions: np.ndarray, robots: np.ndarray) -> ChunkResult:
        """Execute actions [B, K, A] of `robots` [B]; warn where physics blows up."""
        result = step_rewarded(self.sim, actions, robots, self._settings.reward)
        for divergence in self.sim.divergences:
            warnings.warn(str(divergence), stacklevel=3)
        self.divergences += self.sim.divergences
        self.sim.divergences.clear()
        return result

    def observe(self, robots: np.ndarray | None = None) -> dict[str, Any]:
        """Return what `robots` (all by default) observe, see `Senses`."""
        chosen = np.arange(self.sim.num_slots) if robots is None else robots
        return self.senses.read(self.sim, chosen)

    def frames(self) -> np.ndarray:
        """Return [N, 256, 256, 3] uint8, the first camera's view."""
        camera = self.suite.embodiment.cameras[0]
        return require(self.sim, Filmed, "rendered").frames(camera, RENDER_PIXELS)

    def close(self) -> None:
        """Stop the threads."""
        self.sim.close()

    def __getstate__(self) -> dict[str, Any]:
        states = require(self.sim, Resumable, "copied").get_states()
        return {
            "settings": self._settings, "states": states, "divergences": list(self.divergences)
        }  # fmt: skip

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(kept["settings"])
        require(self.sim, Resumable, "copied").set_states(kept["states"])
        self.divergences = kept["divergences"]
