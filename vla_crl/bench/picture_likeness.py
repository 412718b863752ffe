"""How alike the pictures of the two renderers are, and how fast each draws them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.bench.similarity import structural_similarity
from vla_crl.hardware import num_cores
from vla_crl.sim.renderer import BatchRenderer, GLRenderer, LookName, Poses
from vla_crl.sim.renderer.looks import DEFAULT_LOOK

NUM_TURNS = 5


@dataclass(frozen=True, kw_only=True)
class LikenessRow:
    """One scene, camera and size: the CPU renderer beside MuJoCo's own."""

    scene: str
    camera: str
    pixels: int
    """Height and width."""
    ssim: float
    """Mean over the states, see `structural_similarity`."""
    mean_absolute_difference: float
    """Of 255, mean over states, pixels and colours."""
    observations_per_s: float
    """Of the CPU renderer on all cores; an observation is a picture from every camera."""
    gl_observations_per_s: float
    gl_version: str


def compare_pictures(
    scene: str,
    model: mujoco.MjModel,
    poses: Poses,
    cameras: Sequence[str],
    *,
    sizes: Sequence[int] = (64, 128, 224),
    geom_groups: Sequence[int] = (0, 1, 2),
    look: LookName = DEFAULT_LOOK,
    batch: int = 32,
) -> list[LikenessRow]:
    """Draw the same states with both renderers.

    Args:
        scene: What the rows are called.
        model: What is drawn.
        poses: Of some states; both renderers draw each.
        cameras: Names.
        sizes: Heights, equal to the widths, in pixels.
        geom_groups: mjModel geom groups that are drawn.
        look: Of both renderers.
        batch: Worlds in one timed call of the CPU renderer, the states in turn; of NUM_TURNS the
            median counts. OpenGL draws each state once.

    Returns:
        One row per size and camera.

    Raises:
        ConfigError: There is no OpenGL; says what to install.
    """
    rows: list[LikenessRow] = []
    num_states = len(poses.geom_xpos)
    many = Poses._make(array[np.arange(batch) % num_states] for array in poses)
    for size in sizes:
        arguments = (model, cameras, size, size)
        renderer = BatchRenderer(
            *arguments, geom_groups=geom_groups, look=look, num_threads=num_cores()
        )
        images = renderer.render(*poses)
        renderer.render(*many)
        own_s = median(_seconds(renderer, many) for _ in range(NUM_TURNS))
        with GLRenderer(*arguments, geom_groups=geom_groups, look=look) as gl_renderer:
            expected = gl_renderer.render(*poses)
            gl_s = _seconds(gl_renderer, poses)
            version = gl_renderer.version
        for index, camera in enumerate(cameras):
            ssim, difference = _likeness(images[:, index], expected[:, index])
            rows.append(
                LikenessRow(
                    scene=scene,
                    camera=camera,
                    pixels=size,
                    ssim=ssim,
                    mean_absolute_difference=difference,
                    observations_per_s=batch / own_s,
                    gl_observations_per_s=num_states / gl_s,
                    gl_version=version,
                )
            )
    return rows


def _likeness(images: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[float, float]:
    pairs = list(zip(images, expected, strict=True))
    ssim = np.mean([structural_similarity(*pair) for pair in pairs])
    difference = np.abs(images.astype(np.int16) - expected).mean()
    return float(ssim), float(difference)


def _seconds(renderer: BatchRenderer | GLRenderer, poses: Poses) -> float:
    start = time.perf_counter()
    renderer.render(*poses)
    return time.perf_counter() - start
