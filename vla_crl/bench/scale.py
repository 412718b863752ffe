"""What a control step costs as the number of environments grows, and how much memory they take.

As a program, `python -m vla_crl.bench.scale SUITE ENVS CHUNKS PLAYS`, it is one of the processes
that are measured; see `vla_crl.bench.turns`.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from vla_crl.bench.record import BenchRecord, against_peer, alone
from vla_crl.bench.turns import TurnProcess, serve_turns
from vla_crl.bench.workload import CHUNK_STEPS, IMAGE_SIZE, play, random_workload
from vla_crl.hardware import num_cores
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.simulation import Simulation

MEMORY_LIMITS_MIB = {("tabletop_object", 4096): 8192.0, ("libero_130", 1024): 10240.0}
"""Wanted memory of a process, by suite and number of environments."""
NUM_MIXED_TASKS = 10
"""Tasks of a mixed batch, at most: each of them is played alone as well."""
MIXED_GOAL = 0.9
"""Wanted speed of a batch of all tasks, relative to batches of one task each."""
MIB = 2**20


def bench_scale(
    suite: str = "tabletop_object",
    *,
    sizes: Sequence[int] = (64, 256, 1024, 4096),
    num_mixed_slots: int = 256,
    num_chunks: int = 2,
    num_repeats: int = 3,
    num_turn_envs: int = 1024,
) -> list[BenchRecord]:
    """Measure time per control step and memory of processes with ever more environments.

    All cores work for one process at a time; random actions, tasks in turn. The first size is the
    peer of the others. Memory is the greatest resident memory of the process, MuJoCo, numba and
    compiled kernels included.

    Args:
        suite: Its name in the catalogue.
        sizes: Numbers of environments, each in a process of its own.
        num_mixed_slots: Environments of the batches of mixed tasks and of one task.
        num_chunks: Chunks of four control steps in an episode's beginning that is played.
        num_repeats: Timed turns of each, taken alternately; the median counts.
        num_turn_envs: Fewer environments play as often as it takes to make so many in a turn.

    Returns:
        Records of the cost without and with one observation per chunk, of memory, and of the
        speed of a batch of mixed tasks beside that of the same tasks one at a time.
    """
    with ExitStack() as stack:
        children: list[TurnProcess] = []
        for size in sizes:
            numbers = (size, num_chunks, max(1, num_turn_envs // size))
            child = TurnProcess("vla_crl.bench.scale", [suite, *map(str, numbers)])
            children.append(stack.enter_context(child))
        turns = [[child.turn() for child in children] for _ in range(num_repeats)]
    answers = [
        {key: median(turn[key] for turn in column) for key in column[0]}
        for column in zip(*turns, strict=True)
    ]
    records: list[BenchRecord] = []
    for seen in ("state", f"observed_{IMAGE_SIZE}x{IMAGE_SIZE}"):
        base = answers[0][seen]
        records.append(alone(f"scale.{suite}.{seen}.{sizes[0]}", base, "us/step"))
        for size, answer in zip(sizes[1:], answers[1:], strict=True):
            name, peer = f"scale.{suite}.{seen}.{size}", f"{sizes[0]} environments"
            records.append(against_peer(name, answer[seen], "us/step", peer, base))
    for size, answer in zip(sizes, answers, strict=True):
        name, limit = f"scale.{suite}.memory.{size}", MEMORY_LIMITS_MIB.get((suite, size))
        if limit is None:
            records.append(alone(name, answer["memory"], "MiB"))
        else:
            records.append(
                against_peer(
                    name, answer["memory"], "MiB", "limit", limit, goal=1.0, goal_kind="at most"
                )
            )
    return [*records, _bench_mixed(suite, num_mixed_slots, num_chunks, num_repeats)]


def _bench_mixed(suite: str, num_slots: int, num_chunks: int, num_repeats: int) -> BenchRecord:
    """Play some tasks in one batch, and beside it each of them in a batch of the same size."""
    found = find_suite(suite)
    num_tasks = len(found.tasks)
    tasks = np.linspace(0, num_tasks - 1, min(num_tasks, NUM_MIXED_TASKS)).astype(int).tolist()
    mixed = random_workload(
        found, tasks, num_slots, num_chunks * CHUNK_STEPS, chunk_steps=CHUNK_STEPS
    )
    singles = [replace(mixed, tasks=np.full(num_slots, task)) for task in tasks]
    with _sim(suite, num_slots) as sim:
        play(mixed, sim, is_seen=True)
        costs = [
            [1.0 / play(workload, sim, is_seen=True) for workload in (mixed, single)]
            for _ in range(num_repeats)
            for single in singles
        ]
    value, peer_value = (1.0 / mean(column) for column in zip(*costs, strict=True))
    name = f"scale.{suite}.mixed_tasks.{num_slots}"
    return against_peer(name, value, "steps/s", "one task at a time", peer_value, goal=MIXED_GOAL)


@contextmanager
def _sim(suite: str, num_slots: int) -> Iterator[Simulation]:
    sim = simulate(find_suite(suite), num_slots, num_threads=num_cores(), image_size=IMAGE_SIZE)
    with closing(sim):
        yield sim


@contextmanager
def _costs_and_memory(
    suite: str, num_slots: int, num_chunks: int, num_plays: int
) -> Iterator[Callable[[], dict[str, float]]]:
    """Give what plays and returns the costs (us per control step) and the memory so far (MiB)."""
    found, num_steps = find_suite(suite), num_chunks * CHUNK_STEPS
    tasks = range(len(found.tasks))
    workload = random_workload(found, tasks, num_slots, num_steps, chunk_steps=CHUNK_STEPS)
    keys = {"state": False, f"observed_{IMAGE_SIZE}x{IMAGE_SIZE}": True}
    with _sim(suite, num_slots) as sim:

        def turn() -> dict[str, Any]:
            costs = {
                key: mean(1e6 / play(workload, sim, is_seen=is_seen) for _ in range(num_plays))
                for key, is_seen in keys.items()
            }
            return costs | {"memory": peak_memory_mib()}

        sim.reset(range(num_slots), tasks=workload.tasks, state_ids=workload.state_ids)
        sim.observe()
        sim.step_chunk(workload.actions[:, :1])  # compiles, or loads from the disk
        yield turn


def peak_memory_mib() -> float:
    """Return the greatest resident memory that this process ever had, in MiB (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no line VmHWM")
    return int(found[1]) * 1024 / MIB


if __name__ == "__main__":
    serve_turns(_costs_and_memory(sys.argv[1], *map(int, sys.argv[2:])))
