"""How fast Meta-World's tasks are simulated, beside the environments of the package itself."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np

from vla_crl.bench.peers import choose_peers, require_extra
from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.bench.workload import Turn, Workload, alternate, play, random_workload
from vla_crl.errors import ConfigError
from vla_crl.hardware import num_cores
from vla_crl.progress import track
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.metaworld.initial_states import drawn_env, observing
from vla_crl.sim.metaworld.models import env_class
from vla_crl.sim.metaworld.suite import MetaWorldSuite

WHERE = "bench metaworld --peers"
CHUNK_STEPS = 8
"""Control steps between two observations of ours, of what the robot feels."""
GOALS = {"threads": 5.0, "AsyncVectorEnv": None}
"""Wanted speed-up; of processes none was set."""
METAWORLD_PEERS = tuple(GOALS)


def bench_metaworld_peers(
    suite: str = "metaworld_mt10",
    peers: Sequence[str] = (),
    *,
    num_slots: int = 160,
    num_chunks: int = 10,
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure control steps per second without pictures, on all cores.

    All play the same random actions from the same initial states. The package's environments have
    their complete models and compute their rewards and 39 numbers in every step. They are stepped
    by as many threads as there are cores, each environment of a task by one of them, or by
    Gymnasium's `AsyncVectorEnv` in as many processes.

    Args:
        suite: Its name in the catalogue.
        peers: Some of `METAWORLD_PEERS`; all by default.
        num_slots: Robots of ours, tasks in turn.
        num_chunks: Chunks of eight control steps in a timed turn.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Returns:
        One record per peer.

    Raises:
        ConfigError: An unknown peer, a missing package, or a suite that is not Meta-World's.
    """
    chosen = choose_peers(WHERE, peers, METAWORLD_PEERS)
    loaded = find_suite(suite)
    if not isinstance(loaded, MetaWorldSuite):
        raise ConfigError(
            f"bench metaworld: suite '{suite}' is of the backend '{loaded.backend}', expected one "
            "of Meta-World, such as metaworld_mt10"
        )
    for peer in chosen:
        require_extra(WHERE, peer, "metaworld", "metaworld")
    every = range(len(loaded.tasks))
    load = random_workload(
        loaded, every, num_slots, num_chunks * CHUNK_STEPS, chunk_steps=CHUNK_STEPS
    )
    records: list[BenchRecord] = []
    with (
        track("bench metaworld", len(chosen)) as progress,
        closing(simulate(loaded, num_slots, num_threads=num_cores())) as sim,
    ):
        for peer in chosen:
            with PEERS[peer](loaded, load) as (label, peer_turn):
                turn = partial(play, load, sim, is_seen=False)
                value, peer_value = alternate([turn, peer_turn], num_repeats)
            name = f"metaworld.{suite}.state.vs_{peer}"
            records.append(
                against_peer(name, value, "steps/s", label, peer_value, goal=GOALS[peer])
            )
            progress.advance(1, peer)
    return records


def package_env(task: str, state_id: int) -> Any:
    """Return an environment as the package has it, whose resets lead to an initial state of ours.

    Args:
        task: Name in the package.
        state_id: Of our initial states.
    """
    env = observing(env_class(task)())
    env._freeze_rand_vec = True
    env._last_rand_vec = drawn_env(task, state_id)._last_rand_vec.copy()
    return env


@contextmanager
def _in_threads(suite: MetaWorldSuite, load: Workload) -> Iterator[tuple[str, Turn]]:
    """Give what steps an environment of every task, each in one thread at a time."""
    num_envs = min(len(load.tasks), max(len(suite.tasks), num_cores()))
    envs = [make() for make in _makers(suite, load, num_envs)]
    actions = load.actions[:num_envs, :, suite.own_numbers]

    def steps(env: Any, its_actions: np.ndarray) -> None:
        for action in its_actions:
            env.step(action)

    with ThreadPoolExecutor(num_cores()) as pool:

        def turn() -> float:
            for env in envs:
                env.reset()
            start = time.perf_counter()
            list(pool.map(steps, envs, actions))
            return actions.shape[0] * actions.shape[1] / (time.perf_counter() - start)

        yield f"metaworld's environments in {num_cores()} threads", turn
    for env in envs:
        env.close()


@contextmanager
def _in_processes(suite: MetaWorldSuite, load: Workload) -> Iterator[tuple[str, Turn]]:
    """Give what steps environments in processes, one step of all at a time."""
    from gymnasium.vector import AsyncVectorEnv

    num_envs = min(len(load.tasks), num_cores())
    actions = load.actions[:num_envs, :, suite.own_numbers].astype(np.float32)
    makers = _makers(suite, load, num_envs)
    with closing(AsyncVectorEnv(makers, context="spawn", observation_mode="different")) as envs:

        def turn() -> float:
            envs.reset()
            start = time.perf_counter()
            for step in range(actions.shape[1]):
                envs.step(actions[:, step])
            return actions.shape[0] * actions.shape[1] / (time.perf_counter() - start)

        yield f"metaworld's environments in AsyncVectorEnv, {num_envs} processes", turn


PEERS = {"threads": _in_threads, "AsyncVectorEnv": _in_processes}


def _makers(suite: MetaWorldSuite, load: Workload, count: int) -> list[partial[Any]]:
    return [
        partial(package_env, suite.tasks[task].name, int(state_id))
        for task, state_id in zip(load.tasks[:count], load.state_ids, strict=False)
    ]
