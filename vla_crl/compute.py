"""Where and in which precision a command computes: one section of every recipe."""

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from vla_crl.config import Settings
from vla_crl.errors import ConfigError, install_extra

Dtype = Literal["float32", "bfloat16"]
NumThreads = Annotated[int, Interval(ge=1, le=1024)]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
KEPT_BYTES = 2**30
"""What is below is kept when it is freed."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Settings):
    """Devices, precision and threads; nothing else is tried where something is missing."""

    device: str = "cpu"
    """Where the policy runs and learns: "cpu", "cuda" or "cuda:1"."""
    sim_device: str = "cpu"
    """Where worlds are simulated; "cuda:0" steps and draws them by MuJoCo Warp (extra warp)."""
    dtype: Dtype = "float32"
    """Numbers in which the backbone computes, and its keys and values are stored. What is trained
    keeps its weights in float32, and so do action expert, log-probabilities and adapters."""
    num_torch_threads: NumThreads = 2
    """Threads of the policy's matrix products, on the CPU."""
    num_sim_threads: NumThreads = 2
    """Threads for physics and rendering on the CPU, shared by the lanes, at least one each."""

    def __post_init__(self) -> None:
        """Check how devices are named."""
        super().__post_init__()
        for name, pattern, expected in (
            ("device", r"cpu|cuda(:\d+)?", "'cpu', 'cuda' or 'cuda:1' and the like"),
            ("sim_device", r"cpu|cuda:\d+", "'cpu' or 'cuda:0' and the like"),
        ):
            if not re.fullmatch(pattern, getattr(self, name)):
                raise ConfigError(f"{name} is '{getattr(self, name)}', expected {expected}")

    def prepare(self) -> None:
        """Check that the devices are there and give torch its threads; call it before the work.

        Raises:
            ConfigError: A device, or what drives it, is missing.
        """
        import torch

        if self.device != "cpu":
            _require_cuda("device", self.device)
            can_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            if self.dtype == "bfloat16" and not can_bfloat16:
                name = torch.cuda.get_device_name(self.device)
                raise ConfigError(f"dtype 'bfloat16': {name} cannot compute in it; use float32")
        if self.sim_device != "cpu":
            if importlib.util.find_spec("mujoco_warp") is None:
                raise ConfigError(
                    f"sim_device '{self.sim_device}': MuJoCo Warp is not installed; "
                    f"{install_extra('warp')}, or simulate on the 'cpu'"
                )
            _require_cuda("sim_device", self.sim_device)
        torch.set_num_threads(self.num_torch_threads)
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the C library keep the memory of large tensors for the next ones of their kind.

    glibc gives it back to the system and gets it anew, zeroed page by page: most of the time of
    copying a minibatch. Other C libraries do as they do.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _require_cuda(name: str, device: str) -> None:
    """Check that torch sees a GPU."""
    import torch

    count = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) < count:
        return
    build = torch.version.cuda and f"CUDA {torch.version.cuda}"
    found = f"finds {count or 'no'} GPU{'s' * (count != 1)}" if build else "was built without CUDA"
    raise ConfigError(
        f"{name} '{device}': torch {torch.__version__} ({build or 'CPU only'}) {found}; "
        "choose 'cpu', or install a torch and a driver that see the GPU"
    )
