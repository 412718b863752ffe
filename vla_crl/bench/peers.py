"""Which peers a benchmark runs beside, and what they need; none is ever left out silently."""

import importlib.util
import os
from collections.abc import Collection, Sequence

from vla_crl.cli.doctor import draws_frames
from vla_crl.errors import ConfigError, install_extra, unknown_name
from vla_crl.hardware import GL_INSTALL


def choose_peers(where: str, names: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Return the peers that were named, or all that are known if none was.

    Args:
        where: The command, for the error message.
        names: What the user named, in any order.
        known: All peers of the benchmark.

    Raises:
        ConfigError: There is no such peer; names the nearest one.
    """
    for name in names:
        if name not in known:
            raise unknown_name(where, "peer", name, known)
    return tuple(name for name in known if name in names or not names)


def require_extra(where: str, peer: str, module: str, extra: str) -> None:
    """Check that an optional package is there.

    Raises:
        ConfigError: It is not; names the extra that brings it.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{where}: peer '{peer}' needs the package {module}: {install_extra(extra)}, "
            "or name other peers after --peers"
        )


def require_gl(where: str, peer: str, backend: str | None = None) -> None:
    """Check that MuJoCo's renderer draws frames with a GL backend, by default with MUJOCO_GL's.

    Raises:
        ConfigError: It does not; says what to install.
    """
    chosen = backend or os.environ.get("MUJOCO_GL", "")
    if not draws_frames(chosen):
        raise ConfigError(
            f"{where}: peer '{peer}' needs MuJoCo's renderer, which draws nothing with "
            f"MUJOCO_GL={chosen}: {GL_INSTALL}; 'vla-crl doctor' says which backends work. "
            "Or name other peers after --peers"
        )
