"""LIBERO itself in its own process: `python -m vla_crl.bench.libero_turns PEER SUITE TASKS STEPS`.

See `vla_crl.bench.turns`. TASKS are indices with commas between them. A turn takes STEPS control
steps of each environment, of the same workload as ours, and answers control steps per second.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from vla_crl.bench.libero_envs import PictureEnv, StateEnv, read_suite
from vla_crl.bench.turns import serve_turns
from vla_crl.bench.workload import Turn, Workload, random_workload
from vla_crl.hardware import num_cores
from vla_crl.sim.libero.package import import_libero
from vla_crl.sim.libero.suite import LiberoSuite

PIXELS = 128
"""What LIBERO's own cameras render by default."""


@contextmanager
def one_process(suite: LiberoSuite, load: Workload, num_envs: int, kind: Any) -> Iterator[Turn]:
    """Give what steps the environments of the first slots one after the other.

    Args:
        suite: Of the tasks.
        load: What is played.
        num_envs: How many of its slots.
        kind: Makes an environment of (suite, task, state id).
    """
    with ExitStack() as stack:
        envs = [
            stack.enter_context(closing(kind(suite, int(task), int(state_id))))
            for task, state_id in zip(load.tasks[:num_envs], load.state_ids, strict=False)
        ]

        def turn() -> float:
            seconds = 0.0
            for env, actions in zip(envs, load.actions, strict=False):
                env.reset()
                start = time.perf_counter()
                for action in actions:
                    env.step(action)
                seconds += time.perf_counter() - start
            return num_envs * load.actions.shape[1] / seconds

        yield turn


@contextmanager
def vector_env(suite: LiberoSuite, load: Workload) -> Iterator[Turn]:
    """Give what steps LIBERO's `SubprocVectorEnv`, slot i in process i."""
    multiprocessing.set_start_method("spawn")
    makers = [
        partial(StateEnv, suite, int(task), int(state_id))
        for task, state_id in zip(load.tasks, load.state_ids, strict=True)
    ]
    with closing(import_libero().envs.SubprocVectorEnv(makers)) as envs:

        def turn() -> float:
            envs.reset()
            start = time.perf_counter()
            for step in range(load.actions.shape[1]):
                envs.step(load.actions[:, step])
            return load.actions.shape[0] * load.actions.shape[1] / (time.perf_counter() - start)

        yield turn


def main(arguments: Sequence[str]) -> None:
    """Prepare a peer and take turns."""
    peer, suite_name, tasks, num_steps = arguments
    suite, chosen = read_suite(suite_name), [int(task) for task in tasks.split(",")]
    num_envs = num_cores() if peer == "SubprocVectorEnv" else len(chosen)
    load = random_workload(suite, chosen, num_envs, int(num_steps), chunk_steps=1)
    if peer == "SubprocVectorEnv":
        serve_turns(vector_env(suite, load))
    else:
        kind = StateEnv if peer == "original" else partial(PictureEnv, pixels=PIXELS)
        serve_turns(one_process(suite, load, num_envs, kind))


if __name__ == "__main__":
    main(sys.argv[1:])
