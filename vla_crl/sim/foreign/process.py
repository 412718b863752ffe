"""A worker process as its simulation sees it: started, told, waited for, started again."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from typing import IO, Any

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.foreign.exchange import CALLS, Lines, SharedArrays, Sizes
from vla_crl.sim.foreign.foreign_episode import EpisodeSpec
from vla_crl.sim.task_suite import TaskSuite

_LOOK_S = 0.5
"""How often a worker that is waited for is looked at."""
_START_S = 60.0
"""Time that Python may take to start and import, at least."""
_MAX_SAID = 20
"""Lines of what a worker writes that are kept."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Workers are many; who wants more threads in each says so in the environment."""


class WorkerFailedError(RuntimeError):
    """A worker hung or died, or its environment raised; says which, and in what call."""


class WorkerProcess:
    """A process that plays the episodes of some slots.

    Attributes:
        shared: Arrays that go to it and come from it.
        lock: Whoever tells it something holds it until the arrays that came back are read.
        holds: What stands in each slot of the worker; whatever is not named there is lost.
    """

    def __init__(self, suite: TaskSuite, spec: EpisodeSpec, number: int, image_size: int) -> None:
        """Start the process; it is not waited for.

        Args:
            suite: Whose episodes it plays.
            spec: How it makes them.
            number: Of the worker, for messages.
            image_size: Height and width of what policies see, pixels.
        """
        self._suite, self._spec, self._number = suite, spec, number
        robot = suite.embodiment
        sizes = Sizes(suite.horizon, len(robot.action), len(robot.state))
        tasks = zip(suite.tasks, spec.task_arguments, strict=True)
        self._description = {
            "name": suite.name,
            "episode": spec.episode,
            "arguments": dict(spec.arguments),
            "cameras": robot.cameras,
            "image_size": image_size,
            "tasks": [
                {"name": task.name, "instruction": task.instruction, "arguments": dict(arguments)}
                for task, arguments in tasks
            ],
            "sizes": sizes,
        }
        self.shared = SharedArrays(sizes)
        self.lock = threading.Lock()
        self.holds: dict[int, object] = {}
        self._is_closed = False
        self._start()

    def wait(self) -> None:
        """Wait until the process is ready.

        Raises:
            ConfigError: The class of episodes does not exist.
            WorkerFailedError: Its module cannot be imported.
        """
        if not self._is_ready:
            self._reply()
            self._is_ready = True

    def call(self, call: str, slot: int, **details: Any) -> dict[str, Any]:
        """Tell the process to do something and wait for it.

        Args:
            call: One of `CALLS` but the first.
            slot: Where.
            details: What the method of `worker.Worker` takes.

        Raises:
            ConfigError: What the environment is told is not possible.
            PhysicsError: Physics blew up.
            WorkerFailedError: The environment raised, or the process died or hung.
        """
        self.wait()
        try:
            self._lines.send({"call": call, "slot": slot, **details})
        except OSError:
            raise self._failed(self._death()) from None
        return self._reply()

    def restart(self) -> None:
        """End the process, however it stands, and start another, which holds nothing.

        Raises:
            SpecError: The simulation is closed.
        """
        self._end()
        self.holds.clear()
        if self._is_closed:
            raise SpecError("the simulation is closed; make a new one")
        self._start()

    def end(self) -> None:
        """End the process for good; who waits for it gets an error."""
        self._is_closed = True
        self._finish()

    def close(self) -> None:
        """End the process and let go of what is shared."""
        self.end()
        self._end()
        self.shared.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._lines, self._is_ready = Lines(ours), False
        self._said = deque[str](maxlen=_MAX_SAID)
        self.shared.beat[:] = 0
        descriptors = (theirs.fileno(), self.shared.descriptor)
        # -P: the working directory is no place to import from, unless it is one here.
        program = [sys.executable, "-P", "-m", "vla_crl.sim.foreign.worker"]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [*program, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is ours to answer
                env={
                    **dict.fromkeys(_ONE_THREAD, "1"),
                    **os.environ,
                    "PYTHONPATH": paths,
                    "PYTHONUNBUFFERED": "1",  # last words are not lost
                },
            )
        self._finish = weakref.finalize(self, _kill, self._process)
        stdout = self._process.stdout
        assert stdout is not None
        self._listener = threading.Thread(target=_listen, args=(stdout, self._said), daemon=True)
        self._listener.start()
        self._lines.send(self._description)

    def _end(self) -> None:
        self._finish()
        self._listener.join(_LOOK_S)  # what it started may hold its output open
        self._lines.close()

    def _reply(self) -> dict[str, Any]:
        """Wait for a reply, as long as calls go on to begin and end in time."""
        beats, since = int(self.shared.beat[0]), time.monotonic()
        limit = self._spec.timeout_s if self._is_ready else max(_START_S, self._spec.timeout_s)
        while True:
            try:
                reply = self._lines.receive(min(_LOOK_S, limit))
            except EOFError:
                raise self._failed(self._death()) from None
            if reply is not None:
                return self._checked(reply)
            if self._process.poll() is not None:
                raise self._failed(self._death())
            if beats != int(self.shared.beat[0]):
                beats, since = int(self.shared.beat[0]), time.monotonic()
            elif time.monotonic() - since > limit:
                raise self._failed(
                    f"has been busy for {limit:g} s; if that is how long it takes, raise timeout_s "
                    "in suite.toml, else look at what it waits for"
                )

    def _checked(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "refused" in reply:
            raise ConfigError(reply["refused"])
        if "blown_up" in reply:
            raise PhysicsError(reply["blown_up"], {})
        if "raised" in reply:
            raise self._failed(f"raised {reply['raised']}")
        return reply

    def _death(self) -> str:
        """Say how the process ended, with its last words."""
        try:
            code = self._process.wait(timeout=_LOOK_S)
        except subprocess.TimeoutExpired:  # it lives, but nobody there listens
            self._process.kill()
            code = self._process.wait()
        self._listener.join(timeout=_LOOK_S)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended, code {code}"
        return f"{how}; it last wrote: '{self._said[-1]}'" if self._said else how

    def _failed(self, what: str) -> WorkerFailedError:
        call, slot, step = (int(number) for number in self.shared.beat[1:])
        where = "its start"
        if CALLS[call] != "start":
            at = f" {step}" if CALLS[call] == "step" else ""
            where = (
                f"'{CALLS[call]}'{at} in slot {slot}, {self.holds.get(slot, 'its first episode')}"
            )
        return WorkerFailedError(
            f"suite '{self._suite.name}', worker {self._number} (process {self._process.pid}) "
            f"{what}. Its last call: {where}"
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _listen(stream: IO[bytes], said: deque[str]) -> None:
    """Keep the last lines that a worker writes, so that it never waits for a reader."""
    with stream:
        for line in stream:
            if text := line.decode(errors="replace").strip():
                said.append(text[:200])
