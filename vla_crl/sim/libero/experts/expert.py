"""The scripted expert of LIBERO's tasks: what a goal still lacks, one term after another."""

from typing import Any

import numpy as np

from vla_crl.sim.libero.experts.motion import action_of
from vla_crl.sim.libero.experts.place import Memory, command_to_place
from vla_crl.sim.libero.experts.view import View, view_of
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.simulation import NO_THING


class LiberoExpert:
    """Acts on the first term of the goal that does not hold yet."""

    def __init__(self, sim: LiberoSim) -> None:
        """Prepare for the slots of a simulation."""
        self._sim = sim
        self._memory = [Memory() for _ in range(sim.num_slots)]
        self._last = np.full((sim.num_slots, 3), -1)

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the expert's action [B, 7] for each of `slots`."""
        return np.stack([self._act(int(slot)) for slot in slots])

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that matter now: what is moved, and where to (or NO_THING)."""
        return np.full((len(slots), 2), NO_THING)

    def _act(self, slot: int) -> np.ndarray:
        sim, row = self._sim, self._sim.row(slot)
        now = np.array([row.task, sim.state_ids[slot], row.num_steps])
        last = self._last[slot]
        if (now[:2] != last[:2]).any() or not 0 <= now[2] - last[2] <= 1:
            self._memory[slot] = Memory()
        view, memory = view_of(sim, slot), self._memory[slot]
        if now[2] != last[2]:
            memory.watch(view.grip)
        self._last[slot] = now
        terms = sim.baked(slot).about["goal"]
        term = terms[0]
        model = view.shapes.model
        thing = model.body(term["body"]).id
        return action_of(view, command_to_place(view, self._memory[slot], thing, _goal(view, term)))


def _goal(view: View, term: dict[str, Any]) -> np.ndarray:
    model = view.shapes.model
    if term["kind"] == "on_thing":
        return view.pos[model.body(term["target"]).id, :2]
    return view.site(model.site(term["target"]).id)[0][:2]
