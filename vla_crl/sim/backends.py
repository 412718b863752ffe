"""Find a suite, whichever backend simulates it."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from vla_crl.catalog import load_attribute, suite_path
from vla_crl.config import read_toml
from vla_crl.errors import unknown_name
from vla_crl.sim.scene_config import SceneConfig
from vla_crl.sim.suite import load_suite, read_suite
from vla_crl.sim.task_suite import TaskSuite

BACKENDS = {"metaworld": "vla_crl.sim.metaworld.suite:read_metaworld"}
"""What reads the suite.toml of suites that somebody else's package simulates."""


def find_suite(name: str) -> TaskSuite:
    """Load a suite of the catalogue; its `simulate` allocates slots.

    A suite.toml with the key `backend` is read without the backend's package.

    Raises:
        ConfigError: The suite or its backend does not exist, or its file is not as it should be.
    """
    file = suite_path(name) / "suite.toml"
    backend = read_toml(file).get("backend")
    if backend is None:
        return load_suite(name)
    if str(backend) not in BACKENDS:
        raise unknown_name(str(file), "backend", str(backend), BACKENDS)
    read = cast(Callable[[Path], TaskSuite], load_attribute(BACKENDS[str(backend)], str(file)))
    return read(file)


def task_names(name: str) -> list[str]:
    """Return the names of a suite's tasks without compiling anything."""
    file = suite_path(name) / "suite.toml"
    if "backend" in read_toml(file):
        return [task.name for task in find_suite(name).tasks]
    config = read_suite(file)
    if isinstance(config, SceneConfig):
        return [task.name for task in config.tasks]
    return [reference.name or reference.task for reference in config.tasks]
