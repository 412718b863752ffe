"""Work on slots spread over threads, in blocks of slots that are in the same scene."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vla_crl.errors import SpecError

BLOCK_SLOTS = 8
"""Slots a thread takes at a time: small enough to balance load, large enough to hide dispatch."""


def spread(
    pool: ThreadPoolExecutor,
    work: Callable[[int, np.ndarray], None],
    rows: np.ndarray,
    scenes: np.ndarray,
) -> None:
    """Call `work` with a scene and a block of `rows` [B] in it, for all; scenes [B]."""
    blocks = [
        (int(scene), part[start : start + BLOCK_SLOTS])
        for scene in np.unique(scenes)
        if len(part := rows[scenes == scene])
        for start in range(0, len(part), BLOCK_SLOTS)
    ]
    on_each(pool, lambda block: work(*block), blocks)


def on_each(pool: ThreadPoolExecutor, work: Callable[..., None], *arguments: Sequence[Any]) -> None:
    """Call `work` with the first of all arguments, the second of all, ... on the pool's threads.

    Raises:
        SpecError: The pool is shut down.
    """
    try:
        parts = pool.map(work, *arguments)
    except RuntimeError as error:  # what the executor says of itself; `work` has not begun
        raise SpecError("the simulation is closed; make a new one") from error
    list(parts)
