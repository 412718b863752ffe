"""Pictures of slots by the project's renderer."""

import numpy as np

from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.kernel.slots import SlotPoses
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.threads import made_once
from vla_crl.sim.workers import Workers


class Drawing:
    """Draws slots from cameras of their scenes."""

    def __init__(
        self, suite: Suite, poses: SlotPoses, episodes: Episodes, workers: Workers
    ) -> None:
        """Remember what is drawn.

        Args:
            suite: Its scenes.
            poses: Where things are, of all slots.
            episodes: What they look like.
            workers: Who draws.
        """
        self._suite, self._poses, self._episodes = suite, poses, episodes
        self._workers = workers

    def draw(
        self, cameras: tuple[str, ...], slots: np.ndarray, scenes: np.ndarray, images: np.ndarray
    ) -> None:
        """Draw `slots` [B] from cameras of their `scenes` [B] into images [B, C, H, W, 3]."""
        poses = self._poses

        def draw(index: int, pictures: np.ndarray) -> None:
            scene, seen, look = self._suite.scenes[index], slots[pictures], None
            renderer = renderer_of(scene, cameras, images.shape[2])
            if self._episodes.has_own_look[seen].any():
                look = self._episodes.dress(renderer.appearance(len(seen)), index, seen)
            images[pictures] = renderer.render(
                poses.geom_pos[seen, : scene.model.ngeom],
                poses.geom_mat[seen, : scene.model.ngeom],
                poses.camera_pos[seen, : scene.model.ncam],
                poses.camera_mat[seen, : scene.model.ncam],
                appearance=look,
            )

        for index in np.unique(scenes).tolist():
            renderer_of(self._suite.scenes[index], cameras, images.shape[2])
        self._workers.draw(draw, np.arange(len(slots)), scenes)


@made_once
def renderer_of(scene: Scene, cameras: tuple[str, ...], pixels: int) -> BatchRenderer:
    """Return what draws a scene from some of its cameras, shared by all simulations."""
    return BatchRenderer(scene.model, cameras, pixels, pixels)
