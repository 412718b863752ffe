"""One scene in N copies on a device: physics, control and goals of a control step."""

import copy
from typing import Any

import mujoco
import mujoco_warp
import numpy as np
import warp as wp

from vla_crl.errors import ConfigError
from vla_crl.sim.native.kernel.controller import FINGER, JOINTS, action_size, state_size
from vla_crl.sim.native.kernel.slots import SceneConstants, Slots
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.variation import MAX_LATENCY
from vla_crl.sim.warp.kernels.controller import command, delay, put_controller, ramp
from vla_crl.sim.warp.kernels.episodes import Physics, Progress, begin, judge, keep, watch
from vla_crl.sim.warp.kernels.predicates import Poses, put_goals

ROWS_PER_CONTACT = 6
"""Constraint rows of a contact with friction in all directions (condim 6, elliptic cone)."""
PHYSICS = {
    "time": "time", "qpos": "qpos", "qvel": "qvel", "warmstart": "qacc_warmstart", "ctrl": "ctrl",
    "mocap_pos": "mocap_pos", "mocap_quat": "mocap_quat",
}  # fmt: skip
"""Fields of `Physics` by their names in MuJoCo Warp's data."""


def warp_model(scene: Scene) -> mujoco.MjModel:
    """Return a copy of a scene's model with the options that MuJoCo Warp knows.

    It never resets a world by itself, which is what the option `autoreset="disable"` asks for, but
    does not know the option. Nothing ever sleeps in it.
    Its sensor kernels are left out, since no scene has a sensor.

    Raises:
        ConfigError: The scene has what the backend does not simulate.
    """
    model = copy.copy(scene.model)
    for what, count in (("sensors", model.nsensor), ("actuator activations", model.na)):
        if count:
            raise ConfigError(
                f"WarpSim: scene '{scene.config.scene}' has {what}, which this backend does not "
                "simulate; use VectorSim"
            )
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    return model


