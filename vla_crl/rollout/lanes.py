"""Threads that each act in a share of the environments, so that inference and physics overlap."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import numpy as np
import torch

from vla_crl.sim.backends import simulate
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
    num_threads: int = NUM_LANES,
    image_size: int = 64,
    variation: VariationConfig | None = None,
) -> list[Simulation]:
    """Spread N environments evenly over simulations, one a lane.

    Args:
        suite: What to simulate.
        num_envs: N; a single one needs a single lane.
        num_threads: Threads for physics and rendering, shared by the lanes, at least one each.
        image_size: Height and width of each camera image, pixels.
        variation: Of all tasks that have none of their own.
    """
    sizes = [len(range(lane, num_envs, NUM_LANES)) for lane in range(NUM_LANES)]
    threads = max(1, num_threads // NUM_LANES)
    return [
        simulate(suite, size, num_threads=threads, image_size=image_size, variation=variation)
        for size in sizes
        if size
    ]


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
