"""How fast a suite is simulated by MuJoCo Warp, beside all cores of the same machine."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import numpy as np

from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.bench.sim import record_expert, start_episodes
from vla_crl.bench.workload import CHUNK_STEPS, IMAGE_SIZE, Workload, play
from vla_crl.hardware import num_cores
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim


def bench_warp(
    suite: str = "tabletop_object",
    *,
    device: str,
    sizes: Sequence[int] = (1024, 2048, 4096, 8192),
    num_peer_slots: int = 256,
    num_chunks: int = 6,
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure control steps per second, with two cameras and with the robot's state only.

    All play the expert's recorded actions in chunks of four control steps; what has ended begins
    again. Observations stay on the device. Both sides show only the suite's first scene.

    Args:
        suite: Its name in the catalogue.
        device: Warp's name of a device, such as "cuda:0".
        sizes: Numbers of environments.
        num_peer_slots: Environments of the peer, `VectorSim` on all cores.
        num_chunks: Chunks of an episode's beginning in a timed turn.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Returns:
        Two records per size.

    Raises:
        ConfigError: The extra `warp` is missing, or there is no such device.
    """
    with contextlib.redirect_stdout(sys.stderr):  # Warp says what it compiles
        from vla_crl.sim.warp.warp_sim import WarpSim, device_name

        chip, loaded = device_name(device), load_suite(suite)
        records: list[BenchRecord] = []
        with closing(VectorSim(loaded, num_peer_slots, num_threads=num_cores())) as peer:
            peer_load = _record(peer, num_chunks)
            for size in sizes:
                with closing(WarpSim(loaded, size, device=device, image_size=IMAGE_SIZE)) as sim:
                    load = _resize(peer_load, size)
                    for seen in ("pixels", "state"):
                        rates = _alternate(load, sim, peer_load, peer, seen, num_repeats)
                        name = f"warp.{suite}.{seen}.{size}"
                        label = f"VectorSim, {num_cores()} threads"
                        records.append(against_peer(name, rates[0], "steps/s", label, rates[1]))
    return [dataclasses.replace(r, hardware=f"{chip}; {r.hardware}") for r in records]


def _record(sim: VectorSim, num_chunks: int) -> Workload:
    start_episodes(sim)
    tasks, state_ids = sim.tasks, sim.state_ids
    actions, _, _ = record_expert(sim, num_chunks * CHUNK_STEPS)
    return Workload(sim.suite.name, tasks, state_ids, actions)


def _resize(load: Workload, num_slots: int) -> Workload:
    rows = np.arange(num_slots) % len(load.tasks)
    return Workload(load.suite, load.tasks[rows], load.state_ids[rows], load.actions[rows])


def _alternate(
    load: Workload, sim: Any, peer_load: Workload, peer: VectorSim, seen: str, num_repeats: int
) -> tuple[float, float]:
    """Return the median rates of both; each has an untimed turn first."""
    is_seen = seen == "pixels"
    turns: tuple[Callable[[], float], ...] = (
        lambda: _play(load, sim, is_seen=is_seen),
        lambda: play(peer_load, peer, is_seen=is_seen),
    )
    for turn in turns:
        turn()
    pairs = [[turn() for turn in turns] for _ in range(num_repeats)]
    value, peer_value = (median(rates) for rates in zip(*pairs, strict=True))
    return value, peer_value


def _play(load: Workload, sim: Any, *, is_seen: bool) -> float:
    """Play as `workload.play` does, with observations that stay on the device."""
    slots, num_steps = np.arange(sim.num_slots), 0
    sim.reset(slots, tasks=load.tasks, state_ids=load.state_ids)
    start = time.perf_counter()
    for step in range(0, load.actions.shape[1], CHUNK_STEPS):
        sim.observe(images=is_seen)
        result = sim.step_chunk(load.actions[:, step : step + CHUNK_STEPS])
        num_steps += int(result.num_steps.sum())
        over = slots[result.terminated | result.truncated]
        if len(over):
            sim.reset(over, tasks=load.tasks[over], state_ids=load.state_ids[over])
    return num_steps / (time.perf_counter() - start)
