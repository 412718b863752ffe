"""Original LIBERO as episodes: its environments, its initial states, its observations."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
from annotated_types import Interval, Len

from vla_crl.config import Seed, Settings, from_mapping
from vla_crl.errors import ConfigError
from vla_crl.sim.foreign.foreign_episode import ForeignTask
from vla_crl.sim.foreign.robosuite_episode import Feeling, RobosuiteEpisode
from vla_crl.sim.libero.package import import_libero, make_benchmark

WAIT_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""What published evaluations do while things settle: no motion, gripper open."""


@dataclass(frozen=True, kw_only=True)
class OriginalConfig(Settings):
    """How an episode of original LIBERO begins and is looked at; the keywords of its class."""

    benchmark: str
    """Such as "libero_spatial"."""
    num_train_states: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Initial states below this number are LIBERO's own random ones, drawn with a seed made of the
    number; official state i has the number i more than this."""
    env_seed: Seed = 0
    """What `env.seed` gets before official states."""
    reseeds: bool = False
    """Whether before every reset, with the number of the official state added. If not, official
    state i is begun by reset i after seeding once, as in programs that go through the states in
    order; resets that were not done yet are done."""
    num_wait_steps: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Steps after the reset that are no part of the episode."""
    wait_action: Annotated[tuple[float, ...], Len(7, 7)] = WAIT_ACTION
    """[7] in these steps."""
    view: Literal["upright", "raw", "rotated"] = "upright"
    """What policies see. "raw": LIBERO's observations, bottom row first; "rotated": those turned by
    180 degrees, as published policies see them, upright and mirrored."""
    feeling: Feeling = "pose"
    """What the robot feels, see `RobosuiteEpisode`."""


_BEFORE_RESET: dict[object, list[tuple[Any, int]]] = {}
"""By benchmark, task and seed, what numpy's generator was like before reset 0, 1, ... after it was
seeded, and how long LIBERO's list of samplers was; all slots of a process learn it together."""


class OriginalLiberoEpisode(RobosuiteEpisode):
    """An episode of a task of one of LIBERO's benchmarks; `arguments.index` of a task numbers it.

    What `OffScreenRenderEnv` does, bit for bit, pictures included; but a picture is drawn only when
    asked for, and so is OpenGL. Of an episode the official initial state fixes all but the pose of
    fixtures, which LIBERO draws in every reset from numpy's global generator.
    """

    def __init__(self, cameras: tuple[str, ...], image_size: int, **config: Any) -> None:
        """Import the package.

        Args:
            cameras: "agentview", "eye_in_hand", or names of LIBERO.
            image_size: Height and width of what policies see, pixels.
            config: Fields of `OriginalConfig`.

        Raises:
            ConfigError: A field is not as it should be, a package is missing or unfit, or there is
                no such benchmark.
        """
        self._config = from_mapping(OriginalConfig, config, type(self).__name__)
        self._libero = import_libero()
        super().__init__(cameras, image_size, feeling=self._config.feeling)
        self._benchmark = make_benchmark(self._config.benchmark)
        self._samplers: list[Any] = []

    def begin(self, task: ForeignTask, state_id: int, seed: int) -> None:
        """Begin an episode; see `ForeignEpisode`."""
        index = int(task.arguments["index"])
        if not 0 <= index < self._benchmark.n_tasks:
            raise ConfigError(
                f"task '{task.name}': index is {index}, but '{self._benchmark.name}' has "
                f"{self._benchmark.n_tasks} tasks"
            )
        self.hold(index, self._make)
        official = state_id - self._config.num_train_states
        if official < 0:
            self._env.seed(seed)
            observation = self._reset(len(self._samplers))
        else:
            states = self._benchmark.get_task_init_states(index)
            if official >= len(states):
                raise ConfigError(
                    f"task '{task.name}': official initial state {official} of {len(states)}"
                )
            self._reset_number(index, official)
            observation = self._env.set_init_state(states[official])
        self.felt(observation)
        for _ in range(self._config.num_wait_steps):
            self.step(np.array(self._config.wait_action))
            self.goes_on()

    def step(self, action: np.ndarray) -> bool:
        """Execute one action; success is LIBERO's `done`."""
        observation, _, done, _ = self._env.step(action)
        self.felt(observation)
        return bool(done)

    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw what policies see as they see it, and for people upright."""
        raw = self.raw_images(cameras, pixels)
        is_for_policies = (cameras, pixels) == (self.cameras, self.image_size)
        view = self._config.view if is_for_policies else "upright"
        if view == "raw":
            return raw
        return raw[:, ::-1, ::-1] if view == "rotated" else raw[:, ::-1]

    def _reset_number(self, index: int, number: int) -> None:
        """Do the reset that begins an official state."""
        env_seed = self._config.env_seed
        if self._config.reseeds:
            self._env.seed(env_seed + number)
            self._reset(len(self._samplers) * (1 + number))
            return
        key = (self._config.benchmark.lower(), index, env_seed)
        known = _BEFORE_RESET.setdefault(key, [])
        if not known:
            self._env.seed(env_seed)
            known.append((np.random.get_state(), len(self._samplers)))
        first = min(number, len(known) - 1)
        drawn, num_samplers = known[first]
        np.random.set_state(drawn)
        for reset in range(first, number + 1):
            self._reset(num_samplers)
            self.goes_on()
            num_samplers = len(self._env.env.object_property_initializers)
            if len(known) == reset + 1:
                known.append((np.random.get_state(), num_samplers))

    def _reset(self, num_samplers: int) -> Any:
        """Reset as an environment with that many samplers does.

        Every reset of LIBERO's adds the samplers to its list once more, and each of them draws a
        number: without this an episode would depend on those before it.
        """
        repeated = num_samplers // max(1, len(self._samplers))
        self._env.env.object_property_initializers = self._samplers * repeated
        return self._env.reset()

    def _make(self, name: object) -> Any:
        env = self._libero.envs.env_wrapper.ControlEnv(
            bddl_file_name=self._benchmark.get_task_bddl_file_path(cast(int, name)),
            has_renderer=False,
            has_offscreen_renderer=False,  # `OffScreenRenderEnv` but for when it draws
            use_camera_obs=False,
            ignore_done=True,
        )
        self._samplers = list(env.env.object_property_initializers)
        return env
