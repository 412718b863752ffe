"""One of Meta-World's environments as an episode: seeded, stepped, looked at."""

import copy
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from vla_crl.sim.metaworld.config import HAND_CAMERA
from vla_crl.sim.metaworld.models import env_class, simulated_model

STATE_SPEC = int(mujoco.mjtState.mjSTATE_INTEGRATION)
"""What `MetaWorldEpisode.physics` packs."""
_BAD = tuple(
    int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC")
)


class PhysicsError(ArithmeticError):
    """Physics became NaN or absurdly large."""


@dataclass(frozen=True)
class Look:
    """All that pictures and the robot's state are made of, after a control step.

    Attributes:
        body_pos: [bodies, 3] m, world.
        body_mat: [bodies, 3, 3].
        hand_camera_pos: [3] m, world.
        hand_camera_mat: [3, 3].
        object_pos: [3] m, world: what is to be moved.
        goal_pos: [3] m, world: where to.
        grip_pos: [3] m, world: the middle between the fingertips.
        grip_mat: [3, 3] of the hand.
        fingers: [2] m, distance of each fingertip from the hand's middle plane.
    """

    body_pos: np.ndarray
    body_mat: np.ndarray
    hand_camera_pos: np.ndarray
    hand_camera_mat: np.ndarray
    object_pos: np.ndarray
    goal_pos: np.ndarray
    grip_pos: np.ndarray
    grip_mat: np.ndarray
    fingers: np.ndarray


class MetaWorldEpisode:
    """One episode of a task in a fresh environment; a function of (task, state id, actions).

    Meta-World draws goals from numpy's global generator and keeps values from one episode to the
    next. Here an environment lives for one episode, and all that it draws comes from a generator
    of its own, through Meta-World's own ranges and rejections.
    """

    def __init__(self, task: str, state_id: int) -> None:
        """Begin the episode.

        Args:
            task: Its name in Meta-World.
            state_id: Number of the initial state.
        """
        self._env: Any = _episode_class(task)()
        env = self._env
        env._set_task_called, env._partially_observable = True, False
        vars(env).pop("sawyer_observation_space", None)  # cached for the hidden goal
        env.np_random = np.random.default_rng([zlib.crc32(task.encode()), state_id])
        env.seeded_rand_vec, env._freeze_rand_vec = True, False
        observation, _ = env.reset()
        self.observation: np.ndarray = observation
        """[39] what Meta-World's scripted policies see, goal included."""
        self.look = self._look()
        self._before = np.empty(mujoco.mj_stateSize(env.model, STATE_SPEC))

    @property
    def model(self) -> mujoco.MjModel:
        """What is simulated; the episode's own."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """Its state; the episode's own."""
        return self._env.data

    def physics(self) -> np.ndarray:
        """Return the state before the last chunk, packed by `STATE_SPEC`."""
        return self._before.copy()

    def step_chunk(self, actions: np.ndarray, max_steps: int) -> tuple[bool, int]:
        """Execute actions until one succeeds.

        Args:
            actions: [K, 7] in [-1, 1]; the hand does not turn, so the three in the middle are
                without effect.
            max_steps: Control steps left to the episode.

        Returns:
            Whether the last step was a success, and the number of steps taken.

        Raises:
            PhysicsError: Physics blew up; `look` is still that before the chunk.
        """
        mujoco.mj_getState(self.model, self.data, self._before, STATE_SPEC)
        success, num_steps = False, 0
        for action in actions[:max_steps, [0, 1, 2, 6]]:
            self.observation, _, _, _, info = self._env.step(action)
            num_steps += 1
            success = bool(info["success"])
            if success:
                break
        self.look = self._look()
        return success, num_steps

    def _look(self) -> Look:
        env, data = self._env, self.data
        hand, camera = data.body("hand"), data.cam(HAND_CAMERA)
        tips = [data.site(f"{side}EndEffector").xpos for side in ("right", "left")]
        rotation = hand.xmat.reshape(3, 3).copy()
        middle = rotation.T @ (np.array(tips) - hand.xpos).T  # [3, tips] in the hand's frame
        return Look(
            body_pos=data.xpos.copy(),
            body_mat=data.xmat.reshape(-1, 3, 3).copy(),
            hand_camera_pos=camera.xpos.copy(),
            hand_camera_mat=camera.xmat.reshape(3, 3).copy(),
            object_pos=np.array(env._get_pos_objects()[:3]),
            goal_pos=np.array(env._target_pos),
            grip_pos=np.mean(tips, axis=0),
            grip_mat=rotation,
            fingers=np.abs(middle[1]),
        )


@lru_cache
def _episode_class(task: str) -> Any:
    """Derive a class that copies a compiled model, draws once and stops when physics blows up."""
    base = env_class(task)

    class Episode(base):
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            model = copy.copy(simulated_model(task))
            return model, mujoco.MjData(model)

        def reset_model(self) -> Any:
            observation = super().reset_model()
            self._freeze_rand_vec = True  # `reset` calls it twice
            return observation

        def touching_object(self, object_geom_id: int) -> bool:
            # Meta-World's own goes through all contacts in Python, most of some tasks' step.
            geoms, force = self.data.contact.geom, self.data.efc_force
            with_object = (geoms == object_geom_id).any(axis=1)
            pads = (self.data.geom(f"{side}pad_geom").id for side in ("left", "right"))
            touching = (with_object & (geoms == pad).any(axis=1) for pad in pads)
            return all(force[self.data.contact.efc_address[on]].sum() > 0 for on in touching)

        def do_simulation(self, ctrl: Any, n_frames: int) -> None:
            super().do_simulation(ctrl, n_frames)
            if any(self.data.warning[kind].number for kind in _BAD):
                raise PhysicsError

    return Episode
