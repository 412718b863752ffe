"""The package robosuite 1.4, imported without chatter, where its version works."""

import importlib.metadata
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import ModuleType

import mujoco

from vla_crl.errors import ConfigError, install_extra
from vla_crl.hardware import OPENCV_INSTALL

INSTALL = install_extra("libero")
FIRST_MUJOCO, UNFIT_MUJOCO = (3, 2), (3, 9)
"""The first version with which it was tried, and the first whose C interface its controllers do not
fit."""
ROBOSUITE = "1.4."
"""How a version begins that works; 1.5 has other environments."""


def import_robosuite() -> ModuleType:
    """Import robosuite.

    Raises:
        ConfigError: It is missing, has a version that does not work, or lacks a library of the
            system.
    """
    if importlib.util.find_spec("robosuite") is None:
        raise ConfigError(f"the package robosuite is missing: {INSTALL}")
    version = tuple(int(part) for part in mujoco.__version__.split(".")[:2])
    if not FIRST_MUJOCO <= version < UNFIT_MUJOCO:
        first, unfit = (".".join(map(str, bound)) for bound in (FIRST_MUJOCO, UNFIT_MUJOCO))
        raise ConfigError(
            f"robosuite 1.4 does not run on mujoco {mujoco.__version__}, expected {first} or later "
            f"and before {unfit}: pip install 'mujoco>={first},<{unfit}'"
        )
    version = importlib.metadata.version("robosuite")
    if not version.startswith(ROBOSUITE):
        raise ConfigError(
            f"robosuite {version} is installed, expected {ROBOSUITE}*: pip install robosuite==1.4.0"
        )
    try:
        with quietly():
            import cv2  # noqa: F401 - robosuite imports it only where it is used
            import robosuite
    except ImportError as error:
        advice = OPENCV_INSTALL if ".so" in str(error) else INSTALL
        raise ConfigError(f"robosuite cannot be imported: {error}. To mend it: {advice}") from error
    return robosuite


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what a package prints, logs and warns of to itself, and the environment as it was.

    robosuite would choose how everything in this process draws (MUJOCO_GL).
    """
    disabled, drawing = logging.root.manager.disable, os.environ.get("MUJOCO_GL")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)
        if drawing is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = drawing
