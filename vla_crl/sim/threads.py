"""Work on slots spread over threads, in blocks of slots that are in the same scene."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import numpy as np

from vla_crl.errors import SpecError

BLOCK_SLOTS = 8
"""Slots a thread takes at a time: small enough to balance load, large enough to hide dispatch."""
MAX_MADE = 1024
"""Results that `made_once` remembers of a function."""

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def made_once(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Remember what a function returns; threads that ask for it meanwhile wait."""
    remembered, lock = lru_cache(MAX_MADE)(make), Lock()

    @wraps(make)
    def ask(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Made:
        with lock:
            return remembered(*arguments, **keywords)

    return ask


def spread(
    pool: ThreadPoolExecutor,
    work: Callable[[int, np.ndarray], None],
    numbers: np.ndarray,
    scenes: np.ndarray,
) -> None:
    """Call `work` with a scene and a block of the numbers [B] in it, for all; scenes [B]."""
    blocks = [
        (int(scene), part[start : start + BLOCK_SLOTS])
        for scene in np.unique(scenes)
        if len(part := numbers[scenes == scene])
        for start in range(0, len(part), BLOCK_SLOTS)
    ]
    on_each(pool, lambda block: work(*block), blocks)


def on_each(
    pool: ThreadPoolExecutor, work: Callable[..., Made], *arguments: Sequence[Any]
) -> list[Made]:
    """Call `work` with the first of all arguments, the second of all, ... on the pool's threads.

    Returns:
        What the calls returned, in the order of the arguments.

    Raises:
        SpecError: The pool is shut down.
    """
    try:
        parts = pool.map(work, *arguments)
    except RuntimeError as error:  # what the executor says of itself; `work` has not begun
        raise SpecError("the simulation is closed; make a new one") from error
    return list(parts)
