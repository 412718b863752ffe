"""A suite's world as a plain Gymnasium environment: what peers run in their processes.

Written as such environments usually are: an MjModel and an MjData of its own, a Python loop over
`mj_step`, `mujoco.Renderer` for the cameras. Controller and success condition are the suite's,
called as compiled functions, so an episode is the same as in `VectorSim`.
"""

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numba import njit

from vla_crl.bench.render import LEFT_OUT
from vla_crl.sim.machine_code import source_version
from vla_crl.sim.native.kernel.controller import JOINTS, MAX_JOINT_LEAD_RAD, command
from vla_crl.sim.native.kernel.predicates import Poses, goal_reached
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.outcomes import MAX_SPEED
from vla_crl.sim.senses import action_space, state_space


class PlainEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task from one initial state; a step is one control step and returns what is seen then.

    A step also takes a chunk of actions [K, 7] and then returns what is seen after the last of
    them: the cheapest way to feed a policy that plans in chunks.
    """

    def __init__(
        self, suite: str, task: int, state_id: int, *, image_size: int | None = None
    ) -> None:
        """Build the world.

        Args:
            suite: A suite of the catalogue.
            task: Index of one of its tasks.
            state_id: The initial state of every episode.
            image_size: Height and width of the images, pixels; None: only the state is observed.
        """
        self._suite = loaded = load_suite(suite)
        index = loaded.tasks[task].scene
        scene = loaded.scenes[index]
        self._model, self._constants, self._task = scene.model, constants_of(loaded, index), task
        self._data = data = mujoco.MjData(self._model)
        initial = initial_states(scene)
        start_qpos = loaded.tasks[task].start_qpos
        self._qpos = np.where(np.isnan(start_qpos), initial.qpos[state_id], start_qpos)
        self._mocap_pos = initial.mocap_pos[state_id]
        self._start = initial.controller[state_id]
        self._state = self._start.copy()
        arm, fingers = self._constants.arm_actuators, self._constants.finger_actuators
        self._command_index = np.empty(self._model.nu, np.int64)
        self._command_index[arm] = JOINTS.start + np.arange(len(arm))
        self._command_index[fingers] = len(self._state) - 1
        self._fraction = np.arange(1, scene.num_substeps + 1)[:, None] / scene.num_substeps
        self._felt = loaded.felt_qpos[index]
        site = self._constants.grip_site
        self._grip, self._grip_mat = data.site_xpos[site], data.site_xmat[site]
        self._poses = Poses(
            data.xpos, data.site_xpos, data.site_xmat, data.geom_xpos, data.geom_xmat, data.qpos,
            self._grip,
        )  # fmt: skip
        self._renderer = (
            mujoco.Renderer(self._model, image_size, image_size) if image_size else None
        )
        self._episode_steps = 0
        self.num_control_steps = 0
        """Control steps taken since the environment was built."""
        self.action_space = action_space(loaded)
        observed: dict[str, spaces.Space[Any]] = {"state": state_space(loaded.embodiment)}
        if image_size:
            shape = (len(loaded.embodiment.cameras), image_size, image_size, 3)
            observed["images"] = spaces.Box(0, 255, shape, np.uint8)
        self.observation_space = spaces.Dict(observed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode again."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.mocap_pos[:] = self._qpos, self._mocap_pos
        self._state[:] = self._start
        self._data.ctrl[:] = self._state[self._command_index]
        self._episode_steps = 0
        self._refresh()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one control step, or those of a chunk until the episode ends."""
        success = terminated = truncated = False
        for one in np.atleast_2d(action):
            self._control_step(one)
            diverged = not np.abs(self._data.qvel).max() < MAX_SPEED
            success = not diverged and goal_holds(self._constants.goals, self._task, self._poses)
            terminated = success or diverged
            truncated = not terminated and self._episode_steps >= self._constants.horizon
            if terminated or truncated:
                break
        return self._observe(), float(success), terminated, truncated, {}

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer:
            self._renderer.close()

    def _control_step(self, action: np.ndarray) -> None:
        before = self._state[self._command_index]
        advance(self._constants.controller, self._state, action, self._grip)
        change = self._state[self._command_index] - before
        arm, data = self._constants.arm_actuators, self._data
        for control in before + self._fraction * change:  # joint commands move linearly
            joints = data.qpos[self._constants.arm_qpos]
            data.ctrl[:] = control
            data.ctrl[arm] = control[arm].clip(
                joints - MAX_JOINT_LEAD_RAD, joints + MAX_JOINT_LEAD_RAD
            )
            mujoco.mj_step(self._model, self._data)
        self._refresh()
        self._episode_steps += 1
        self.num_control_steps += 1

    def _refresh(self) -> None:
        """Make the poses those of the current state; `mj_step` leaves them one step behind."""
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _observe(self) -> dict[str, np.ndarray]:
        state = np.empty(6 + len(self._felt), np.float32)
        state[:3], state[6:] = self._grip, self._data.qpos[self._felt]
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, self._grip_mat)
        quat *= np.sign(quat[np.abs(quat).argmax()])
        sine = np.sqrt(quat[1:] @ quat[1:])
        state[3:6] = quat[1:] * (2.0 * np.arctan2(sine, quat[0]) / sine if sine > 1e-9 else 2.0)
        if not self._renderer:
            return {"state": state}
        return {"state": state, "images": self._draw(self._renderer)}

    def _draw(self, renderer: mujoco.Renderer) -> np.ndarray:
        cameras = self._suite.embodiment.cameras
        images = np.empty((len(cameras), renderer.height, renderer.width, 3), np.uint8)
        for camera, image in zip(cameras, images, strict=True):
            renderer.update_scene(self._data, camera)
            for flag in LEFT_OUT:
                renderer.scene.flags[flag] = 0
            renderer.render(out=image)
        return images


def _make_entry_points(version: int):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def advance(controller, state, action, measured_position):
        """Advance one controller state by one action."""
        _ = version
        command(controller, state, action, measured_position, np.zeros(3))

    @njit(nogil=True, cache=True)
    def goal_holds(goals, task, poses):
        """Return whether the goal of a task holds."""
        _ = version
        return goal_reached(goals, task, poses)

    return advance, goal_holds


advance, goal_holds = _make_entry_points(source_version("native/kernel/*.py", "outcomes.py"))
