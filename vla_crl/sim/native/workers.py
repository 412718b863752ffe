"""Threads that step worlds, each with a MuJoCo model and data of its own for every scene."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.native.kernel.slots import Scratch, scratch_of
from vla_crl.sim.threads import spread


class ModelCopy(NamedTuple):
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
        self._copies: list[SimpleQueue[ModelCopy]] = []
        for model in models:
            self._copies.append(SimpleQueue())
            for _ in range(num_threads):
                self._copies[-1].put(ModelCopy(*scratch_of(model)))

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

        def on_copy(scene: int, block: np.ndarray) -> None:
            with self.model_copy(scene) as copy:
                work(scene, copy.scratch, block)

        spread(self._physics, on_copy, rows, scenes)

    def draw(
        self, work: Callable[[int, np.ndarray], None], rows: np.ndarray, scenes: np.ndarray
    ) -> None:
        """Call `work` with a scene and a block of `rows`, beside whatever is being stepped."""
        spread(self._drawing, work, rows, scenes)

    @contextmanager
    def model_copy(self, scene: int) -> Iterator[ModelCopy]:
        """Lend a free copy of a scene's model, waiting for one if need be."""
        copy = self._copies[scene].get()
        try:
            yield copy
        finally:
            self._copies[scene].put(copy)
