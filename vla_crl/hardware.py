"""The machine in words, for records of speed and of runs."""

import os
import platform
from pathlib import Path

from vla_crl.errors import ConfigError

GL_INSTALL = "apt-get install libegl1 libosmesa6 libgl1-mesa-dri libglvnd0"
"""What a machine without a display needs for MuJoCo's own renderer."""
OPENCV_INSTALL = "apt-get install libgl1 libglib2.0-0"
"""What OpenCV, which robosuite and so LIBERO import, needs of a machine without a display."""


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def hardware_name() -> str:
    """Return the machine in words, e.g. "AMD EPYC 7B13, 2 cores"."""
    return f"{cpu_model()}, {num_cores()} core{'s' if num_cores() > 1 else ''}"


def available_memory(device: str = "cpu") -> int:
    """Return how many bytes a program may still take, of the machine or of a GPU of CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="utf-8").splitlines() if meminfo.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):  # free, or held by caches that give way
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(num_bytes: float, what: str, advice: str = "", device: str = "cpu") -> None:
    """Check before the work that there is room for its data.

    Args:
        num_bytes: They take.
        what: They are.
        advice: What to do where there is not.
        device: Of whose memory.

    Raises:
        ConfigError: There is not.
    """
    available = available_memory(device)
    if num_bytes > available:
        raise ConfigError(
            f"{what}: would take {num_bytes / 2**30:,.1f} GiB, but device '{device}' has "
            f"{available / 2**30:,.1f} GiB left{advice and f'; {advice}'}"
        )
