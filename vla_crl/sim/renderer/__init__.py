"""Draw batches of MuJoCo frames on the CPU: rays cast at primitives, triangles of meshes."""

from vla_crl.sim.renderer.appearance import Appearance, model_appearance, wear
from vla_crl.sim.renderer.batch_renderer import BatchRenderer
from vla_crl.sim.renderer.placement import Placement, Poses

__all__ = ["Appearance", "BatchRenderer", "Placement", "Poses", "model_appearance", "wear"]
