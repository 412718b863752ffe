"""Run again what blew up, from its record."""

from typing import Any, cast

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC


def replay(divergence: Divergence, sim: VectorSim) -> bool:
    """Run the chunk again in slot 0, whose episode is lost.

    Args:
        divergence: What happened.
        sim: `VectorSim(load_suite(record.suite), 1, variation=record.variation)`.

    Returns:
        Whether physics blew up again.

    Raises:
        ConfigError: The divergence is of another suite, task or variation.
        SpecError: Its state does not fit the scene, or the simulation is not a `VectorSim`.
    """
    if not isinstance(cast(Any, sim), VectorSim):
        raise SpecError(
            f"replay: got a {type(sim).__name__}, expected a VectorSim: no other backend's slots "
            "can be put into a recorded state"
        )
    suite = sim.suite
    if divergence.suite != suite.name:
        raise ConfigError(
            f"replay: a divergence of suite '{divergence.suite}', but the simulation is of "
            f"'{suite.name}'"
        )
    if divergence.variation != sim.variation:
        raise ConfigError(
            f"replay: the simulation varies {sim.variation}, the one that blew up "
            f"{divergence.variation}; make it with VectorSim(suite, 1, variation=record.variation)"
        )
    task = suite.task_index(divergence.task)
    expected = mujoco.mj_stateSize(suite.scenes[suite.tasks[task].scene].model, STATE_SPEC)
    sim.reset([0], tasks=[task], state_ids=[divergence.state_id])
    states = sim.get_states()
    states["num_steps"][0] = divergence.num_steps
    for name in ("physics", "tree_asleep", "controller", "pending"):
        own, recorded = states[name][0], divergence.state.get(name, np.empty(0))
        if name == "physics":
            own = own[:expected]
        if recorded.shape != own.shape:
            raise SpecError(
                f"replay: the record's {name} has shape {recorded.shape}, the slot's {own.shape}; "
                "the suite has changed since"
            )
        own[:] = recorded
    sim.set_states(states)
    return bool(sim.step_chunk(divergence.actions[None], [0]).diverged[0])
