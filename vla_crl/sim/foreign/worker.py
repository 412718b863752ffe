"""The program of a worker: `python -m vla_crl.sim.foreign.worker SOCKET MEMORY`.

It owns the environments of some slots and does what lines of JSON say, one after the other.
"""

import os
import queue
import random
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from vla_crl.catalog import load_attribute
from vla_crl.errors import ConfigError
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.foreign.exchange import CALLS, Lines, SharedArrays, Sizes
from vla_crl.sim.foreign.foreign_episode import ForeignEpisode, ForeignTask


def _is_episode(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ForeignEpisode)


class Slot:
    """A slot's environment, with the global random numbers that it draws."""

    def __init__(self) -> None:
        """Have no environment yet."""
        self.episode: ForeignEpisode | None = None
        self._random: tuple[Any, Any] | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let Python's and numpy's global generators go on as if there were no other slot."""
        if self._random is not None:
            random.setstate(self._random[0])
            np.random.set_state(self._random[1])
        try:
            yield
        finally:
            self._random = random.getstate(), np.random.get_state()


class Worker:
    """Does what it is told; what it is busy with stands in shared memory."""

    def __init__(self, suite: dict[str, Any], shared: SharedArrays) -> None:
        """Find the class of episodes.

        Args:
            suite: What `process.WorkerProcess` tells of the suite.
            shared: Where arrays lie.

        Raises:
            ConfigError: There is no such class.
        """
        self._where = f"suite '{suite['name']}'"
        made = load_attribute(suite["episode"], self._where, fits=_is_episode)
        if not _is_episode(made):
            raise ConfigError(
                f"{self._where}: episode '{suite['episode']}' is no ForeignEpisode of "
                "vla_crl.sim.foreign.foreign_episode; derive it from that class"
            )
        self._make, self._arguments = cast(type[ForeignEpisode], made), suite["arguments"]
        self._cameras, self._image_size = tuple(suite["cameras"]), suite["image_size"]
        self._tasks = [ForeignTask(**task) for task in suite["tasks"]]
        self._slots: dict[int, Slot] = {}
        self._shared = shared

    def do(self, call: str, slot: int, **details: Any) -> dict[str, Any]:
        """Do what a line says and return the reply."""
        place = self._slots.setdefault(slot, Slot())
        with place.drawing():
            return getattr(self, f"_{call}")(slot, place, **details)

    def _begin(self, slot: int, place: Slot, **what: int) -> dict[str, Any]:
        self._busy("begin", slot)
        if place.episode is None:
            place.episode = self._make(self._cameras, self._image_size, **self._arguments)
            place.episode.goes_on = self._goes_on
        random.seed(what["seed"])
        np.random.seed(what["seed"])
        place.episode.begin(self._tasks[what["task"]], what["state_id"], what["seed"])
        self._feel(place.episode)
        return {}

    def _step(self, slot: int, place: Slot, num_steps: int) -> dict[str, Any]:
        episode, success, taken = _begun(place), False, 0
        for action in self._shared.actions[:num_steps].copy():
            self._busy("step", slot, taken)
            success = bool(episode.step(action))
            taken += 1
            if success:
                break
        self._feel(episode)
        return {"success": success, "num_steps": taken}

    def _images(self, slot: int, place: Slot, cameras: list[str], pixels: int) -> dict[str, Any]:
        self._busy("images", slot)
        room = self._shared.images(len(cameras), pixels)
        drawn = np.asarray(_begun(place).images(tuple(cameras), pixels))
        if drawn.shape != room.shape or drawn.dtype != np.uint8:
            raise ConfigError(
                f"{self._where}: images of cameras {cameras} are {drawn.dtype} {drawn.shape}, "
                f"expected uint8 {room.shape}"
            )
        room[:] = drawn
        return {}

    def _feel(self, episode: ForeignEpisode) -> None:
        state, room = np.asarray(episode.state()), self._shared.state
        if state.shape != room.shape or state.dtype.kind not in "fiu":
            raise ConfigError(
                f"{self._where}: the state is {state.dtype} {state.shape}, expected numbers "
                f"{room.shape}, one for each name in the embodiment"
            )
        if not np.isfinite(state).all():
            raise PhysicsError("the robot feels numbers that are not finite", {})
        room[:] = state

    def _busy(self, call: str, slot: int, step: int = 0) -> None:
        self._shared.beat[1:] = CALLS.index(call), slot, step
        self._goes_on()

    def _goes_on(self) -> None:
        self._shared.beat[0] += 1


def seed_of(task: str, state_id: int) -> int:
    """Return the number that an episode's random numbers are made of."""
    return zlib.crc32(f"{task}.{state_id}".encode())


def serve(lines: Lines, shared_memory: int) -> None:
    """Do what comes, in the main thread: OpenGL wants one thread, and reading must not wait."""
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                told.put(cast(dict[str, Any], lines.receive()))
            except EOFError:  # whoever started us is gone, even if an environment hangs
                os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    suite = told.get()
    shared = SharedArrays(Sizes(*suite["sizes"]), shared_memory)
    workers: list[Worker] = []
    lines.send(_replied(lambda: workers.append(Worker(suite, shared))))
    while workers:
        lines.send(_replied(partial(workers[0].do, **told.get())))


def _replied(work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Return what some work replies, or what it raises, in words."""
    try:
        return work() or {}
    except ConfigError as error:
        return {"refused": str(error)}
    except PhysicsError as error:
        return {"blown_up": error.cause}
    except Exception as error:  # noqa: BLE001 - whatever foreign code raises is told
        return {"raised": _in_a_line(error)}


def _begun(place: Slot) -> ForeignEpisode:
    assert place.episode is not None, "the simulation begins an episode first"
    return place.episode


def _in_a_line(error: Exception) -> str:
    traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line} ({Path(last.filename).name}:{last.lineno})"


if __name__ == "__main__":
    serve(Lines(socket.socket(fileno=int(sys.argv[1]))), int(sys.argv[2]))
