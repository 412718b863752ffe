"""The stages of a picture: the background, what lies before it, what is transparent.

The background is what never moves, as a camera that never moves sees it; it is drawn once and kept.
It is a picture of its own, over which what moves is laid, so whether it was kept or drawn anew
cannot be seen. Other cameras have none.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.appearance import LookArrays
from vla_crl.sim.renderer.compilation import inlined
from vla_crl.sim.renderer.frame import Frame
from vla_crl.sim.renderer.rasterizer import clear
from vla_crl.sim.renderer.scene_arrays import Scene
from vla_crl.sim.renderer.shading import blend

BACKGROUND, OPAQUE, TRANSPARENT = range(3)
"""Stages, in their order."""


class Backgrounds(NamedTuple):
    """What each of C cameras saw last, and from what K numbers it was drawn; at first NaN."""

    depth: NDArray[np.float32]  # [C, H, W]
    geom: NDArray[np.int32]  # [C, H, W]
    image: NDArray[np.uint8]  # [C, H, W, 3]
    source: NDArray[np.float64]  # [C, K]


def new_backgrounds(scene: Scene, looks: LookArrays) -> Backgrounds:
    """Allocate what `render` needs; nothing where a scene has no background."""
    num_cameras, width = scene.cameras.columns.shape
    height = scene.cameras.rows.shape[1]
    size = 12 * (scene.geoms.num_background + 1)
    size += sum(int(np.prod(field.shape[1:])) for field in looks)
    shape = (num_cameras, height, width) if scene.geoms.num_background else (0, 0, 0)
    return Backgrounds(
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros((*shape, 3), np.uint8),
        np.full((shape[0], size), np.nan),
    )


@inlined
def stage_of(
    scene: Scene, backgrounds: Backgrounds, stage: int, camera: int, pose: tuple, look: LookArrays
):
    """Return first and last + 1 of the geoms that a stage draws, and whether it is drawn at all."""
    geoms = scene.geoms
    if stage == TRANSPARENT:
        return geoms.num_opaque, geoms.model_id.size, geoms.num_opaque < geoms.model_id.size
    has_background = _has_background(scene, camera)
    if stage == OPAQUE:
        return geoms.num_background if has_background else 0, geoms.num_opaque, True
    is_drawn = has_background and _is_outdated(
        backgrounds.source[camera], scene, camera, pose, look
    )
    return 0, geoms.num_background, is_drawn


@inlined
def begin(
    scene: Scene,
    backgrounds: Backgrounds,
    stage: int,
    camera: int,
    frame: Frame,
    image: np.ndarray,
):
    """Put into the frame, and the image, what a stage is drawn upon."""
    if stage == TRANSPARENT:
        frame.geom[:] = scene.geoms.model_id.size
    elif stage == OPAQUE and _has_background(scene, camera):
        _copy(backgrounds.depth[camera], frame.depth)
        _copy(backgrounds.geom[camera], frame.geom)
        _copy(backgrounds.image[camera], image)
    else:
        clear(scene.cameras, camera, frame)


@inlined
def finish(
    scene: Scene, backgrounds: Backgrounds, stage: int, camera: int, frame: Frame, pictures: tuple
):
    """Keep a background, or lay a stage's picture, the first one, over the image, the second."""
    geoms = scene.geoms
    if stage == BACKGROUND:
        _copy(frame.depth, backgrounds.depth[camera])
        _copy(frame.geom, backgrounds.geom[camera])
    elif stage == TRANSPARENT:
        blend(geoms.opacity, pictures[0], frame, pictures[1])
    elif _has_background(scene, camera):
        _lay_over(geoms.num_background, geoms.model_id.size, frame.geom, pictures)


@inlined
def _copy(source, target):
    """Copy between contiguous arrays; an assignment of slices would make an array."""
    numbers, copies = source.reshape(-1), target.reshape(-1)
    for i in range(np.uint64(numbers.size)):
        copies[i] = numbers[i]


@inlined
def _has_background(scene, camera):
    return (scene.geoms.num_background > 0) & scene.cameras.is_fixed[camera]


@inlined
def _is_outdated(source, scene, camera, pose, look):
    """Return whether a background was drawn from other numbers; if so, write the new ones."""
    changed, k = False, 0
    for index in range(scene.geoms.num_background):
        geom = scene.geoms.model_id[index]
        k, changed = _take(source, k, pose[0][geom], changed)
        k, changed = _take(source, k, pose[1][geom], changed)
    k, changed = _take(source, k, pose[2][scene.cameras.model_id[camera]], changed)
    k, changed = _take(source, k, pose[3][scene.cameras.model_id[camera]], changed)
    k, changed = _take(source, k, look.colour.reshape(-1), changed)
    k, changed = _take(source, k, look.surface, changed)
    k, changed = _take(source, k, look.ambient, changed)
    k, changed = _take(source, k, look.position.reshape(-1), changed)
    k, changed = _take(source, k, look.direction.reshape(-1), changed)
    k, changed = _take(source, k, look.diffuse.reshape(-1), changed)
    k, changed = _take(source, k, look.spot_ambient.reshape(-1), changed)
    return changed


@inlined
def _take(source, start, numbers, changed):
    """Write some numbers; return where the next ones go, and whether any was another till now."""
    for i in range(numbers.size):
        number = np.float64(numbers[i])
        changed |= source[start + i] != number  # always, of what is not a number
        source[start + i] = number
    return start + numbers.size, changed


@inlined
def _lay_over(first, last, geom, pictures):
    """Copy the pixels that show a geom from `first` on; `last` stands for none."""
    picture, image = pictures
    for y in range(np.uint64(image.shape[0])):
        for x in range(np.uint64(image.shape[1])):
            if first <= geom[y, x] < last:
                image[y, x, 0] = picture[y, x, 0]
                image[y, x, 1] = picture[y, x, 1]
                image[y, x, 2] = picture[y, x, 2]
