"""What every renderer takes and gives: poses of B worlds, and their images."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_crl.errors import SpecError

Array = NDArray[np.float64]


class Poses(NamedTuple):
    """The arrays of mjData that say what is where; world frame, metres, row-major rotations."""

    geom_xpos: Array  # [B, ngeom, 3]
    geom_xmat: Array  # [B, ngeom, 9]
    cam_xpos: Array  # [B, ncam, 3]
    cam_xmat: Array  # [B, ncam, 9]


def check_view(where: str, cameras: Any, height: int, width: int, num_threads: int) -> None:
    """Refuse a renderer that cannot draw a pixel.

    Raises:
        SpecError: A size is not positive, or `cameras` is one name instead of several.
    """
    if min(height, width, num_threads) < 1:
        raise SpecError(
            f"{where}: height {height}, width {width} and num_threads {num_threads} "
            "must all be at least 1."
        )
    if isinstance(cameras, str):
        raise SpecError(f"{where}: cameras is '{cameras}', expected a list of names")


def check_poses(where: str, poses: Poses, num_geoms: int, num_cameras: int) -> Poses:
    """Return the poses, C-contiguous.

    Args:
        where: The renderer, for the error message.
        poses: What a caller gave.
        num_geoms: Of the model.
        num_cameras: Of the model.

    Raises:
        SpecError: An array has the wrong shape or dtype.
    """
    num_worlds = len(poses.geom_xpos)
    sizes = ((num_geoms, 3), (num_geoms, 9), (num_cameras, 3), (num_cameras, 9))
    for name, array, size in zip(Poses._fields, poses, sizes, strict=True):
        if array.shape != (num_worlds, *size) or array.dtype != np.float64:
            raise SpecError(
                f"{where}: {name} is {array.dtype} {list(array.shape)}; expected float64 "
                f"{[num_worlds, *size]}."
            )
    return Poses._make(np.ascontiguousarray(array) for array in poses)


def images_for(
    where: str, out: NDArray[Any] | None, shape: tuple[int, ...], dtype: type
) -> NDArray[Any]:
    """Return `out`, or new images if there are none.

    Raises:
        SpecError: `out` does not fit.
    """
    if out is None:
        return np.zeros(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise SpecError(
            f"{where}: out is {out.dtype} {list(out.shape)}; expected C-contiguous "
            f"{np.dtype(dtype)} {list(shape)}."
        )
    return out


def blocks_of(where: str, rows: slice, num_worlds: int, count: int) -> list[tuple[int, int]]:
    """Split some rows into blocks of about the same length: first and last + 1 of each.

    Raises:
        SpecError: The rows are not one after another.
    """
    start, stop, step = rows.indices(num_worlds)
    if step != 1:
        raise SpecError(f"{where}: rows has step {step}; only step 1 can be drawn.")
    bounds = np.linspace(start, max(start, stop), count + 1).astype(int).tolist()
    return list(itertools.pairwise(bounds))
