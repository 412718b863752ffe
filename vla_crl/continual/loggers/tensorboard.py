"""A training in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_crl.runs.directory import RunDirectory


class TensorBoardLogger:
    """Writes event files to `RUN/tensorboard`; look at them with `tensorboard --logdir runs`.

    A run that goes on hides what was written from its step on: TensorBoard's purge_step.
    """

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], step: int) -> None:
        """Begin a file.

        Args:
            run: What is trained.
            config: Its settings; unused, they lie in `config.json`.
            step: The first that is written.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(run.path / "tensorboard", purge_step=step)

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers, and bring them to the disk."""
        for name, number in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", number, step)
        self._writer.flush()

    def film(self, path: Path, step: int) -> None:
        """Leave films out: event files hold pictures only."""

    def close(self) -> None:
        """End the file."""
        self._writer.close()
