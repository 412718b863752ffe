"""A training in Weights & Biases."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_crl.files.writing import write_atomically
from vla_crl.runs.directory import RunDirectory

PROJECT = "vla-crl"
STEP = "iteration_of_run"
"""What W&B draws numbers over. Its own step counts what was sent, and never goes back."""


class WandbLogger:
    """Sends numbers and films to a run of W&B; its own environment variables say where and how.

    Its files lie where W&B puts them, in `./wandb` or `WANDB_DIR`: there are links among them, and
    a run directory holds none. `WANDB_MODE=offline` keeps all there until `wandb sync`;
    `WANDB_PROJECT` and `WANDB_ENTITY` say where it goes. A training that goes on has the same id,
    which lies in `RUN/wandb.json` with what was sent, so that nothing is sent twice.
    """

    def __init__(self, run: RunDirectory, config: Mapping[str, Any], step: int) -> None:
        """Begin, or go on with, the run of W&B.

        Args:
            run: What is trained.
            config: Its settings.
            step: The first that is written; what was sent before is known.
        """
        import os

        import wandb

        self._film = wandb.Video
        self._file = run.path / "wandb.json"
        self._sent: dict[str, Any] = {"id": uuid.uuid4().hex[:16], "num": 0}
        if self._file.is_file():
            self._sent = json.loads(self._file.read_text(encoding="utf-8"))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._sent["id"],
            resume="allow",
            name=run.path.resolve().name,
            config=dict(config),
            settings=wandb.Settings(console="off"),  # which is ours
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._remember()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Send numbers, unless they were sent before the run was stopped."""
        if step > self._sent.get(kind, -1):
            self._sent[kind] = step
            self._send({f"{kind}/{name}": number for name, number in numbers.items()}, step)

    def film(self, path: Path, step: int) -> None:
        """Send a film."""
        self._send({f"film/{path.stem}": self._film(str(path), format="mp4")}, step)

    def close(self) -> None:
        """End the run of W&B."""
        self._run.finish()

    def _send(self, content: dict[str, Any], step: int) -> None:
        self._run.log(content | {STEP: step}, step=self._sent["num"])
        self._sent["num"] += 1
        self._remember()

    def _remember(self) -> None:
        write_atomically(self._file, json.dumps(self._sent) + "\n")
