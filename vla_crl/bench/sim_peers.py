"""How fast a suite is simulated, beside the vector environments that people use."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from vla_crl.bench.peer_env import PlainEnv
from vla_crl.bench.peers import choose_peers, require_extra, require_gl
from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.bench.sim import record_expert, start_episodes
from vla_crl.bench.workload import CHUNK_STEPS, IMAGE_SIZE, Turn, Workload, alternate, play
from vla_crl.hardware import num_cores
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim

WHERE = "bench sim --peers"
GOALS = {"pixels": 10.0, "state": 3.0}
"""Wanted speed-up over environments that observe in every control step, by what is observed."""


class PeerEnvs(Protocol):
    """What the vector environments of Gymnasium and stable-baselines3 have in common."""

    def reset(self) -> Any:
        """Begin an episode in every environment."""

    def step(self, actions: np.ndarray, /) -> Any:
        """Step every environment; one whose episode is over begins again."""

    def get_attr(self, name: str, /) -> Sequence[Any]:
        """Return an attribute of every environment."""
        ...

    def close(self) -> None:
        """Stop the processes."""


def _async_vector_env(makers: list[Callable[[], PlainEnv]]) -> PeerEnvs:
    from gymnasium.vector import AsyncVectorEnv

    return AsyncVectorEnv(makers, context="spawn")


def _subproc_vec_env(makers: list[Callable[[], PlainEnv]]) -> PeerEnvs:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    return SubprocVecEnv(makers, start_method="spawn")  # pyright: ignore[reportArgumentType]


VECTOR_ENVS = {"AsyncVectorEnv": _async_vector_env, "SubprocVecEnv": _subproc_vec_env}
SIM_PEERS = (*VECTOR_ENVS, "one_thread")


def bench_sim_peers(
    suite: str = "tabletop_object",
    peers: Sequence[str] = (),
    *,
    num_slots: int = 64,
    num_chunks: int = 6,
    num_repeats: int = 3,
    envs_per_core: Sequence[int] = (1, 8),
) -> list[BenchRecord]:
    """Measure control steps per second, with two cameras and with the robot's state only.

    All play the expert's recorded actions from the same initial states, and whatever ends begins
    again. `VectorSim` observes once per chunk of four control steps. A peer is a `PlainEnv` in
    every process; it observes in every control step, as Gymnasium environments do, and in the
    records called "chunked" once per chunk. Of the numbers of processes the peer's best counts.

    Args:
        suite: Its name in the catalogue.
        peers: Some of `SIM_PEERS`; all by default.
        num_slots: Robots of `VectorSim`, tasks in turn.
        num_chunks: Chunks of four control steps in a timed turn.
        num_repeats: Timed turns of each, taken alternately; the median counts.
        envs_per_core: Numbers of a peer's processes to try, per core.

    Raises:
        ConfigError: An unknown peer, or one that cannot run here.
    """
    chosen = choose_peers(WHERE, peers, SIM_PEERS)
    if "SubprocVecEnv" in chosen:
        require_extra(WHERE, "SubprocVecEnv", "stable_baselines3", "sb3")
    for peer in chosen:
        if peer in VECTOR_ENVS:
            require_gl(WHERE, peer)
    records: list[BenchRecord] = []
    with closing(VectorSim(load_suite(suite), num_slots, num_threads=num_cores())) as sim:
        start_episodes(sim)
        tasks, state_ids = sim.tasks, sim.state_ids
        actions, _, _ = record_expert(sim, num_chunks * CHUNK_STEPS)
    load = Workload(suite, tasks, state_ids, actions)
    _compile(load)
    for seen in GOALS:
        with _sim_turn(load, seen, num_cores()) as turn:
            for peer in chosen:
                if peer == "one_thread":
                    records.append(_against_one_thread(load, seen, turn, num_repeats))
                else:
                    records += _against_vector_env(
                        load, seen, turn, num_repeats, peer=peer, envs_per_core=envs_per_core
                    )
    return records


def _against_one_thread(load: Workload, seen: str, turn: Turn, num_repeats: int) -> BenchRecord:
    with _sim_turn(load, seen, 1) as peer_turn:
        value, peer_value = alternate([turn, peer_turn], num_repeats)
    name = f"sim.{load.suite}.{seen}.vs_one_thread"
    return against_peer(name, value, "steps/s", "VectorSim, 1 thread", peer_value)


def _against_vector_env(
    load: Workload, seen: str, turn: Turn, num_repeats: int, *,
    peer: str, envs_per_core: Sequence[int],
) -> Iterator[BenchRecord]:  # fmt: skip
    """Return the records of a vector environment that observes in every step, and per chunk."""
    measured: dict[int, list[tuple[float, float, str]]] = {1: [], CHUNK_STEPS: []}
    for num_envs in sorted({count * num_cores() for count in envs_per_core}):
        with _peer_envs(load, seen, peer, num_envs) as envs:
            for stride, results in measured.items():
                peer_turn = partial(_play_peer, load, envs, stride)
                value, peer_value = alternate([turn, peer_turn], num_repeats)
                results.append((value, peer_value, f"{peer}, {num_envs} processes"))
    for stride, results in measured.items():
        value, peer_value, label = max(results, key=lambda result: result[1])
        name, goal = f"sim.{load.suite}.{seen}.vs_{peer}", GOALS[seen]
        if stride == 1:
            yield against_peer(name, value, "steps/s", label, peer_value, goal=goal)
        else:
            label += ", observed once per chunk"
            yield against_peer(f"{name}_chunked", value, "steps/s", label, peer_value)


@contextmanager
def _sim_turn(load: Workload, seen: str, num_threads: int) -> Iterator[Turn]:
    num_slots, suite = len(load.tasks), load_suite(load.suite)
    sim = VectorSim(suite, num_slots, num_threads=num_threads, image_size=IMAGE_SIZE)
    with closing(sim):
        yield partial(play, load, sim, is_seen=seen == "pixels")


@contextmanager
def _peer_envs(load: Workload, seen: str, peer: str, num_envs: int) -> Iterator[PeerEnvs]:
    image_size = IMAGE_SIZE if seen == "pixels" else None
    makers = [
        partial(PlainEnv, load.suite, int(task), int(state_id), image_size=image_size)
        for task, state_id in zip(
            np.resize(load.tasks, num_envs), np.resize(load.state_ids, num_envs), strict=True
        )
    ]
    with closing(VECTOR_ENVS[peer](makers)) as envs:
        yield envs


def _compile(load: Workload) -> None:
    """Let numba compile what the peers call here once, not in all their processes at a time."""
    with closing(PlainEnv(load.suite, int(load.tasks[0]), int(load.state_ids[0]))) as env:
        env.reset()
        env.step(load.actions[0, 0])


def _play_peer(load: Workload, envs: PeerEnvs, stride: int) -> float:
    """Play with `stride` control steps between two observations."""
    taken = envs.get_attr("num_control_steps")
    actions = load.actions[np.arange(len(taken)) % len(load.actions)]
    envs.reset()
    start = time.perf_counter()
    for step in range(0, actions.shape[1], stride):
        envs.step(actions[:, step] if stride == 1 else actions[:, step : step + stride])
    seconds = time.perf_counter() - start
    return (sum(envs.get_attr("num_control_steps")) - sum(taken)) / seconds
