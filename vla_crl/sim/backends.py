"""Find a suite, what simulates it and what solves it, whichever backend it is of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from vla_crl.catalog import load_attribute, suite_path
from vla_crl.config import read_toml
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.simulation import Expert, Simulation
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

NATIVE = "native"
"""The backend of a suite.toml that names none: scenes of our own."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What makes and simulates the suites of one kind; all strings are "package.module:attribute".

    A backend of your own is an instance of this class, which a suite.toml names likewise:
    `backend = "my_package.worlds:BACKEND"`. The module is imported when such a suite is looked up.
    """

    read: str
    """From the path of a suite.toml to a `TaskSuite`."""
    horizons: str | None = None
    """From the path of a suite.toml to {name of a task: its horizon}, where that is faster."""
    simulators: Mapping[str, str] = field(default_factory=dict)
    """From (suite, num_slots, image_size, tasks, variation) to a `Simulation`, all but the first
    two by keyword, for each kind of device. The one of "cpu" takes `num_threads` as well, others
    take the `device`."""
    expert: str | None = None
    """From a `Simulation` to its scripted `Expert`, if there is one."""


BACKENDS = {
    NATIVE: Backend(
        read="vla_crl.sim.native.suite:read_native",
        horizons="vla_crl.sim.native.suite:task_horizons",
        simulators={
            "cpu": "vla_crl.sim.native.vector_sim:VectorSim",
            "cuda": "vla_crl.sim.warp.warp_sim:WarpSim",
        },
        expert="vla_crl.sim.native.experts:ScriptedExpert",
    ),
    "libero": Backend(
        read="vla_crl.sim.libero.suite:read_libero",
        simulators={"cpu": "vla_crl.sim.libero.simulator:simulate_libero"},
        expert="vla_crl.sim.libero.experts:LiberoExpert",
    ),
    "metaworld": Backend(
        read="vla_crl.sim.metaworld.suite:read_metaworld",
        simulators={"cpu": "vla_crl.sim.metaworld.metaworld_sim:MetaWorldSim"},
        expert="vla_crl.sim.metaworld.expert:MetaWorldExpert",
    ),
    "foreign": Backend(
        read="vla_crl.sim.foreign.suite:read_foreign",
        simulators={"cpu": "vla_crl.sim.foreign.foreign_sim:simulate_foreign"},
    ),
}
"""Known backends by name; their modules are imported on use."""


def find_suite(name: str) -> TaskSuite:
    """Load a suite of the catalogue.

    Args:
        name: Its name, or "suite@option" with some of its `options`, such as another way to command
            its robot.

    Raises:
        ConfigError: Suite, backend or option do not exist, or its file is not as it should be.
    """
    file = suite_path(name) / "suite.toml"
    read = cast(Callable[[Path], TaskSuite], _load(_backend_of_file(file).read, file))
    suite, (_, *options) = read(file), name.split("@")
    for option in options:
        suite = suite.with_option(option)
    return suite


def task_horizons(name: str) -> dict[str, int]:
    """Return the horizon (control steps) of each task of a suite by the task's name.

    Nothing is compiled if the backend can do without.
    """
    file = suite_path(name) / "suite.toml"
    backend = _backend_of_file(file)
    if backend.horizons is None:
        return {task.name: task.horizon for task in find_suite(name).tasks}
    return cast(Callable[[Path], dict[str, int]], _load(backend.horizons, file))(file)


def simulate(
    suite: TaskSuite, num_slots: int, *, device: str = "cpu", num_threads: int = 2,
    image_size: int = 64, tasks: Sequence[int] | None = None,
    variation: VariationConfig | None = None,
) -> Simulation:  # fmt: skip
    """Allocate slots of a suite; they must be reset before use.

    Args:
        suite: What to simulate.
        num_slots: N.
        device: Where: "cpu", or "cuda:0" and the like where the backend has a simulator for GPUs.
        num_threads: Threads for physics and rendering, on the CPU.
        image_size: Height and width of each camera image, pixels.
        tasks: Task indices whose scenes are prepared now; those of others are on first use.
        variation: Of all tasks that have none of their own.

    Raises:
        ConfigError: A count is not positive, the backend or its package is missing, or it has no
            simulator for that device or no variations.
    """
    backend, kind = backend_of(suite), device.partition(":")[0]
    if kind not in backend.simulators:
        raise ConfigError(
            f"sim_device '{device}': the backend '{suite.backend}' of suite '{suite.name}' "
            f"simulates on {' and '.join(backend.simulators) or 'nothing'} only"
        )
    make = cast(Callable[..., Simulation], _load(backend.simulators[kind], suite.backend))
    where: dict[str, Any] = {"num_threads": num_threads} if kind == "cpu" else {"device": device}
    return make(suite, num_slots, image_size=image_size, tasks=tasks, variation=variation, **where)


def expert_of(sim: Simulation) -> Expert:
    """Return the scripted expert of a simulation.

    Raises:
        ConfigError: Its backend has none.
    """
    backend = backend_of(sim.suite)
    if backend.expert is None:
        raise ConfigError(
            f"suite '{sim.suite.name}': its backend '{sim.suite.backend}' has no scripted expert; "
            "use a policy, or demonstrations from elsewhere"
        )
    return cast(Callable[[Simulation], Expert], _load(backend.expert, sim.suite.backend))(sim)


def backend_of(suite: TaskSuite) -> Backend:
    """Return the backend of a suite.

    Raises:
        ConfigError: There is none of that name.
    """
    return _find_backend(suite.backend, f"suite '{suite.name}'")


def _backend_of_file(file: Path) -> Backend:
    return _find_backend(str(read_toml(file).get("backend", NATIVE)), str(file))


def _find_backend(name: str, where: str) -> Backend:
    if name in BACKENDS:
        return BACKENDS[name]
    if ":" not in name:
        raise unknown_name(where, "backend", name, BACKENDS)
    backend = load_attribute(name, where, fits=lambda value: isinstance(value, Backend))
    if not isinstance(backend, Backend):
        raise ConfigError(
            f"{where}: backend '{name}' is a {type(backend).__name__}, expected an instance of "
            "vla_crl.sim.backends.Backend"
        )
    return backend


def _load(target: str, where: object) -> object:
    return load_attribute(target, str(where))
