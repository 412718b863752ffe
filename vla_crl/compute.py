"""Where and in which precision a command computes: one section of every recipe."""

from dataclasses import dataclass
from typing import Literal

from vla_crl.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Devices, precision and threads; nothing else is tried where something is missing."""

    device: str = "cpu"
    """Where the policy runs and learns: "cpu", "cuda" or "cuda:1"."""
    sim_device: str = "cpu"
    """Where worlds are simulated; "cuda:0" steps and draws them by MuJoCo Warp (extra warp)."""
    dtype: Dtype = "float32"
    """Numbers in which the backbone computes, and its keys and values are stored. What is trained
    keeps its weights in float32, and so do action expert, log-probabilities and adapters."""
    num_torch_threads: int = 2
    """Threads of the policy's matrix products, on the CPU."""
    num_sim_threads: int = 2
    """Threads for physics and rendering on the CPU, shared by the lanes, at least one each."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_torch_threads", "num_sim_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"compute.{name} is {getattr(self, name)}, expected at least 1")
