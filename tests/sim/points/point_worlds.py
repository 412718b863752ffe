"""A backend of one's own, as small as one can be: points on a line that are to reach 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from vla_crl.config import read_toml
from vla_crl.contracts import ChunkResult, Embodiment, Observation, check_actions
from vla_crl.sim.backends import Backend
from vla_crl.sim.calls import chosen_slots, chunk_result, require_running, reset_arrays
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.outcomes import RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.simulation import Indices
from vla_crl.sim.task_suite import SuiteTask, TaskSuite
from vla_crl.sim.variation import VariationConfig

STEP = 0.25
BACKEND = Backend(read="point_worlds:read_points", simulators={"cpu": "point_worlds:PointSim"})


@dataclass(frozen=True, eq=False, kw_only=True)
class PointSuite(TaskSuite):
    backend: ClassVar[str] = "point_worlds:BACKEND"

    @property
    def embodiment(self) -> Embodiment:
        return Embodiment(action=("delta_x",), state=("x",), cameras=("top",))

    @property
    def film_camera(self) -> str:
        return "top"

    @property
    def control_hz(self) -> float:
        return 10.0

    @property
    def train_ids(self) -> range:
        return range(3)

    @property
    def test_ids(self) -> range:
        return range(3, 5)


def read_points(file: Path) -> PointSuite:
    tasks = (
        SuiteTask(name="right", instruction="go right", split="train", horizon=8),
        SuiteTask(name="far", instruction="go far", split="heldout", horizon=8),
    )
    return PointSuite(
        name=file.parent.name, description=read_toml(file)["description"], tasks=tasks
    )


class PointSim:
    def __init__(
        self, suite: PointSuite, num_slots: int, *, num_threads: int, image_size: int,
        tasks: list[int] | None, variation: VariationConfig | None,
    ) -> None:  # fmt: skip
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        self.settings = num_threads, image_size, tasks, variation
        self.tasks, self.state_ids = np.zeros(num_slots, int), np.full(num_slots, -1)
        self._x, self._num_steps = np.zeros(num_slots), np.zeros(num_slots, int)
        self._outcome = np.full(num_slots, RUNNING)

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        chosen, task, ids = reset_arrays(self, slots, tasks, state_ids)
        self.tasks[chosen], self.state_ids[chosen] = task, ids
        self._x[chosen], self._num_steps[chosen] = -ids / 10, 0
        self._outcome[chosen] = RUNNING

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        chosen = chosen_slots(self, slots)
        checked = check_actions(actions, len(chosen), 1)
        require_running(self, chosen, self._outcome[chosen])
        before = self._num_steps[chosen]
        for slot, chunk in zip(chosen, checked[..., 0], strict=True):
            for action in chunk:
                self._x[slot] += STEP * action
                self._num_steps[slot] += 1
                if self._x[slot] >= 1.0:
                    self._outcome[slot] = SUCCESS
                elif self._num_steps[slot] == self.suite.horizon:
                    self._outcome[slot] = TIME_LIMIT
                if self._outcome[slot] != RUNNING:
                    break
        return chunk_result(self._outcome[chosen], self._num_steps[chosen] - before)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        chosen = chosen_slots(self, slots)
        size = self.settings[1] if images else 0
        drawn = np.zeros((len(chosen), 1, size, size, 3), np.uint8)
        told = tuple(self.suite.tasks[task].instruction for task in self.tasks[chosen])
        return Observation(drawn, self._x[chosen, None].astype(np.float32), told)

    def close(self) -> None:
        pass
