"""Meta-World's own scripted policies."""

import warnings

import numpy as np

from vla_crl.sim.metaworld.config import THINGS
from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim
from vla_crl.sim.metaworld.models import require_metaworld
from vla_crl.sim.simulation import NO_THING


class MetaWorldExpert:
    """Acts by the policy that Meta-World ships for each task; a function of its observation."""

    def __init__(self, sim: MetaWorldSim) -> None:
        """Prepare for all tasks of the simulation's suite."""
        require_metaworld()
        from metaworld.policies import ENV_POLICY_MAP

        self._sim = sim
        self._policies = [ENV_POLICY_MAP[task.name]() for task in sim.suite.tasks]
        named = [[THINGS.index(thing) for thing in task.things] for task in sim.suite.tasks]
        self._named = np.array([[*things, NO_THING][:2] for things in named])

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the expert's action [B, A] for each of `slots`; the hand is not told to turn."""
        observed = self._sim.observed(slots)
        actions = np.zeros((len(slots), len(self._sim.suite.embodiment.action)))
        with warnings.catch_warnings():  # they warn of gains that the clipping below needs
            warnings.filterwarnings("ignore", message="Constant.* may be too high")
            for action, task, seen in zip(actions, self._sim.tasks[slots], observed, strict=True):
                action[self._sim.suite.own_numbers] = self._policies[task].get_action(seen)
        return np.clip(actions, -1.0, 1.0)

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the things that the instructions name: object and goal (or NO_THING)."""
        return self._named[self._sim.tasks[slots]]
