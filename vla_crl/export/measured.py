"""What is known of a policy's success: from the run that made it, or from its own card."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_crl.catalog import list_policies, policy_path
from vla_crl.errors import CheckpointError
from vla_crl.models.checkpoint import POLICY_FILE, read_card
from vla_crl.report.run_record import RunRecord

_STAGE = re.compile(r"stage_(\d+)")
"""Folder of a checkpoint in `RUN/checkpoints`."""


@dataclass(frozen=True)
class TaskSuccess:
    """How often a policy succeeded in one task, on test states and without exploration noise."""

    task: str
    split: str
    rate: float
    episodes: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a policy, and where it comes from.

    Attributes:
        origin: A sentence.
        suite: Of the tasks; empty where nothing was measured.
        hardware: Processor.
        tasks: In the order of training, then those that were only evaluated.
    """

    origin: str
    suite: str = ""
    hardware: str = ""
    tasks: tuple[TaskSuccess, ...] = ()

    def mean(self, tasks: Sequence[TaskSuccess]) -> float:
        """Return the mean success of some tasks."""
        return sum(task.rate for task in tasks) / len(tasks)


def read_measured(policy: str) -> Measured:
    """Look for what is known.

    Args:
        policy: Preset or checkpoint directory, as `load_policy` takes it.

    Raises:
        CheckpointError: Its card is damaged.
        ConfigError: Its run is.
    """
    folder = policy_path(policy).with_suffix("") if policy in list_policies() else Path(policy)
    run, stage = folder.resolve().parents[1], _STAGE.fullmatch(folder.resolve().name)
    if stage and (run / "config.json").is_file():
        return _of_run(RunRecord.read(run), int(stage[1]))
    card = read_card(folder) if (folder / POLICY_FILE).is_file() else {}
    try:
        return _of_card(card)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / POLICY_FILE}: its card is none that 'vla-crl pretrain' or 'export' writes "
            f"({type(error).__name__}: {error}); empty it, or copy the file again"
        ) from error


def _of_card(card: dict[str, Any]) -> Measured:
    if "measured" in card:  # exported before
        tasks = tuple(TaskSuccess(**task) for task in card["measured"]["tasks"])
        return Measured(**(card["measured"] | {"tasks": tasks}))
    if "success_on_test_ids" not in card:
        return Measured("Nothing is known of where it was trained, nor of its success.")
    success, num = card["success_on_test_ids"], card["episodes_per_task"]
    return Measured(
        f"A base policy, made by `vla-crl pretrain {card['recipe']}`.",
        card["suite"],
        card["hardware"],
        tuple(TaskSuccess(task, "base", rate, num) for task, rate in success.items()),
    )


def _of_run(record: RunRecord, stage: int) -> Measured:
    config, matrix = record.config, record.matrix
    cells = [cell for cell in matrix.cells() if cell.stage == stage] if matrix else []
    return Measured(
        f"Trained by `vla-crl train` on `{config['suite']}` with the method "
        f"`{config.get('method', 'sequential')}`, seed {config.get('seed', 0)}: the policy after "
        f"stage {stage}"
        + (f" of {matrix.num_stages}" if matrix else "")
        + f", from the base policy `{Path(config['policy']).name}`.",
        config["suite"],
        record.versions.get("cpu_model", ""),
        tuple(
            TaskSuccess(cell.task, cell.split, cell.successes / cell.episodes, cell.episodes)
            for cell in cells
        ),
    )
