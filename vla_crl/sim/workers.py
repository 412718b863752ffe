"""Threads that step worlds, each with a MuJoCo model and data of its own for every scene."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import mujoco
import numpy as np

from vla_crl.sim.threads import on_each, spread

Scratch = TypeVar("Scratch")
Made = TypeVar("Made")


class ModelCopy(NamedTuple, Generic[Scratch]):
    """What a thread works with: a model and data, also as addresses for compiled code."""

    scratch: Scratch
    model: mujoco.MjModel
    data: mujoco.MjData


class Workers(Generic[Scratch]):
    """Spreads work on slots over threads, in blocks of slots that are in the same scene."""

    def __init__(
        self,
        copy_scene: Callable[[int], tuple[Scratch, mujoco.MjModel, mujoco.MjData]],
        num_threads: int,
    ) -> None:
        """Start the threads.

        Args:
            copy_scene: Copies a scene's model and makes data for it, when one is first worked on.
            num_threads: For physics, and as many for drawing.
        """
        self._physics = ThreadPoolExecutor(num_threads)
        self._drawing = ThreadPoolExecutor(num_threads)  # need not queue behind physics
        self._copy_scene = copy_scene
        self._free: dict[int, list[ModelCopy[Scratch]]] = {}

    def close(self) -> None:
        """Stop the threads."""
        self._physics.shutdown()
        self._drawing.shutdown()

    def step(
        self,
        work: Callable[[int, Scratch, np.ndarray], None],
        slots: np.ndarray,
        scenes: np.ndarray,
    ) -> None:
        """Call `work` with a scene, something to compute in and a block of `slots`.

        Args:
            work: Called from several threads.
            slots: [B].
            scenes: [B] scene of each.
        """

        def on_copy(scene: int, block: np.ndarray) -> None:
            with self.model_copy(scene) as copy:
                work(scene, copy.scratch, block)

        spread(self._physics, on_copy, slots, scenes)

    def each(self, work: Callable[..., Made], *arguments: Sequence[Any]) -> list[Made]:
        """Call `work` with the first of all arguments, the second of all, ..., see `on_each`."""
        return on_each(self._physics, work, *arguments)

    def draw(
        self, work: Callable[[int, np.ndarray], None], pictures: np.ndarray, scenes: np.ndarray
    ) -> None:
        """Call `work` with a scene and a block of `pictures`, beside whatever is being stepped.

        Args:
            work: Called from several threads.
            pictures: [B] their numbers.
            scenes: [B] scene of each.
        """
        spread(self._drawing, work, pictures, scenes)

    @contextmanager
    def model_copy(self, scene: int) -> Iterator[ModelCopy[Scratch]]:
        """Lend a copy of a scene's model, a new one if none is free: one a thread at most."""
        free = self._free.setdefault(scene, [])
        try:
            copy = free.pop()  # never waits: of two threads that see the last, one gets it
        except IndexError:
            copy = ModelCopy(*self._copy_scene(scene))
        try:
            yield copy
        finally:
            free.append(copy)
