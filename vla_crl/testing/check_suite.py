"""Is a suite ready to be trained and evaluated on?"""

from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np

from vla_crl.contracts import ChunkResult, Observation
from vla_crl.errors import SpecError
from vla_crl.sim.backends import backend_of, expert_of, simulate
from vla_crl.sim.simulation import Filmed, Grounded, Resumable, Simulation
from vla_crl.sim.task_suite import MAX_INSTRUCTION_LENGTH, TaskSuite

CHUNK_STEPS = 4
FRAME_PIXELS = 32


class _Starts(NamedTuple):
    """The first initial states of every task, of training and test each: [tasks * 2 * states]."""

    task: np.ndarray
    state_id: np.ndarray


def check_suite(
    suite: TaskSuite, *, num_states: int = 5, min_success: float = 0.95
) -> tuple[str, ...]:
    """Check tasks, initial states, repeatability, and what else the suite's backend offers.

    Args:
        suite: What to check.
        num_states: Initial states of each task that the expert tries, of training and test each;
            at most as many as there are.
        min_success: Least success of the expert over all tasks.

    Returns:
        What the backend does not offer and so was not checked, a line each.

    Raises:
        SpecError: The first violation.
    """
    if not isinstance(cast(Any, suite), TaskSuite):
        raise SpecError(f"check_suite: got {suite!r}, expected what find_suite(name) returns")
    if num_states < 1:
        raise SpecError(f"check_suite: num_states is {num_states}, expected at least 1")
    _check_definitions(suite)
    num_states = min(num_states, len(suite.train_ids), len(suite.test_ids))
    ids = [*suite.train_ids[:num_states], *suite.test_ids[:num_states]]
    tasks = np.arange(len(suite.tasks))
    starts = _Starts(np.repeat(tasks, len(ids)), np.tile(ids, len(tasks)))
    lacks: list[str] = []
    with closing(simulate(suite, len(starts.task))) as sim:
        _check_initial_states(sim, starts)
        _check_episodes(sim, starts)
        if isinstance(sim, Resumable):
            _check_states(sim, starts)
        else:
            lacks.append("states (Resumable): simulations cannot go on where another stopped")
        if isinstance(sim, Filmed):
            _check_frames(sim)
        else:
            lacks.append("frames (Filmed): episodes cannot be filmed")
        if not isinstance(sim, Grounded):
            lacks.append("positions of things (Grounded): demonstrations cannot be labelled")
        if backend_of(suite).expert is None:
            lacks.append("a scripted expert: whether the tasks can be solved is not known")
        else:
            _check_expert(sim, starts, min_success)
    return tuple(lacks)


def _check_definitions(suite: TaskSuite) -> None:
    names = [task.name for task in suite.tasks]
    _require(suite, bool(names) and len(set(names)) == len(names), "has no task, or one twice")
    for task in suite.tasks:
        length = len(task.instruction)
        _require(
            suite,
            0 < length <= MAX_INSTRUCTION_LENGTH,
            f"tells task '{task.name}' by an instruction of {length} characters, expected 1 to "
            f"{MAX_INSTRUCTION_LENGTH}",
        )
    train, test = set(suite.train_ids), set(suite.test_ids)
    _require(suite, bool(train and test), "has no initial states for training, or none for tests")
    _require(
        suite, not train & test, f"tests on initial states it trains on: {sorted(train & test)[:5]}"
    )


def _check_initial_states(sim: Simulation, starts: _Starts) -> None:
    suite = sim.suite
    first = _begin(sim, starts)
    blind = sim.observe(images=False)
    _require(
        suite,
        blind.images.shape[2:4] == (0, 0)
        and np.array_equal(blind.state, first.state)
        and blind.instruction == first.instruction,
        "draws without being asked to, or then feels something else: observe(images=False)",
    )
    _require(suite, _same(first, _begin(sim, starts)), "does not repeat its initial states")
    of_first = starts.task == 0
    layouts = first.images[of_first]
    if isinstance(sim, Grounded):
        layouts = np.nan_to_num(sim.thing_positions()[of_first])  # NaN: not there
    _require(
        suite,
        len(np.unique(layouts, axis=0)) == len(layouts),
        "has two initial states with one layout",
    )
    done = sim.step_chunk(np.zeros((sim.num_slots, 1, len(suite.embodiment.action)))).success
    _require(
        suite,
        not done.any(),
        f"has a task that succeeds before anything is done, "
        f"'{suite.tasks[starts.task[np.argmax(done)]].name}', in {done.sum()} of the initial "
        "states; change goal or start",
    )


