"""Timed turns in a process of their own: another GL backend, another library, memory of its own.

The parent starts `python -m MODULE ARGUMENTS`; the child prepares, then answers every line on
stdin with one line of JSON on stdout. While it waits it computes nothing, so turns of several
processes can alternate.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from vla_crl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""What must be on the path for the child to find the package, installed or not."""


class TurnProcess:
    """A child that takes turns.

        with TurnProcess("vla_crl.bench.render_turns", ["egl"], {"MUJOCO_GL": "egl"}) as child:
            rate = child.turn()

    Args:
        module: What runs in the child; it must call `serve_turns`.
        arguments: Its command line.
        environment: Variables that differ from this process; an empty value removes one.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._name = f"{module} {' '.join(arguments)}"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = os.environ | {"PYTHONPATH": path} | dict(environment or {})
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={name: value for name, value in variables.items() if value},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def turn(self) -> Any:
        """Let the child take one turn and return its answer.

        Raises:
            ConfigError: The child has died; says what it said last.
        """
        try:
            print(file=self._process.stdin, flush=True)
            answer = self._process.stdout and self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
            raise ConfigError(f"{self._name}: ended with code {code}: {last}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """End the child: it leaves when its stdin closes."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


def serve_turns(prepared: AbstractContextManager[Callable[[], Any]]) -> None:
    """Take a turn for every line on stdin; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with prepared as turn:
        for _ in sys.stdin:
            print(json.dumps(turn()), file=answers, flush=True)
