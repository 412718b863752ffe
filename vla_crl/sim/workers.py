"""Threads that step worlds, each with a MuJoCo model and data of its own for every scene."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import mujoco
import numpy as np

from vla_crl.errors import SpecError
from vla_crl.sim.slots import Scratch, scratch_of

BLOCK_SLOTS = 8
"""Slots a thread takes at a time: small enough to balance load, large enough to hide dispatch."""


class Bench(NamedTuple):
    """What a thread works with: a model and data, also as addresses for compiled code."""

    scratch: Scratch
    model: mujoco.MjModel
    data: mujoco.MjData


class Workers:
    """Spreads work on rows over threads, in blocks of rows that are in the same scene."""

    def __init__(self, models: Sequence[mujoco.MjModel], num_threads: int) -> None:
        """Start the threads and copy the models.

        Args:
            models: One a scene.
            num_threads: For physics, and as many for drawing.
        """
        self._physics = ThreadPoolExecutor(num_threads)
        self._drawing = ThreadPoolExecutor(num_threads)  # need not queue behind physics
        self._benches: list[SimpleQueue[Bench]] = []
        for model in models:
            self._benches.append(SimpleQueue())
            for _ in range(num_threads):
                self._benches[-1].put(Bench(*scratch_of(model)))

    def close(self) -> None:
        """Stop the threads."""
        self._physics.shutdown()
        self._drawing.shutdown()

    def step(
        self, work: Callable[[int, Scratch, np.ndarray], None], rows: np.ndarray, scenes: np.ndarray
    ) -> None:
        """Call `work` with a scene, something to compute in and a block of `rows`.

        Args:
            work: Called from several threads.
            rows: [B] slots.
            scenes: [B] scene of each.
        """

        def on_bench(scene: int, block: np.ndarray) -> None:
            with self.bench(scene) as bench:
                work(scene, bench.scratch, block)

        spread(self._physics, on_bench, rows, scenes)

    def draw(
        self, work: Callable[[int, np.ndarray], None], rows: np.ndarray, scenes: np.ndarray
    ) -> None:
        """Call `work` with a scene and a block of `rows`, beside whatever is being stepped."""
        spread(self._drawing, work, rows, scenes)

    @contextmanager
    def bench(self, scene: int) -> Iterator[Bench]:
        """Lend a free bench of a scene, waiting for one if need be."""
        bench = self._benches[scene].get()
        try:
            yield bench
        finally:
            self._benches[scene].put(bench)


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
