"""One of Meta-World's environments as an episode: seeded, stepped, looked at."""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from vla_crl.sim.divergence import blame
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.metaworld.config import HAND_CAMERA
from vla_crl.sim.metaworld.models import env_class, simulated_model
from vla_crl.sim.rotations import axis_angle_from_matrix

STATE_SPEC = int(mujoco.mjtState.mjSTATE_INTEGRATION)
"""What a `Divergence` keeps as "physics"."""
_BAD = tuple(
    int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC")
)


class _BlownUpError(ArithmeticError):
    """MuJoCo warned of NaN or absurdly large numbers."""


@dataclass(frozen=True)
class Look:
    """All that pictures, labels and the robot's state are made of, after a chunk.

    Positions in m, world; matrices turn from the part's frame to the world's.

    Attributes:
        body_pos: [bodies, 3].
        body_mat: [bodies, 3, 3].
        hand_camera_pos: [3].
        hand_camera_mat: [3, 3].
        object_pos: [3] what is to be moved.
        goal_pos: [3] where to.
        grip_pos: [3] the middle between the fingertips.
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

    def __init__(self, task: str, state_id: int, own_numbers: Sequence[int]) -> None:
        """Begin the episode.

        Args:
            task: Its name in Meta-World.
            state_id: Number of the initial state.
            own_numbers: Which numbers of an action are Meta-World's four.
        """
        self._own_numbers = list(own_numbers)
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

    @property
    def model(self) -> mujoco.MjModel:
        """What is simulated; the episode's own."""
        return self._env.model

    @property
    def data(self) -> mujoco.MjData:
        """Its state; the episode's own."""
        return self._env.data

    def step_chunk(self, actions: np.ndarray, max_steps: int) -> tuple[bool, int]:
        """Execute actions until one succeeds, see `Episode`."""
        before = np.empty(mujoco.mj_stateSize(self.model, STATE_SPEC))
        mujoco.mj_getState(self.model, self.data, before, STATE_SPEC)
        success, num_steps = False, 0
        try:
            for action in actions[:max_steps, self._own_numbers]:
                self.observation, _, _, _, info = self._env.step(action)
                num_steps += 1
                success = bool(info["success"])
                if success:
                    break
        except _BlownUpError as error:
            raise PhysicsError(self._cause(before), {"physics": before}) from error
        self.look = self._look()
        return success, num_steps

    def state(self) -> np.ndarray:
        """Return [8] what the robot feels, as `POSE_STATE` names it."""
        look = self.look
        return np.concatenate([look.grip_pos, axis_angle_from_matrix(look.grip_mat), look.fingers])

    def _cause(self, before: np.ndarray) -> str:
        model = self.model
        qpos, qvel = np.split(before[1 : 1 + model.nq + model.nv], [model.nq])
        return blame(model, qpos, qvel, self.data.qvel)

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
                raise _BlownUpError

    return Episode
