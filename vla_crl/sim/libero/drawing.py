"""Pictures of LIBERO's tasks by the project's renderer."""

from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from vla_crl.sim.libero.baked import BakedTask
from vla_crl.sim.libero.kernel.slots import Slots
from vla_crl.sim.libero.mjcf import BURNER
from vla_crl.sim.renderer import BatchRenderer, GLRenderer, LookName, Placement, Poses
from vla_crl.sim.simulation import CameraPoses
from vla_crl.sim.threads import made_once

GEOM_GROUPS = (1, 2)
"""What LIBERO draws: not what only touches."""


class Drawn(NamedTuple):
    """How pictures are made: by MuJoCo's renderer or ours, and whose look they have."""

    is_gl: bool
    look: LookName


class Drawing:
    """Draws slots of one task."""

    def __init__(self, task: BakedTask) -> None:
        """Read from the drawn model what is where on its bodies."""
        model = task.drawn()
        cameras = [model.camera(i).name for i in range(model.ncam)]
        self._task = task
        self._cameras = {name: place for place, name in enumerate(cameras)}
        self._fovy_rad = np.deg2rad(model.cam_fovy)
        self._num_bodies = model.nbody
        self._placement = Placement(model, cameras)
        names = [model.geom(i).name for i in range(model.ngeom)]
        self._burner = names.index(BURNER) if BURNER in names else None
        self._renderer_of = made_once(partial(_renderer, task))

    def poses(self, slots: Slots, rows: np.ndarray) -> Poses:
        """Return where the geoms and cameras of slots are."""
        size = self._num_bodies
        poses = self._placement.poses(slots.body_pos[rows, :size], slots.body_mat[rows, :size])
        if self._burner is not None:
            poses.geom_xpos[~slots.is_lit[rows, 0], self._burner] = np.nan  # is not drawn
        return poses

    def views(self, slots: Slots, rows: np.ndarray, cameras: tuple[str, ...]) -> CameraPoses:
        """Return where cameras are in slots."""
        poses, chosen = self.poses(slots, rows), [self._cameras[name] for name in cameras]
        return CameraPoses(
            position=poses.cam_xpos[:, chosen],
            rotation=poses.cam_xmat[:, chosen].reshape(len(rows), -1, 3, 3),
            fovy_rad=np.tile(self._fovy_rad[chosen], (len(rows), 1)),
        )

    def draw(
        self, slots: Slots, rows: np.ndarray, cameras: tuple[str, ...], pixels: int, how: Drawn
    ) -> np.ndarray:
        """Draw slots: [B, C, pixels, pixels, 3]."""
        return self._renderer_of(cameras, pixels, how).render(*self.poses(slots, rows))


@made_once
def drawing_of(task: BakedTask) -> Drawing:
    """Return what draws a task, shared by all simulations."""
    return Drawing(task)


def _renderer(
    task: BakedTask, cameras: tuple[str, ...], pixels: int, how: Drawn
) -> BatchRenderer | GLRenderer:
    kind = GLRenderer if how.is_gl else BatchRenderer
    size = (pixels, pixels)
    return kind(task.drawn(), cameras, *size, geom_groups=GEOM_GROUPS, look=how.look)


def resized(images: np.ndarray, pixels: int) -> np.ndarray:
    """Bring images [B, C, H, W, 3] to another size, as PIL does bilinearly: smoothed if smaller."""
    if images.shape[2] == pixels:
        return images
    out = np.empty((*images.shape[:2], pixels, pixels, 3), np.uint8)
    for index in np.ndindex(*images.shape[:2]):
        picture = Image.fromarray(np.ascontiguousarray(images[index]))
        out[index] = np.asarray(picture.resize((pixels, pixels), Image.Resampling.BILINEAR))
    return out
