"""Environments of somebody else as suites: in processes of their own, with time-outs.

What hangs or dies there takes nothing along: a worker is started again, and the episodes that it
played are played again, from their actions. Commands are JSON, arrays lie in shared memory.
"""
