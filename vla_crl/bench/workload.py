"""The episodes that a simulation and its peers play, so that all do the same work."""

import time
from dataclasses import dataclass

import numpy as np

from vla_crl.sim.native.vector_sim import VectorSim

CHUNK_STEPS = 4
"""Control steps between two observations."""
IMAGE_SIZE = 64


@dataclass(frozen=True, eq=False)
class Workload:
    """Slot i plays actions i from an initial state of its own; what has ended begins again.

    Attributes:
        suite: Name in the catalogue.
        tasks: [N] task indices.
        state_ids: [N] initial states.
        actions: [N, T, 7], T a multiple of `CHUNK_STEPS`.
    """

    suite: str
    tasks: np.ndarray
    state_ids: np.ndarray
    actions: np.ndarray


def play(workload: Workload, sim: VectorSim, *, is_seen: bool) -> float:
    """Play a workload in chunks and return control steps per second.

    Args:
        workload: With as many slots as `sim`.
        sim: Where; its episodes are lost.
        is_seen: Whether the cameras are observed before every chunk, or only the robot's state.
    """
    slots, num_steps = np.arange(sim.num_slots), 0
    sim.reset(slots, tasks=workload.tasks, state_ids=workload.state_ids)
    start = time.perf_counter()
    for step in range(0, workload.actions.shape[1], CHUNK_STEPS):
        _ = sim.observe() if is_seen else (sim.grip_pose(), sim.finger_positions())
        result = sim.step_chunk(workload.actions[:, step : step + CHUNK_STEPS])
        num_steps += int(result.num_steps.sum())
        over = slots[result.terminated | result.truncated]
        sim.reset(over, tasks=workload.tasks[over], state_ids=workload.state_ids[over])
    return num_steps / (time.perf_counter() - start)