class Worlds:
    """N copies of one scene; every method expects to run within `wp.ScopedDevice`.

    Attributes:
        num_worlds: N.
        model: MuJoCo's model.
        warp_model: MuJoCo Warp's.
        data: MuJoCo Warp's data of all worlds.
        progress: Where the episodes stand.
    """

    def __init__(
        self,
        scene: Scene,
        constants: SceneConstants,
        num_worlds: int,
        device: wp.Device,
        num_contacts: int,
    ) -> None:
        """Put N copies of the scene on the device; they must begin an episode before use.

        Args:
            scene: What to simulate.
            constants: Of the scene.
            num_worlds: N.
            device: Where.
            num_contacts: Contacts of a world at most.

        Raises:
            ConfigError: MuJoCo Warp does not support something in the scene.
        """
        self.model, self._scene, self._constants = warp_model(scene), scene, constants
        self.num_worlds = num_worlds
        try:
            self.warp_model = mujoco_warp.put_model(self.model)
        except NotImplementedError as error:
            raise ConfigError(
                f"WarpSim: MuJoCo Warp does not support scene '{scene.config.scene}': {error}; "
                "use VectorSim"
            ) from error
        self.data = data = mujoco_warp.put_data(
            self.model, self._first_state(), nworld=num_worlds, nconmax=num_contacts,
            njmax=ROWS_PER_CONTACT * num_contacts,
        )  # fmt: skip
        self._arm = put_controller(constants, str(device))
        self._goals = put_goals(constants.goals, str(device))
        self._poses = Poses()
        names = ("xpos", "site_xpos", "site_xmat", "geom_xpos", "geom_xmat", "qpos")
        fields = ("body_pos", "site_pos", "site_mat", "geom_pos", "geom_mat", "qpos")
        for field, name in zip(fields, names, strict=True):
            setattr(self._poses, field, getattr(data, name))
        self._poses.grip_site = constants.grip_site
        self._current, self._kept, self.progress = Physics(), Physics(), Progress()
        for field, name in PHYSICS.items():
            setattr(self._current, field, getattr(data, name))
            setattr(self._kept, field, wp.clone(getattr(data, name)))
        for field in ("acting", "task", "num_steps", "outcome", "fastest"):
            setattr(self.progress, field, wp.zeros(num_worlds, dtype=int))
        self.progress.speed = wp.zeros(num_worlds, dtype=float)
        size, width = state_size(len(constants.arm_actuators)), action_size(constants.controller)
        self._controller = wp.zeros((num_worlds, size), dtype=wp.float64)
        self._controller_before = wp.zeros_like(self._controller)
        self._previous = wp.zeros_like(self._controller)
        self._action = wp.zeros((num_worlds, width), dtype=wp.float64)
        self._base_shift = wp.zeros(num_worlds, dtype=wp.vec3d)
        self._latency = wp.zeros(num_worlds, dtype=int)
        self._pending = wp.zeros((num_worlds, MAX_LATENCY, width), dtype=wp.float64)
        self._pending_before = wp.zeros_like(self._pending)
        self._peaks = wp.zeros(2, dtype=int)
        self._graph: Any = None

    def begin(self, worlds: np.ndarray, slots: Slots) -> None:
        """Put `worlds` [B], indices of slots, into the initial states that `slots` hold."""
        model, initial = self.model, Physics()
        dynamics, varied = slots.dynamics, slots.varied
        physics = dynamics.physics[worlds]
        controller = dynamics.controller[worlds, : self._controller.shape[1]]
        sizes = (1, model.nq, model.nv, model.nv, model.nu, 3 * model.nmocap, 4 * model.nmocap)
        ends = np.cumsum(sizes)
        parts = np.split(physics[:, : ends[-1]], ends[:-1], axis=1)
        shapes = {"time": (), "mocap_pos": (model.nmocap, 3), "mocap_quat": (model.nmocap, 4)}
        for field, part in zip(PHYSICS, parts, strict=True):
            shape = (len(worlds), *shapes.get(field, part.shape[1:]))
            values = part.astype(np.float32).reshape(shape)
            setattr(initial, field, wp.array(values, dtype=getattr(self._current, field).dtype))
        wp.launch(
            begin, len(worlds),
            [
                wp.array(worlds, dtype=int), initial,
                wp.array(controller, dtype=wp.float64), self._current, self._kept,
                self._controller,
            ],
        )  # fmt: skip
        put_rows(self._base_shift, worlds, varied.base_shift[worlds])
        put_rows(self._latency, worlds, varied.latency[worlds])
        put_rows(self._pending, worlds, dynamics.pending[worlds])
        self.refresh()

    def refresh(self) -> None:
        """Recompute all poses from the states."""
        mujoco_warp.kinematics(self.warp_model, self.data)
        mujoco_warp.camlight(self.warp_model, self.data)

    def step_chunk(
        self, actions: np.ndarray, acting: np.ndarray, task: np.ndarray, num_steps: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Run K control steps; worlds that do not act stay as they are.

        Args:
            actions: [N, K, A] in [-1, 1].
            acting: [N] bool.
            task: [N] task indices.
            num_steps: [N] control steps since the episodes began.

        Returns:
            Arrays of `Progress` by name.

        Raises:
            ConfigError: There were more contacts than there is room for.
        """
        progress = self.progress
        for name, value in (("acting", acting), ("task", task), ("num_steps", num_steps)):
            getattr(progress, name).assign(value.astype(np.int32))
        progress.outcome.zero_()
        wp.copy(self._controller_before, self._controller)
        wp.copy(self._pending_before, self._pending)
        size = self._action.size
        by_step = wp.array(np.ascontiguousarray(actions.swapaxes(0, 1)), dtype=wp.float64)
        for step in range(actions.shape[1]):
            wp.copy(self._action, by_step, src_offset=step * size, count=size)
            self._control_step()
        wp.launch(keep, self.num_worlds, [self._current, self._kept])
        self.refresh()
        names = ("num_steps", "outcome", "fastest", "speed")
        result = {name: getattr(progress, name).numpy() for name in names}
        self._check_room()
        return result

    def dynamics(self) -> dict[str, np.ndarray]:
        """Return what `Dynamics` are of all worlds, but for what sleeps."""
        return self._dynamics(self._controller, self._pending)

    def dynamics_before(self) -> dict[str, np.ndarray]:
        """Return the same from before the last chunk; physics only of worlds that blew up."""
        return self._dynamics(self._controller_before, self._pending_before)

    def _dynamics(self, controller: wp.array, pending: wp.array) -> dict[str, np.ndarray]:
        parts = [getattr(self._current, field).numpy() for field in PHYSICS]
        packed = [part.reshape(self.num_worlds, -1) for part in parts]
        return {
            "physics": np.concatenate(packed, axis=1),  # as by STATE_SPEC
            "controller": controller.numpy(),
            "pending": pending.numpy(),
        }

    def _first_state(self) -> mujoco.MjData:
        """Return the first initial state, in which worlds without an episode stand.

        They are stepped and put back as well; in the model's own state all objects would overlap.
        """
        data, initial = mujoco.MjData(self.model), initial_states(self._scene)
        data.qpos[:], data.mocap_pos[:] = initial.qpos[0], initial.mocap_pos[0]
        data.ctrl[self._constants.arm_actuators] = initial.controller[0, JOINTS]
        data.ctrl[self._constants.finger_actuators] = initial.controller[0, FINGER]
        mujoco.mj_kinematics(self.model, data)
        return data

    def _control_step(self) -> None:
        """Launch the kernels of a control step, on a GPU as one graph."""
        if self._graph is not None:
            wp.capture_launch(self._graph)
            return
        self._launch()  # also compiles, or loads from the disk
        if wp.get_device().is_cuda:
            with wp.ScopedCapture() as capture:
                self._launch()
            self._graph = capture.graph

    def _launch(self) -> None:
        """Control, physics with joints moving linearly, goals; see `stepping._control_step`."""
        data, num_worlds, progress = self.data, self.num_worlds, self.progress
        wp.launch(
            delay, num_worlds,
            [progress.acting, self._latency, progress.num_steps, self._pending, self._action],
        )  # fmt: skip
        wp.launch(
            command, num_worlds,
            [
                self._arm, progress.acting, self._action, data.site_xpos, self._base_shift,
                self._controller, self._previous,
            ],
        )  # fmt: skip
        for substep in range(self._scene.num_substeps):
            fraction = (substep + 1) / self._scene.num_substeps
            moved = [self._arm, fraction, self._controller, self._previous, data.qpos, data.ctrl]
            wp.launch(ramp, num_worlds, moved)
            mujoco_warp.step(self.warp_model, data)
            counts = [data.nefc, data.nacon, data.ncollision, self._peaks]
            wp.launch(watch, num_worlds, counts)
        mujoco_warp.kinematics(self.warp_model, data)
        wp.launch(
            judge, num_worlds,
            [
                self._goals, self._constants.horizon, self._poses, self._current, self._kept,
                progress,
            ],
        )  # fmt: skip

    def _check_room(self) -> None:
        rows, contacts = (int(peak) for peak in self._peaks.numpy())
        self._peaks.zero_()
        if contacts > self.data.naconmax or rows > self.data.njmax:
            needed = max(-(-contacts // self.num_worlds), -(-rows // ROWS_PER_CONTACT))
            raise ConfigError(
                f"WarpSim: no room for {contacts} contacts in {self.num_worlds} worlds and "
                f"{rows} constraint rows in one of them, so some were left out; expected at most "
                f"{self.data.naconmax} and {self.data.njmax}; set num_contacts to {needed} or more"
            )


def put_rows(array: wp.array, rows: np.ndarray, values: np.ndarray) -> None:
    """Write values [B, ...] into `rows` [B] of an array [N, ...] on its device."""
    index: list[Any] = [wp.array(rows, dtype=int, device=array.device)]
    chosen: Any = wp.indexedarray(array, index + [None] * (array.ndim - 1))
    wp.copy(chosen, wp.array(values, dtype=array.dtype, device=array.device))


def take_rows(array: wp.array, rows: np.ndarray) -> wp.array:
    """Return a copy of `rows` [B] of an array [N, ...] on its device."""
    index: list[Any] = [wp.array(rows, dtype=int, device=array.device)]
    chosen: Any = wp.indexedarray(array, index + [None] * (array.ndim - 1))
    taken = wp.empty((len(rows), *array.shape[1:]), dtype=array.dtype, device=array.device)
    wp.copy(taken, chosen)
    return taken
