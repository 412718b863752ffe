"""A suite and its first scene, changed copies, and simulations that are closed after the test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_crl.catalog import catalog_dir
from vla_crl.sim.native import suite as suite_module
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim


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


@pytest.fixture
def load_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    """Load a copy of the suite in which one text of a file is replaced."""

    def load_changed(
        old: str, new: str, file: str = "suite.toml", suite: str = "tabletop_object"
    ) -> Suite:
        folder = Path(shutil.copytree(catalog_dir("envs"), tmp_path / "envs")) / suite
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.setattr(suite_module, "suite_path", lambda name: folder)
        return load_suite.__wrapped__("changed")

    return load_changed
