"""Arguments and results of a simulation's calls, checked and built alike in every backend."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from vla_crl.contracts import ChunkResult
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.simulation import Indices, Simulation
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig


def chosen_slots(sim: Simulation, slots: Indices | None) -> np.ndarray:
    """Return [B] slots as an array, all of them by default.

    Raises:
        SpecError: One is out of range or named twice, or they are no integers.
    """
    if slots is None:
        return np.arange(sim.num_slots)
    return _slots(type(sim).__name__, slots, sim.num_slots)


def begun_slots(sim: Simulation, slots: Indices | None) -> np.ndarray:
    """Return [B] slots as an array, all of them by default, each with an episode to tell of.

    Raises:
        SpecError: As `chosen_slots`, or one has never been reset.
    """
    chosen = chosen_slots(sim, slots)
    new = chosen[sim.state_ids[chosen] < 0]
    if len(new):
        raise SpecError(
            f"{type(sim).__name__}: slots {new[:5].tolist()} have no episode; reset them first"
        )
    return chosen


def reset_arrays(
    sim: Simulation, slots: Indices, tasks: Indices, state_ids: Indices
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a reset names as arrays [B].

    Raises:
        SpecError: An index is no integer or out of range, a slot is named twice, or the lengths
            differ.
    """
    where = f"{type(sim).__name__}.reset"
    chosen = _slots(where, slots, sim.num_slots)
    task, ids = _integers(f"{where}: tasks", tasks), _integers(f"{where}: state_ids", state_ids)
    if not len(chosen) == len(task) == len(ids):
        raise SpecError(
            f"{where}: {len(chosen)} slots, {len(task)} tasks, {len(ids)} state_ids; "
            "expected one task and one state id per slot"
        )
    _check_range(f"{where}: task", task, len(sim.suite.tasks))
    _check_range(f"{where}: state id", ids, sim.suite.test_ids.stop)
    return chosen, task, ids


def require_running(sim: Simulation, slots: np.ndarray, outcome: np.ndarray) -> None:
    """Check that `slots` [B], with these outcomes [B], have an episode that is not over.

    Raises:
        SpecError: One has none.
    """
    over = slots[(outcome != RUNNING) | (sim.state_ids[slots] < 0)]
    if len(over):
        raise SpecError(
            f"{type(sim).__name__}.step_chunk: slots {over[:5].tolist()} have no running episode; "
            "reset them first"
        )


def require_counts(where: str, **counts: int) -> None:
    """Check that these settings are whole numbers from 1 on.

    Raises:
        ConfigError: One is not.
    """
    for name, value in counts.items():
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise ConfigError(f"{where}: {name} is {value!r}, expected a whole number from 1 on")


def require_no_variation(suite: TaskSuite, variation: VariationConfig | None) -> None:
    """Check that nothing is to vary, for backends whose episodes are as their suite says.

    Raises:
        ConfigError: Something is.
    """
    if variation is not None and variation.varies:
        raise ConfigError(
            f"suite '{suite.name}': the backend '{suite.backend}' has no variations; remove them"
        )


def require_scenes(where: str, suite: object) -> None:
    """Check that a suite has scenes of its own to simulate.

    Raises:
        SpecError: It is no suite, or one of another backend.
    """
    if not hasattr(suite, "scenes"):
        raise SpecError(
            f"{where}: got {suite if isinstance(suite, str) else type(suite).__name__!r} as suite, "
            "expected what vla_crl.sim.native.suite.load_suite returns; for any other suite use "
            "simulate(find_suite(name), ...) of vla_crl.sim.backends"
        )


def checked_states(
    sim: Simulation, states: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return `states` as arrays that may replace what a simulation's own `get_states` returns.

    Raises:
        SpecError: Other names, shapes or kinds of numbers, or numbers that no slot can have.
    """
    where = f"{type(sim).__name__}.set_states"
    given_names = sorted(states) if isinstance(cast(Any, states), Mapping) else states
    if given_names != sorted(own):
        raise SpecError(f"{where}: got {given_names}, expected {sorted(own)}, as of get_states")
    checked = {name: np.asarray(values) for name, values in states.items()}
    for name, array in own.items():
        given = checked[name]
        if given.shape != array.shape or not np.can_cast(given.dtype, array.dtype, "same_kind"):
            raise SpecError(
                f"{where}: '{name}' is {given.dtype} {given.shape}, expected {array.dtype} "
                f"{array.shape}; use a simulation of the same suite with as many slots"
            )
    used = checked["state_id"] >= 0
    _check_range(f"{where}: task", checked["task"], len(sim.suite.tasks))
    _check_range(f"{where}: state id", checked["state_id"][used], sim.suite.test_ids.stop)
    _check_range(f"{where}: outcome", checked["outcome"], DIVERGED + 1)
    _check_range(f"{where}: num_steps", checked["num_steps"], sim.suite.horizon + 1)
    for name in checked.keys() & {"actions", "controller", "pending"}:
        if not np.isfinite(checked[name]).all():
            raise SpecError(f"{where}: '{name}' has numbers that are not finite")
    if "tree_asleep" in checked and (checked["tree_asleep"] >= 0).any():
        raise SpecError(f"{where}: 'tree_asleep' has numbers from 0 on, expected only negative")
    return checked


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


def _slots(where: str, slots: Indices, num_slots: int) -> np.ndarray:
    chosen = _integers(f"{where}: slots", slots)
    _check_range(f"{where}: slot", chosen, num_slots)
    if len(np.unique(chosen)) < len(chosen):
        raise SpecError(f"{where}: slots name one twice: {chosen[:8].tolist()}")
    return chosen


def _integers(what: str, values: Indices) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise SpecError(
            f"{what}: got {array.dtype} of shape {array.shape}, expected a list of integers"
        )
    return array.astype(np.int64)


def _check_range(what: str, values: np.ndarray, stop: int) -> None:
    bad = values[(values < 0) | (values >= stop)]
    if len(bad):
        raise SpecError(f"{what} {bad[0]} is out of range, expected 0 .. {stop - 1}")
