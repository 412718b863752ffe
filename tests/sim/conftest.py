"""A suite and its first scene, and simulations that are closed after the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vla_crl.sim.scene import Scene
from vla_crl.sim.suite import Suite, load_suite
from vla_crl.sim.vector_sim import VectorSim


@pytest.fixture(scope="session")
def suite() -> Suite:
    return load_suite("tabletop_object")


@pytest.fixture(scope="session")
def scene(suite: Suite) -> Scene:
    return suite.scenes[0]


@pytest.fixture
def new_sim(suite: Suite) -> Iterator[Callable[..., VectorSim]]:
    sims: list[VectorSim] = []

    def new_sim(num_slots: int, *, suite: Suite = suite, **settings: Any) -> VectorSim:
        sims.append(VectorSim(suite, num_slots, **settings))
        return sims[-1]

    yield new_sim
    for sim in sims:
        sim.close()
