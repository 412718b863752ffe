"""Grounding labels that a simulator has for free: where each thing is in each picture."""

from dataclasses import dataclass

import numpy as np

from vla_crl.sim.simulation import Grounded

NEAR_M = 0.01
"""Least depth of what counts as visible."""


@dataclass(frozen=True)
class Grounding:
    """Image positions of all things of a suite; labels only, never part of an observation.

    Attributes:
        uv: [B, cameras, things, 2] float32, right and down in image widths; in [0, 1) if visible,
            else 0.
        visible: [B, cameras, things] bool, in front of the camera and inside the picture
            (whatever may hide it there).
    """

    uv: np.ndarray
    visible: np.ndarray


def ground(sim: Grounded, slots: np.ndarray) -> Grounding:
    """Project the things of `slots` into the suite's cameras.

    A pinhole camera looks along -z with x right and y up; with focal length f in image heights,
    u = 1/2 + f x / -z, v = 1/2 - f y / -z and f = 1 / (2 tan(fovy / 2)).
    """
    position, rotation, fovy = sim.camera_poses(slots)
    offset = sim.thing_positions(slots)[:, None] - position[:, :, None]
    local = np.einsum("bcij,bcti->bctj", rotation, offset)
    depth = -local[..., 2]
    focal = 0.5 / np.tan(fovy / 2)  # [B, C]
    in_front = depth > NEAR_M  # not so where a scene lacks the thing: NaN
    scale = focal[..., None] / np.where(in_front, depth, 1.0)
    uv = np.stack([0.5 + scale * local[..., 0], 0.5 - scale * local[..., 1]], axis=-1)
    visible = in_front & np.all((uv >= 0.0) & (uv < 1.0), axis=-1)
    return Grounding(np.where(visible[..., None], uv, 0.0).astype(np.float32), visible)
