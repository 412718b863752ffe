"""Draw batches of MuJoCo frames on the CPU by casting rays at geometric primitives."""

from vla_crl.sim.renderer.appearance import Appearance
from vla_crl.sim.renderer.batch_renderer import BatchRenderer

__all__ = ["Appearance", "BatchRenderer"]
