"""Arguments and results of a simulation's calls, checked and built alike in every backend."""

from collections.abc import Sequence

import numpy as np

from vla_crl.contracts import ChunkResult
from vla_crl.errors import SpecError
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.slots import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT

Indices = Sequence[int] | np.ndarray


def rows_of(sim: Simulation, slots: Indices | None) -> np.ndarray:
    """Return [B] slots as an array, all of them by default.

    Raises:
        SpecError: One is out of range.
    """
    if slots is None:
        return np.arange(sim.num_slots)
    rows = np.asarray(list(slots), dtype=np.int64)
    _check_range(f"{type(sim).__name__}: slot", rows, sim.num_slots)
    return rows


def reset_arrays(
    sim: Simulation, slots: Indices, tasks: Indices, state_ids: Indices
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a reset names as arrays [B].

    Raises:
        SpecError: An index is out of range or the lengths differ.
    """
    where = f"{type(sim).__name__}.reset"
    rows, task, ids = (
        np.asarray(list(values), dtype=np.int64) for values in (slots, tasks, state_ids)
    )
    if not len(rows) == len(task) == len(ids):
        raise SpecError(
            f"{where}: {len(rows)} slots, {len(task)} tasks, {len(ids)} state_ids; "
            "expected one task and one state id per slot"
        )
    _check_range(f"{where}: slot", rows, sim.num_slots)
    _check_range(f"{where}: task", task, len(sim.suite.tasks))
    _check_range(f"{where}: state id", ids, sim.suite.test_ids.stop)
    return rows, task, ids


def require_running(sim: Simulation, rows: np.ndarray, outcome: np.ndarray) -> None:
    """Check that `rows` [B], with these outcomes [B], have an episode that is not over.

    Raises:
        SpecError: One has none.
    """
    over = rows[(outcome != RUNNING) | (sim.state_ids[rows] < 0)]
    if len(over):
        raise SpecError(
            f"{type(sim).__name__}.step_chunk: slots {over[:5].tolist()} have no running episode; "
            "reset them first"
        )


def chunk_result(outcome: np.ndarray, num_steps: np.ndarray) -> ChunkResult:
    """Tell what a chunk led to from the outcome codes [B] and the steps taken [B]."""
    success = outcome == SUCCESS
    return ChunkResult(
        reward=success.astype(np.float32),
        success=success,
        terminated=success | (outcome == DIVERGED),
        truncated=outcome == TIME_LIMIT,
        num_steps=num_steps,
        diverged=outcome == DIVERGED,
    )


def _check_range(what: str, values: np.ndarray, stop: int) -> None:
    bad = values[(values < 0) | (values >= stop)]
    if len(bad):
        raise SpecError(f"{what} {bad[0]} is out of range, expected 0 .. {stop - 1}")
