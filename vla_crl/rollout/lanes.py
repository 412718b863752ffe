"""Threads that each act in a share of the environments, so that inference and physics overlap."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import numpy as np
import torch

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.hardware import require_memory
from vla_crl.sim.backends import simulate
from vla_crl.sim.calls import require_counts
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

Lane = TypeVar("Lane")

NUM_LANES = 2
"""While the worlds of one lane move, the policy looks at those of the other."""


def simulate_lanes(
    suite: TaskSuite,
    num_envs: int,
    *,
    image_size: int,
    compute: ComputeConfig,
    tasks: Sequence[int] | None = None,
    variation: VariationConfig | None = None,
) -> list[Simulation]:
    """Spread N environments evenly over simulations, one a lane; `close_lanes` lets go of them.

    Args:
        suite: What to simulate.
        num_envs: N; a single one needs a single lane.
        image_size: Height and width of each camera image, pixels; see `Agent`.
        compute: Where, and with how many threads.
        tasks: Indices of those that will be asked for; all if None.
        variation: Of all tasks that have none of their own.

    Raises:
        ConfigError: N is below 1, the suite cannot be simulated there, or the variation does not
            fit it.
    """
    require_counts("simulate_lanes", num_envs=num_envs)
    pictures = 3 * len(suite.embodiment.cameras) * image_size**2 * num_envs
    require_memory(pictures, f"pictures of {num_envs} worlds", "choose fewer or smaller ones")
    threads = max(1, compute.num_sim_threads // NUM_LANES)
    return [
        simulate(
            suite,
            size,
            device=compute.sim_device,
            num_threads=threads,
            image_size=image_size,
            tasks=tasks,
            variation=variation,
        )
        for size in lane_sizes(num_envs, NUM_LANES)
    ]


def lane_sizes(num_envs: int, num_lanes: int) -> list[int]:
    """Divide N environments evenly among lanes; lanes for which none is left are left out."""
    sizes = [len(range(lane, num_envs, num_lanes)) for lane in range(num_lanes)]
    return [size for size in sizes if size]


def close_lanes(sims: Sequence[Simulation]) -> None:
    """Let go of the simulations' threads or of a device's memory."""
    for sim in sims:
        sim.close()


def check_lanes(where: str, sims: Sequence[Simulation]) -> None:
    """Check that simulations can be lanes.

    Raises:
        ConfigError: None, one twice, or of several suites.
    """
    if not isinstance(sims, Sequence) or not sims or len({id(sim) for sim in sims}) < len(sims):
        raise ConfigError(
            f"{where}: sims is {sims!r}, expected a list of simulations, each once; "
            "simulate_lanes makes one"
        )
    if len(names := {sim.suite.name for sim in sims}) > 1:
        raise ConfigError(f"{where}: sims are of several suites: {', '.join(sorted(names))}")


def lane_generator(seed: int, lane: int) -> torch.Generator:
    """Return randomness of a lane's own, so that what it draws does not depend on the others."""
    state = np.random.SeedSequence([seed, lane]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def run_lanes(work: Callable[[Lane], Iterator[None]], lanes: Sequence[Lane]) -> None:
    """Do the work of all lanes at once, each on a thread with its share of torch's threads.

    Small matrix products gain little from a second thread: two lanes of one thread each act faster
    than one that has both.

    Args:
        work: Yields now and then; there it is stopped when another lane fails, or by Ctrl-C.
            Gradients are off in it.
        lanes: Work of each.
    """
    num_threads, stop = torch.get_num_threads(), Event()

    @torch.no_grad()
    def run(lane: Lane) -> None:
        torch.set_num_threads(max(1, num_threads // len(lanes)))
        for _ in work(lane):
            if stop.is_set():
                return

    with ThreadPoolExecutor(len(lanes)) as threads:
        futures = [threads.submit(run, lane) for lane in lanes]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            torch.set_num_threads(num_threads)  # torch takes the last number for threads to come
    for future in done:
        future.result()