def _check_episodes(sim: Simulation, starts: _Starts) -> None:
    """Play the first start of each task, twice in another simulation, in slots of other numbers."""
    suite, tasks = sim.suite, np.arange(len(sim.suite.tasks))
    rows = np.searchsorted(starts.task, tasks)
    actions = _random_actions(suite, len(tasks), seed=0)
    sim.reset(rows, tasks=tasks, state_ids=starts.state_id[rows])
    with closing(simulate(suite, 2 * len(tasks), num_threads=1)) as other:
        one, two = np.arange(2 * len(tasks))[::-1].reshape(2, -1)
        for twin in (one, two):
            other.reset(twin, tasks=tasks, state_ids=starts.state_id[rows])
        results = [
            sim.step_chunk(actions, rows),
            other.step_chunk(actions, one),
            other.step_chunk(actions, two),
        ]
        _require(
            suite,
            _equal(results[1], results[2]) and _same(other.observe(one), other.observe(two)),
            "does other things in two slots that began alike and were told the same",
        )
        _require(
            suite,
            _equal(results[0], results[1]) and _same(sim.observe(rows), other.observe(one)),
            "does other things in another slot, or where there are more slots",
        )
        goes_on = ~(results[1].terminated | results[1].truncated)
        one, two, beyond = one[goes_on], two[goes_on], 3.0 * actions[goes_on]
        results = [other.step_chunk(beyond, one), other.step_chunk(np.clip(beyond, -1, 1), two)]
        _require(
            suite,
            _equal(*results) and _same(other.observe(one), other.observe(two)),
            "does not clip actions to [-1, 1]",
        )


def _check_states(sim: Simulation, starts: _Starts) -> None:
    """Go on in a new simulation from the middle of all episodes."""
    suite, states = sim.suite, cast(Resumable, sim)
    _begin(sim, starts)
    result = sim.step_chunk(_random_actions(suite, sim.num_slots, seed=1))
    rows = np.flatnonzero(~(result.terminated | result.truncated))
    actions = _random_actions(suite, len(rows), seed=2)
    with closing(simulate(suite, sim.num_slots)) as other:
        kept = states.get_states()
        cast(Resumable, other).set_states(kept)
        goes_on = _same(sim.observe(), other.observe()) and _equal(
            sim.step_chunk(actions, rows), other.step_chunk(actions, rows)
        )
        _require(
            suite,
            goes_on and _same(sim.observe(), other.observe()),
            "goes on differently from get_states in another simulation",
        )


def _check_frames(sim: Simulation) -> None:
    suite = sim.suite
    frames = cast(Filmed, sim).frames(suite.film_camera, FRAME_PIXELS, [0])
    expected = (1, FRAME_PIXELS, FRAME_PIXELS, 3)
    _require(
        suite,
        frames.shape == expected and frames.dtype == np.uint8,
        f"films frames of {frames.dtype} {frames.shape}, expected uint8 {expected}",
    )


def _check_expert(sim: Simulation, starts: _Starts, min_success: float) -> None:
    _begin(sim, starts)
    suite, success = sim.suite, _run_expert(sim)
    worst = min(range(len(suite.tasks)), key=lambda index: success[starts.task == index].mean())
    _require(
        suite,
        success.mean() >= min_success,
        f"has an expert that succeeds in {100 * success.mean():.0f} % of episodes, expected "
        f"{100 * min_success:.0f} %; worst task '{suite.tasks[worst].name}'",
    )


def _run_expert(sim: Simulation) -> np.ndarray:
    expert, running = expert_of(sim), np.arange(sim.num_slots)
    success = np.zeros(sim.num_slots, dtype=bool)
    while len(running):
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
    return success


def _begin(sim: Simulation, starts: _Starts) -> Observation:
    """Reset all slots and return what is seen, in arrays that nothing overwrites."""
    slots = np.arange(sim.num_slots)
    sim.reset(slots, tasks=starts.task, state_ids=starts.state_id)
    return sim.observe(slots).validate(sim.suite.embodiment)


def _random_actions(suite: TaskSuite, num: int, seed: int) -> np.ndarray:
    shape = (num, CHUNK_STEPS, len(suite.embodiment.action))
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape)


def _same(one: Observation, other: Observation) -> bool:
    return (
        np.array_equal(one.images, other.images)
        and np.array_equal(one.state, other.state)
        and one.instruction == other.instruction
    )


def _equal(one: ChunkResult, other: ChunkResult) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


def _require(suite: TaskSuite, holds: bool, otherwise: str) -> None:
    if not holds:
        raise SpecError(f"check_suite: '{suite.name}' {otherwise}")
