"""What a training writes to its loggers: every iteration, every evaluation, the films.

The step of all is the number of iterations of the run until then. The run directory remains what
counts: everything here is in its files too, and a logger that fails is left out from then on.
"""

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from vla_crl.catalog import load_attribute
from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.errors import ConfigError, describe, install_extra
from vla_crl.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

LoggerName = Literal["tensorboard", "wandb"]
LOGGERS: dict[LoggerName, str] = {
    "tensorboard": "vla_crl.continual.loggers.tensorboard:TensorBoardLogger",
    "wandb": "vla_crl.continual.loggers.wandb:WandbLogger",
}
"""By name, which is that of the package and of the extra too; imported on use."""
TRAINING, TEST, SAMPLED = "training", "test_success", "sampled_success"
"""Kinds of numbers: of an iteration, of the two success matrices."""


class Logger(Protocol):
    """One place to write to."""

    def write(self, kind: str, step: int, numbers: Mapping[str, float], /) -> None:
        """Write numbers of a kind by name."""
        ...

    def film(self, path: Path, step: int, /) -> None:
        """Show an mp4."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class Loggers:
    """All loggers of one training; with none of them it does nothing."""

    def __init__(
        self, names: Sequence[LoggerName], run: RunDirectory, config: Mapping[str, Any]
    ) -> None:
        """Check that what they need is installed; nothing is written yet.

        Args:
            names: Which; each once counts.
            run: What is trained.
            config: Its settings as plain data.

        Raises:
            ConfigError: A package is missing.
        """
        self._names = tuple(dict.fromkeys(names))
        self._run, self._config, self._step = run, config, 0
        self._loggers: dict[str, Logger] = {}
        for name in self._names:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"loggers: {name} is not installed; {install_extra(name)}, or leave it out"
                )

    def begin(self, rounds: int) -> None:
        """Begin to write, or go on where the run directory ends.

        The last iteration and evaluation that it holds are written again: they may have been
        stored by a process that was killed before it wrote them here.

        Args:
            rounds: How often the training tasks are run through.
        """
        if not self._names:
            return
        rows = self._run.read_metrics()
        self._step = len(rows)
        for name in self._names:
            with self._surviving(name):
                make = cast(Callable[..., Logger], load_attribute(LOGGERS[name], "loggers"))
                self._loggers[name] = make(self._run, self._config, self._step)
        if rows:
            self._write(TRAINING, rows[-1])
        stage = rows[-1]["stage"] if rows else 0
        for kind, file in (
            (SAMPLED, self._run.sampled_matrix_file),
            (TEST, self._run.matrix_file),
        ):
            if file.is_file():
                cells = SuccessMatrix.read(file, rounds=rounds).cells()
                self._evaluated(kind, [cell for cell in cells if cell.stage == stage])

    def iteration(self, row: Mapping[str, Any]) -> None:
        """Write a row of metrics.jsonl."""
        self._step += 1
        self._write(TRAINING, row)

    def evaluation(self, matrix: Path, cells: Sequence[Cell]) -> None:
        """Write a stage of a success matrix.

        Args:
            matrix: Its file, which tells how the policy acted.
            cells: Of the stage.
        """
        self._evaluated(SAMPLED if matrix == self._run.sampled_matrix_file else TEST, cells)

    def finish(self) -> None:
        """Show the films of the run, and close."""
        for name, one in [*self._loggers.items()]:
            with self._surviving(name):
                for path in sorted(self._run.videos.glob("*.mp4")):
                    one.film(path, self._step)
                one.close()

    def _evaluated(self, kind: str, cells: Sequence[Cell]) -> None:
        rates = {cell.task: cell.successes / cell.episodes for cell in cells}
        for split in ("train", "heldout"):
            found = [rates[cell.task] for cell in cells if cell.split == split]
            if found:
                rates[f"mean_{split}"] = sum(found) / len(found)
        self._write(kind, rates)

    def _write(self, kind: str, numbers: Mapping[str, Any]) -> None:
        finite = {
            name: number
            for name, number in numbers.items()
            if isinstance(number, int | float) and math.isfinite(number)
        }
        for name, one in [*self._loggers.items()] if finite else ():
            with self._surviving(name):
                one.write(kind, self._step, finite)

    def _surviving(self, name: str) -> "_Surviving":
        """Return a context in which the logger may fail."""
        return _Surviving(name, self._loggers)


class _Surviving:
    """Leaves a logger out after its first error, whatever that is, and says so once."""

    def __init__(self, name: str, loggers: dict[str, Logger]) -> None:
        self._name, self._loggers = name, loggers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False  # none, or the user's Ctrl-C
        self._loggers.pop(self._name, None)
        reason = " ".join(describe(error).split()) or type(error).__name__
        logger.warning(
            "%s: failed and is left out from here on (%s); the training goes on, and the run "
            "directory holds all that it would have shown", self._name, reason,
        )  # fmt: skip
        return True
