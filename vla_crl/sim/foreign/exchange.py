"""What passes between a simulation and its workers: lines of JSON, and arrays in shared memory."""

import json
import mmap
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CALLS = ("start", "begin", "step", "images")
"""What a worker may be busy with; `Beat.call` is a position in this tuple."""
_SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory; elsewhere they are temporary files, mapped likewise."""


class Sizes(NamedTuple):
    """Of the arrays of a suite."""

    num_steps: int
    num_actions: int
    num_states: int


class Lines:
    """JSON objects over a socket, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        """Take a socket over."""
        self._connection, self._received = connection, b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one object.

        Raises:
            OSError: The other side is gone.
        """
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next object, or None if none comes in time.

        Raises:
            EOFError: The other side is gone.
        """
        while b"\n" not in self._received:
            self._connection.settimeout(timeout_s)
            try:
                part = self._connection.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            self._received += part
        self._connection.settimeout(None)
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


class SharedArrays:
    """Memory that two processes share; its file has no name, so nothing is left behind.

    Attributes:
        beat: [4] what the worker is busy with: how many calls so far, the call (a position in
            `CALLS`), the slot, the control step.
        state: [S] what the robot feels after the last call.
        actions: [steps, A] to be executed.
    """

    def __init__(self, sizes: Sizes, descriptor: int | None = None) -> None:
        """Make the memory, or map that of a descriptor."""
        shapes = ((4,), (sizes.num_states,), (sizes.num_steps, sizes.num_actions))
        counts = [int(np.prod(shape)) for shape in shapes]
        page = mmap.ALLOCATIONGRANULARITY
        self._images_at = -(-8 * sum(counts) // page) * page
        if descriptor is None:
            folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
            with tempfile.TemporaryFile(dir=folder) as file:
                descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, self._images_at)
        self.descriptor = descriptor
        memory = mmap.mmap(descriptor, self._images_at)
        ends = np.cumsum([0, *counts]) * 8
        kinds = (np.int64, np.float64, np.float64)
        self.beat, self.state, self.actions = (
            np.frombuffer(memory, kind, count, int(start)).reshape(shape)
            for kind, count, start, shape in zip(kinds, counts, ends[:-1], shapes, strict=True)
        )
        self._drawn = np.empty(0, np.uint8)

    def images(self, num_cameras: int, pixels: int) -> np.ndarray:
        """Return room for pictures [C, pixels, pixels, 3]; the same in both processes."""
        size = num_cameras * pixels * pixels * 3
        if len(self._drawn) < size:
            end = self._images_at + size
            if os.fstat(self.descriptor).st_size < end:
                os.ftruncate(self.descriptor, end)
            memory = mmap.mmap(self.descriptor, size, offset=self._images_at)
            self._drawn = np.frombuffer(memory, np.uint8)
        return self._drawn[:size].reshape(num_cameras, pixels, pixels, 3)

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with its arrays."""
        os.close(self.descriptor)
