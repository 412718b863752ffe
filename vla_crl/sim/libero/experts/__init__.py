"""A scripted expert for LIBERO's tasks: demonstrations, and an upper reference."""

from vla_crl.sim.libero.experts.expert import LiberoExpert

__all__ = ["LiberoExpert"]
