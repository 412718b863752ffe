"""Draw batches of MuJoCo frames: on the CPU with rays and triangles, or with MuJoCo's OpenGL."""

from vla_crl.sim.renderer.appearance import Appearance, model_appearance, wear
from vla_crl.sim.renderer.batch_renderer import BatchRenderer
from vla_crl.sim.renderer.drawable import GEOM_GROUPS, drawable_views
from vla_crl.sim.renderer.gl_renderer import GLRenderer
from vla_crl.sim.renderer.looks import LookName
from vla_crl.sim.renderer.placement import Placement
from vla_crl.sim.renderer.poses import Poses

__all__ = [
    "GEOM_GROUPS",
    "Appearance",
    "BatchRenderer",
    "GLRenderer",
    "LookName",
    "Placement",
    "Poses",
    "drawable_views",
    "model_appearance",
    "wear",
]
