"""Tasks of LIBERO, baked for the tests."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_crl.catalog import suite_path
from vla_crl.sim.libero.suite import LiberoSuite, read_libero

NUM_TRAIN_STATES = 3


@pytest.fixture(scope="session")
def read_small(libero_cache: Path) -> Callable[[str], LiberoSuite]:
    """Read a suite of the catalogue, with few initial states for training."""

    def read_small(name: str) -> LiberoSuite:
        suite = read_libero(suite_path(name) / "suite.toml")
        tasks = tuple(replace(task, num_train_states=NUM_TRAIN_STATES) for task in suite.tasks)
        return replace(suite, tasks=tasks)

    return read_small


@pytest.fixture
def new_sim(read_small: Callable[[str], LiberoSuite]) -> Iterator[Callable[..., Any]]:
    """Return a function that simulates a suite of few initial states."""
    from vla_crl.sim.libero.libero_sim import LiberoSim

    sims: list[LiberoSim] = []

    def new_sim(suite: LiberoSuite, num_slots: int, **settings: Any) -> LiberoSim:
        sims.append(LiberoSim(suite, num_slots, **settings))
        return sims[-1]

    yield new_sim
    for sim in sims:
        sim.close()
