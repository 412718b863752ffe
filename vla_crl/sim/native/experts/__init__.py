"""Scripted experts: actions from privileged state, for demonstrations and as upper reference."""

from vla_crl.sim.native.experts.expert import ScriptedExpert

__all__ = ["ScriptedExpert"]
