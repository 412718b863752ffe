"""Many environments of one suite on a GPU, with the contract of `VectorSim`."""

import threading
from collections.abc import Sequence

import numpy as np
import warp as wp

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.errors import ConfigError
from vla_crl.sim.calls import (
    chunk_result,
    episode_rows,
    require_counts,
    require_running,
    require_scenes,
    reset_arrays,
    rows_of,
)
from vla_crl.sim.divergence import Divergence, joint_name, moves
from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.kernel.slots import allocate_slots, constants_of
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.outcomes import DIVERGED
from vla_crl.sim.simulation import Indices
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.warp.drawing import Drawing
from vla_crl.sim.warp.kernels.senses import add_image_noise, add_state_noise, feel
from vla_crl.sim.warp.varied_model import VariedModel
from vla_crl.sim.warp.worlds import Worlds

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
        images = warp.to_torch(sim.images_on_device())    # [2048, cameras, H, W, 3], no copy
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
            tasks: Task indices whose scenes are put on the device now; the others' when used.
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
        self._constants = [constants_of(suite, index) for index in range(len(suite.scenes))]
        self._slots = allocate_slots(suite, self._constants, num_slots)
        self._episodes = Episodes(suite, self._constants, self._slots, variation)
        self._worlds: dict[int, Worlds] = {}
        self._varied: dict[int, VariedModel] = {}
        self._drawings: dict[int, Drawing] = {}
        self._lock = threading.RLock()
        with wp.ScopedDevice(self._device):
            shape = (num_slots, len(suite.embodiment.cameras), image_size, image_size)
            self._images = wp.zeros(shape, dtype=wp.vec3ub)
            self._state = wp.zeros((num_slots, len(suite.embodiment.state)), dtype=float)
            self._chosen = wp.zeros(num_slots, dtype=int)
            self._fingers = [wp.array(pair, dtype=int) for pair in self._episodes.fingers]
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
        return self._slots.task.copy()

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
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)
        with self._lock, wp.ScopedDevice(self._device):
            self._episodes.begin(rows, task, ids)
            scenes = self.suite.scene_of_task[task]
            for scene in np.unique(scenes):
                part, worlds = rows[scenes == scene], self._worlds_of(int(scene))
                if scene in self._varied:
                    self._varied[scene].write(part, self._slots)
                worlds.begin(part, self._slots)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends.

        Args:
            actions: [B, K, 7] in [-1, 1] (clipped), one chunk per stepped slot.
            slots: [B] slot indices; all slots by default.

        Raises:
            SpecError: Wrong shape, a value that is not finite, or a slot whose episode is over.
            ConfigError: There were more contacts than `num_contacts` allows.
        """
        rows = rows_of(self, slots)
        checked = check_actions(actions, len(rows), len(self.suite.embodiment.action))
        state = self._slots
        require_running(self, rows, state.outcome[rows])
        by_slot = np.zeros((self.num_slots, *checked.shape[1:]))
        by_slot[rows] = checked
        before, scenes = state.num_steps[rows], self._scenes_of(rows)
        with self._lock, wp.ScopedDevice(self._device):
            for scene in np.unique(scenes):
                self._step_scene(int(scene), rows[scenes == scene], by_slot)
        outcome = state.outcome[rows]
        return chunk_result(outcome, state.num_steps[rows] - before)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Draw the cameras of `slots` (all by default) and copy what they see and feel to the host.

        All worlds of their scenes are drawn, whichever are asked for. The images of all slots are
        one buffer, which the next call overwrites.

        Raises:
            SpecError: A slot has no episode.
        """
        rows = episode_rows(self, slots)
        with self._lock:
            state: np.ndarray = self._feel(rows).numpy()
            words = self._episodes.instructions(rows)
            if not images:
                nothing = np.empty((len(rows), self._images.shape[1], 0, 0, 3), np.uint8)
                return Observation(nothing, state[rows], words)
            drawn: np.ndarray = self._draw(rows).numpy()
            return Observation(drawn if slots is None else drawn[rows], state[rows], words)

    def images_on_device(self) -> wp.array:
        """Draw all slots that have begun an episode; [N, cameras, H, W] of three bytes.

        The array is always the same, overwritten by the next observation. `warp.to_torch` makes it
        a tensor [N, cameras, H, W, 3] uint8 without a copy, and so does DLPack.
        """
        with self._lock:
            return self._draw(self._begun())

    def state_on_device(self) -> wp.array:
        """Return [N, 8] float32, see `vla_crl.contracts.POSE_STATE`; as `images_on_device`."""
        with self._lock:
            return self._feel(self._begun())

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on, as `VectorSim.get_states`.

        `VectorSim.set_states` takes it: to look at the worlds from there.
        """
        state = self._slots
        physics, controller = state.physics.copy(), state.controller.copy()
        pending = state.pending.copy()
        rows = self._begun()
        scenes = self._scenes_of(rows)
        with self._lock, wp.ScopedDevice(self._device):
            for scene in np.unique(scenes):
                part, worlds = rows[scenes == scene], self._worlds[int(scene)]
                packed = worlds.physics()
                controlled: np.ndarray = worlds.rows.numpy()
                physics[part, : packed.shape[1]] = packed[part]
                controller[part, : controlled.shape[1]] = controlled[part]
                pending[part] = worlds.pending.numpy()[part]
        return {
            "physics": physics,
            "tree_asleep": state.tree_asleep.copy(),
            "controller": controller,
            "task": state.task.copy(),
            "num_steps": state.num_steps.copy(),
            "outcome": state.outcome.copy(),
            "pending": pending,
            "state_id": self._episodes.state_id.copy(),
        }

    def _step_scene(self, scene: int, rows: np.ndarray, actions: np.ndarray) -> None:
        state, worlds = self._slots, self._worlds[scene]
        acting = np.isin(np.arange(self.num_slots), rows)
        result = worlds.step_chunk(actions, acting, state.task, state.num_steps)
        before = state.num_steps[rows]
        for name in ("num_steps", "outcome"):
            getattr(state, name)[rows] = result[name][rows]
        blown, model = np.flatnonzero(state.outcome[rows] == DIVERGED), worlds.model
        if not len(blown):
            return
        physics, controller = worlds.physics(), worlds.rows_before.numpy()
        pending = worlds.pending_before.numpy()
        for k in blown:
            row = rows[k]
            self.divergences.append(
                Divergence(
                    suite=self.suite.name,
                    task=self.suite.tasks[state.task[row]].name,
                    state_id=int(self._episodes.state_id[row]),
                    num_steps=int(before[k]),
                    cause=moves(
                        joint_name(model, int(model.dof_jntid[result["fastest"][row]])),
                        float(result["speed"][row]),
                    ),
                    actions=actions[row].copy(),
                    state={
                        "physics": physics[row].astype(np.float64),
                        "tree_asleep": state.tree_asleep[row].copy(),
                        "controller": controller[row].copy(),
                        "pending": pending[row].copy(),
                    },
                    variation=self.variation,
                )
            )

    def _draw(self, rows: np.ndarray) -> wp.array:
        scenes = self._scenes_of(rows)
        with wp.ScopedDevice(self._device):
            for scene in np.unique(scenes):
                drawing = self._drawing_of(int(scene))
                drawing.draw(self._mask(rows[scenes == scene]), self._images)
            if noise := self._noise(self._episodes.image_noise, rows):
                size = (self.num_slots, self._images.size // self.num_slots)
                wp.launch(add_image_noise, size, [self._images, *noise])
        return self._images

    def _feel(self, rows: np.ndarray) -> wp.array:
        scenes = self._scenes_of(rows)
        with wp.ScopedDevice(self._device):
            for scene in np.unique(scenes):
                self._chosen.assign(self._mask(rows[scenes == scene]))
                data = self._worlds[int(scene)].data
                wp.launch(
                    feel, self.num_slots,
                    [
                        self._chosen, data.site_xpos, data.site_xmat, data.qpos,
                        self._constants[scene].grip_site, self._fingers[scene], self._state,
                    ],
                )  # fmt: skip
            if noise := self._noise(self._episodes.state_noise, rows):
                wp.launch(add_state_noise, self._state.shape, [self._state, *noise])
        return self._state

    def _noise(self, sigma: np.ndarray, rows: np.ndarray) -> list[wp.array]:
        """Return what noise depends on, for slots [N]; nothing if `rows` have none."""
        if not sigma[rows].any():
            return []
        key, num_steps = self._episodes.noise_key.view(np.uint64), self._slots.num_steps
        return [
            wp.array(sigma * self._mask(rows), dtype=wp.float64),
            wp.array(key, dtype=wp.uint64),
            wp.array(num_steps, dtype=int),
        ]

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.num_slots, np.int32)
        mask[rows] = 1
        return mask

    def _worlds_of(self, scene: int) -> Worlds:
        if scene not in self._worlds:
            constants, episodes = self._constants[scene], self._episodes
            self._worlds[scene] = worlds = Worlds(
                self.suite.scenes[scene], constants, self.num_slots, self._device,
                self._num_contacts,
            )  # fmt: skip
            if episodes.varies[scene]:
                self._varied[scene] = VariedModel(worlds, constants, episodes, scene)
        return self._worlds[scene]

    def _drawing_of(self, scene: int) -> Drawing:
        if scene not in self._drawings:
            self._drawings[scene] = Drawing(
                self._worlds[scene], self.suite.embodiment.cameras, self._image_size, self.num_slots
            )
        return self._drawings[scene]

    def _scenes_of(self, rows: np.ndarray) -> np.ndarray:
        return self.suite.scene_of_task[self._slots.task[rows]]

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
