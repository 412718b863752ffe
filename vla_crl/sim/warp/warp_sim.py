"""Many environments of one suite on a GPU, with the contract of `VectorSim`."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import warp as wp

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.errors import ConfigError
from vla_crl.sim.calls import (
    begun_slots,
    checked_states,
    chosen_slots,
    chunk_result,
    require_counts,
    require_running,
    require_scenes,
    reset_arrays,
)
from vla_crl.sim.divergence import Divergence, joint_name, moves
from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.scene_constants import allocate_slots, constants_of
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.outcomes import DIVERGED
from vla_crl.sim.simulation import Indices
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.warp.drawing import Drawing
from vla_crl.sim.warp.kernels.senses import add_image_noise, add_state_noise, feel
from vla_crl.sim.warp.varied_model import VariedModel
from vla_crl.sim.warp.worlds import Worlds, take_rows

NUM_CONTACTS = 64
"""Room for contacts, per world."""


class WarpSim:
    """N slots of one suite on one device of Warp.

    A scene that is in use has N worlds on the device, slot i being world i of its task's scene.
    MuJoCo Warp steps all N at once, so a chunk for some slots costs as much as one for all; worlds
    that are not stepped, or whose episode has ended, are put back after every control step. Physics
    computes in 32 bits: an episode resembles that of `VectorSim`, it does not equal it. So does a
    picture: same outlines, other shading; textures show on planes and meshes, in the material's
    own colour.

        sim = WarpSim(load_suite("tabletop_object"), num_slots=2048, device="cuda:0")
        sim.reset(range(2048), tasks=[0] * 2048, state_ids=range(2048))
        images = torch.from_dlpack(sim.observe().images)  # [2048, cameras, H, W, 3], no copy
        result = sim.step_chunk(actions)

    Calls from several threads wait for each other.
    """

    def __init__(
        self, suite: Suite, num_slots: int, *, device: str, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
        num_contacts: int = NUM_CONTACTS,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            device: Warp's name of a device: "cuda:0", or "cpu".
            image_size: Height and width of each camera image, pixels.
            tasks: Task indices whose scenes are put on the device now; those of others are on first
                use.
            variation: Of all tasks that have none of their own.
            num_contacts: Room for contacts, per world.

        Raises:
            ConfigError: A count is no whole number from 1 on, or there is no such device.
        """
        require_counts(
            "WarpSim", num_slots=num_slots, image_size=image_size, num_contacts=num_contacts
        )
        require_scenes("WarpSim", suite)
        self.suite, self.num_slots, self.variation = suite, num_slots, variation
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._device, self._num_contacts = _device(device), num_contacts
        self._image_size = image_size
        self._slots = allocate_slots(suite, num_slots)
        self._episodes = Episodes(suite, self._slots, variation)
        self._worlds: dict[int, Worlds] = {}
        self._varied: dict[int, VariedModel] = {}
        self._drawings: dict[int, Drawing] = {}
        self._lock = threading.RLock()
        with wp.ScopedDevice(self._device):
            shape = (num_slots, len(suite.embodiment.cameras), image_size, image_size)
            self._images = wp.zeros(shape, dtype=wp.vec3ub)
            self._state = wp.zeros((num_slots, len(suite.embodiment.state)), dtype=float)
            self._chosen = wp.zeros(num_slots, dtype=int)
            self._felt = [wp.array(joints, dtype=int) for joints in suite.felt_qpos]
            for scene in np.unique(suite.scene_of_task[list(tasks or [])]):
                self._worlds_of(int(scene))

    def close(self) -> None:
        """Let go of the worlds; the device's memory is free when no array of them is in use."""
        self._worlds.clear()
        self._varied.clear()
        self._drawings.clear()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._slots.progress.task.copy()

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._episodes.state_id.copy()

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; see `VectorSim.reset`.

        Raises:
            SpecError: An index is out of range or the lengths differ.
            ConfigError: MuJoCo Warp does not support a task's scene.
        """
        begun, task, ids = reset_arrays(self, slots, tasks, state_ids)
        with self._lock, wp.ScopedDevice(self._device):
            self._episodes.begin(begun, task, ids)
            self._put(begun)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends.

        Args:
            actions: [B, K, A] in [-1, 1] (clipped), one chunk per stepped slot.
            slots: [B] slot indices; all slots by default.

        Raises:
            SpecError: Wrong shape, a value that is not finite, or a slot whose episode is over.
            ConfigError: There were more contacts than `num_contacts` allows.
        """
        stepped, progress = chosen_slots(self, slots), self._slots.progress
        checked = check_actions(actions, len(stepped), len(self.suite.embodiment.action))
        require_running(self, stepped, progress.outcome[stepped])
        by_slot = np.zeros((self.num_slots, *checked.shape[1:]))
        by_slot[stepped] = checked
        before = progress.num_steps[stepped]
        with self._lock, wp.ScopedDevice(self._device):
            for scene, part in self._by_scene(stepped):
                self._step_scene(scene, part, by_slot)
        return chunk_result(progress.outcome[stepped], progress.num_steps[stepped] - before)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Draw the cameras of `slots` (all by default) and read their state and instruction.

        Images [B, cameras, H, W] of three bytes and state are arrays of the device, which
        `torch.from_dlpack` takes as they are; their `numpy()` copies them to the host. The images
        of all slots are one buffer, which the next call overwrites. All worlds of the scenes are
        drawn, whichever are asked for.

        Raises:
            SpecError: A slot has no episode.
        """
        seen = begun_slots(self, slots)
        drawn: Any = np.empty((len(seen), self._images.shape[1], 0, 0, 3), np.uint8)
        with self._lock, wp.ScopedDevice(self._device):
            state: Any = take_rows(self._feel(seen), seen)
            if images:
                self._draw(seen)
                drawn = self._images if slots is None else take_rows(self._images, seen)
        return Observation(drawn, state, self._episodes.instructions(seen))

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on, as `VectorSim.get_states`.

        `VectorSim.set_states` takes it: to look at the worlds from there.
        """
        slots = self._slots
        fields = slots.dynamics._asdict() | slots.progress._asdict()
        states = {name: array.copy() for name, array in fields.items()}
        with self._lock, wp.ScopedDevice(self._device):
            for scene, part in self._by_scene(self._begun()):
                worlds = self._worlds[scene]
                for name, array in worlds.dynamics().items():
                    states[name][part, : array.shape[1]] = array[part]
        return states | {"state_id": self._episodes.state_id.copy()}

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Raises:
            SpecError: They do not fit this suite and number of slots; nothing has changed.
            ConfigError: MuJoCo Warp does not support a task's scene.
        """
        checked = checked_states(self, states, self.get_states())
        with self._lock, wp.ScopedDevice(self._device):
            self._episodes.continue_from(checked)
            self._put(self._begun())

    def _put(self, slots: np.ndarray) -> None:
        """Bring what the episodes of `slots` say to the device."""
        for scene, part in self._by_scene(slots):
            worlds = self._worlds_of(scene)
            if scene in self._varied:
                self._varied[scene].write(part, self._slots)
            worlds.begin(part, self._slots)

    def _step_scene(self, scene: int, slots: np.ndarray, actions: np.ndarray) -> None:
        progress, worlds = self._slots.progress, self._worlds[scene]
        acting = np.isin(np.arange(self.num_slots), slots)
        result = worlds.step_chunk(actions, acting, progress.task, progress.num_steps)
        before = progress.num_steps[slots]
        for name in ("num_steps", "outcome"):
            getattr(progress, name)[slots] = result[name][slots]
        blown, model = np.flatnonzero(progress.outcome[slots] == DIVERGED), worlds.model
        if not len(blown):
            return
        dynamics = worlds.dynamics_before()
        for k in blown:
            slot = slots[k]
            state = {name: np.array(array[slot], float) for name, array in dynamics.items()}
            self.divergences.append(
                Divergence(
                    suite=self.suite.name,
                    task=self.suite.tasks[progress.task[slot]].name,
                    state_id=int(self._episodes.state_id[slot]),
                    num_steps=int(before[k]),
                    cause=moves(
                        joint_name(model, int(model.dof_jntid[result["fastest"][slot]])),
                        float(result["speed"][slot]),
                    ),
                    actions=actions[slot].copy(),
                    state=state | {"tree_asleep": self._slots.dynamics.tree_asleep[slot].copy()},
                    variation=self.variation,
                )
            )

    def _draw(self, slots: np.ndarray) -> None:
        """Draw `slots` into their rows of the images."""
        for scene, part in self._by_scene(slots):
            self._drawing_of(scene).draw(self._mask(part), self._images)
        if noise := self._noise(self._episodes.image_noise, slots):
            size = (self.num_slots, self._images.size // self.num_slots)
            wp.launch(add_image_noise, size, [self._images, *noise])

    def _feel(self, slots: np.ndarray) -> wp.array:
        """Return [N, S] states, those of `slots` as they are now."""
        for scene, part in self._by_scene(slots):
            self._chosen.assign(self._mask(part))
            data = self._worlds[scene].data
            wp.launch(
                feel, self.num_slots,
                [
                    self._chosen, data.site_xpos, data.site_xmat, data.qpos,
                    int(self.suite.grip_sites[scene]), self._felt[scene], self._state,
                ],
            )  # fmt: skip
        if noise := self._noise(self._episodes.state_noise, slots):
            wp.launch(add_state_noise, self._state.shape, [self._state, *noise])
        return self._state

    def _noise(self, sigma: np.ndarray, slots: np.ndarray) -> list[wp.array]:
        """Return what noise depends on, of all slots [N]; nothing if `slots` have none."""
        if not sigma[slots].any():
            return []
        key, num_steps = self._episodes.noise_key.view(np.uint64), self._slots.progress.num_steps
        return [
            wp.array(sigma * self._mask(slots), dtype=wp.float64),
            wp.array(key, dtype=wp.uint64),
            wp.array(num_steps, dtype=int),
        ]

    def _mask(self, slots: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.num_slots, np.int32)
        mask[slots] = 1
        return mask

    def _by_scene(self, slots: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return the scenes that `slots` are in, each with those of them."""
        scenes = self.suite.scene_of_task[self._slots.progress.task[slots]]
        return [(scene, slots[scenes == scene]) for scene in np.unique(scenes).tolist()]

    def _worlds_of(self, scene: int) -> Worlds:
        if scene not in self._worlds:
            constants = constants_of(self.suite, scene)
            self._worlds[scene] = worlds = Worlds(
                self.suite.scenes[scene], constants, self.num_slots, self._device,
                self._num_contacts,
            )  # fmt: skip
            if self._episodes.varies[scene]:
                self._varied[scene] = VariedModel(worlds, constants, self._episodes, scene)
        return self._worlds[scene]

    def _drawing_of(self, scene: int) -> Drawing:
        if scene not in self._drawings:
            self._drawings[scene] = Drawing(
                self._worlds[scene], self.suite.embodiment.cameras, self._image_size, self.num_slots
            )
        return self._drawings[scene]

    def _begun(self) -> np.ndarray:
        return np.flatnonzero(self._episodes.state_id >= 0)


def device_name(device: str) -> str:
    """Return what the device is, e.g. "NVIDIA H100 80GB HBM3".

    Raises:
        ConfigError: There is no such device.
    """
    return _device(device).name


def _device(name: str) -> wp.Device:
    known = [str(device) for device in wp.get_devices()]
    if name not in known:
        raise ConfigError(
            f"WarpSim: Warp finds no device '{name}' on this machine, only {', '.join(known)}; "
            "a GPU needs NVIDIA's driver"
        )
    return wp.get_device(name)
