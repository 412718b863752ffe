"""Many of Meta-World's environments, with the contract of `VectorSim`."""

from collections.abc import Sequence
from threading import Lock

import mujoco
import numpy as np

from vla_crl.sim.calls import begun_slots, require_no_variation
from vla_crl.sim.episode_sim import EpisodeSim
from vla_crl.sim.metaworld.episode import MetaWorldEpisode
from vla_crl.sim.metaworld.models import drawn_model, require_metaworld
from vla_crl.sim.metaworld.poses import Drawing
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.variation import VariationConfig


class MetaWorldSim(EpisodeSim[MetaWorldSuite, MetaWorldEpisode]):
    """N slots of a suite of Meta-World on the CPU; see `VectorSim` for the calls.

    A slot holds a fresh environment in every episode, with a model and data of its own, so an
    episode depends only on (task, initial state id, actions). Physics runs in threads; the rewards
    that Meta-World computes in every step in Python do not run beside each other. Rewards are those
    of the project: 1 for success.
    """

    def __init__(
        self, suite: MetaWorldSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics, and as many for drawing.
            image_size: Height and width of each camera image, pixels.
            tasks: Which will be asked for; all is prepared when it is, so it does not matter.
            variation: None, or one that varies nothing.

        Raises:
            ConfigError: A count is no whole number from 1 on, the package is missing, or something
                is to vary.
        """
        require_no_variation(suite, variation)
        super().__init__(suite, num_slots, num_threads=num_threads, image_size=image_size)
        require_metaworld()
        self._renderers: dict[tuple[int, tuple[str, ...], int], BatchRenderer] = {}
        self._drawings: dict[int, Drawing] = {}
        self._lock = Lock()  # two threads that want one renderer make it once

    def begin(self, slot: int, task: int, state_id: int) -> MetaWorldEpisode:
        """Begin an episode in an environment of its own."""
        return MetaWorldEpisode(self.suite.tasks[task].name, state_id, self.suite.own_numbers)

    def draw(
        self, task: int, episodes: Sequence[MetaWorldEpisode], cameras: tuple[str, ...], pixels: int
    ) -> np.ndarray:
        """Draw B episodes of one task: [B, cameras, pixels, pixels, 3]."""
        key = (task, cameras, pixels)
        with self._lock:
            if key not in self._renderers:
                self._renderers[key] = BatchRenderer(self._model(task), cameras, pixels, pixels)
        poses = self._drawing_of(task).poses([episode.look for episode in episodes])
        return self._renderers[key].render(*poses)

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 2, 3] positions (m, world) of the object and of the goal."""
        looks = [self.episode(row).look for row in begun_slots(self, slots).tolist()]
        return np.array([[look.object_pos, look.goal_pos] for look in looks]).reshape(-1, 2, 3)

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        rows = begun_slots(self, slots)
        views = [
            self._drawing_of(task).cameras(self.episode(row).look)
            for row, task in zip(rows.tolist(), self._task[rows].tolist(), strict=True)
        ]
        return CameraPoses(*(np.stack(part) for part in zip(*views, strict=True)))

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is drawn of a slot's task."""
        return self._model(int(self._task[slot]))

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put the poses of a slot into an MjData of its `scene_model`."""
        task, names = int(self._task[slot]), ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
        mujoco.mj_forward(model, data)  # lights
        poses = self._drawing_of(task).poses([self.episode(slot).look])
        for name, pose in zip(names, poses, strict=True):
            getattr(data, name)[:] = pose[0]

    def _model(self, task: int) -> mujoco.MjModel:
        return drawn_model(self.suite.tasks[task].name, self.suite.config)

    def _drawing_of(self, task: int) -> Drawing:
        with self._lock:
            if task not in self._drawings:
                self._drawings[task] = Drawing(self._model(task))
            return self._drawings[task]
