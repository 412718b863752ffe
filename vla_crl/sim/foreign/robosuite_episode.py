"""Environments of robosuite 1.4 as episodes; its arm commanded by OSC_POSE, seen by its cameras."""

import random
from typing import Any, Literal

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.foreign.foreign_episode import ForeignEpisode, ForeignTask
from vla_crl.sim.foreign.robosuite_package import import_robosuite

Feeling = Literal["pose", "joints"]
ROBOSUITE_CAMERAS = {"eye_in_hand": "robot0_eye_in_hand"}
"""Names of cameras that are others in robosuite."""
_SEEN = tuple(
    f"{part}_{kind}"
    for part, kinds in (
        ("geom", ("xpos", "xmat")),
        ("site", ("xpos", "xmat")),
        ("cam", ("xpos", "xmat")),
        ("light", ("xpos", "xdir")),
    )
    for kind in kinds
)
"""All of MuJoCo's data that a picture depends on."""
_BAD = tuple(
    int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC")
)
_OBSERVABLE = "seen_by_cameras"


class RobosuiteEpisode(ForeignEpisode):
    """A single-arm environment of robosuite; `arguments.env` of a task names it, such as "Lift".

    Every episode compiles its scene anew, as robosuite does by default, and draws from generators
    seeded for it. Pictures are those of the moment at which robosuite samples its observations, one
    physics step before the end of a control step, but they are drawn only when asked for.
    """

    def __init__(
        self,
        cameras: tuple[str, ...],
        image_size: int,
        *,
        robot: str = "Panda",
        feeling: Feeling = "pose",
    ) -> None:
        """Import the package.

        Args:
            cameras: Names of robosuite, or "eye_in_hand".
            image_size: Height and width of what policies see, pixels.
            robot: One of robosuite's arms.
            feeling: Whether the state is the end effector's position, axis-angle and the fingers (8
                numbers), or joint angles and fingers (9).

        Raises:
            ConfigError: robosuite is missing or unfit, or there is no such state.
        """
        super().__init__(cameras, image_size)
        if feeling not in ("pose", "joints"):
            raise unknown_name("RobosuiteEpisode", "feeling", feeling, ("pose", "joints"))
        self._robosuite: Any = import_robosuite()
        self._robot, self._feeling = robot, feeling
        self._env: Any = None
        self._made: object = None
        self._felt: dict[str, np.ndarray] = {}
        self._seen: dict[str, np.ndarray] = {}
        self._joints = np.empty(0)
        self._view: Any = None

    def begin(self, task: ForeignTask, state_id: int, seed: int) -> None:
        """Begin an episode; see `ForeignEpisode`."""
        self.hold(task.arguments.get("env", task.name), self._make)
        random.seed(seed)  # making the environment has drawn some
        np.random.seed(seed)
        self.felt(self._env.reset())

    def step(self, action: np.ndarray) -> bool:
        """Execute one action; success is robosuite's own `_check_success`."""
        observation, _, _, _ = self._env.step(action)
        self.felt(observation)
        return bool(self._env._check_success())

    def state(self) -> np.ndarray:
        """Return what the robot feels: [8] as `contracts.POSE_STATE` names it, or [9]."""
        felt = self._felt
        fingers = felt["robot0_gripper_qpos"]
        if self._feeling == "joints":
            return np.concatenate([self._joints, fingers])
        quat = felt["robot0_eef_quat"].copy()  # x, y, z, w
        turn = self._robosuite.utils.transform_utils.quat2axisangle(quat)
        return np.concatenate([felt["robot0_eef_pos"], turn, fingers])

    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw cameras by robosuite's own renderer, which needs OpenGL."""
        return self.raw_images(cameras, pixels)[:, ::-1]

    def close(self) -> None:
        """Let go of the environment."""
        self._view = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def raw_images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw cameras as robosuite's observations have them, bottom row first."""
        names = [ROBOSUITE_CAMERAS.get(camera, camera) for camera in cameras]
        sim = self._env.sim
        for name in names:
            if name not in sim.model.camera_names:
                raise unknown_name("robosuite", "camera", name, sim.model.camera_names)
        if self._view is None:
            self._view = self._make_view()
        view = self._view
        for name, array in self._seen.items():
            getattr(view.data._data, name)[:] = array
        view._render_context_offscreen.gl_ctx.make_current()  # other slots have theirs
        return np.stack([view.render(pixels, pixels, camera_name=name) for name in names])

    def hold(self, key: object, make: Any) -> None:
        """Have the environment of a key, made anew if another one is there."""
        self._view = None
        if self._made != key:
            self.close()
            self._env, self._made = make(key), key
            core = getattr(self._env, "env", self._env)  # LIBERO's are wrapped
            core.add_observable(self._observable(core.control_freq))

    def felt(self, observation: dict[str, np.ndarray]) -> None:
        """Keep what an environment observed.

        Raises:
            PhysicsError: Physics blew up.
        """
        warnings = self._env.sim.data._data.warning
        if any(warnings[kind].number for kind in _BAD):
            raise PhysicsError("MuJoCo warned of numbers that are not finite or too large", {})
        self._felt = observation

    def _make(self, name: object) -> Any:
        known = self._robosuite.ALL_ENVIRONMENTS
        if name not in known:
            raise unknown_name("robosuite", "environment", str(name), known)
        if self._robot not in self._robosuite.ALL_ROBOTS:
            raise unknown_name("robosuite", "robot", self._robot, self._robosuite.ALL_ROBOTS)
        return self._robosuite.make(
            name,
            robots=self._robot,
            controller_configs=self._robosuite.load_controller_config(
                default_controller="OSC_POSE"
            ),
            has_renderer=False,
            has_offscreen_renderer=False,  # ours looks, see `images`
            use_camera_obs=False,
            ignore_done=True,
        )

    def _observable(self, control_hz: float) -> Any:
        """Return what keeps poses whenever robosuite samples its observations."""
        from robosuite.utils.observables import Observable, sensor

        def keep(_observed: object) -> np.ndarray:
            data, robot = self._env.sim.data._data, self._env.robots[0]
            self._joints = data.qpos[robot._ref_joint_pos_indexes]
            self._seen = {name: getattr(data, name).copy() for name in _SEEN}
            return np.zeros(1)

        return Observable(
            name=_OBSERVABLE,
            sensor=sensor(modality="seen")(keep),
            sampling_rate=control_hz,
        )

    def _make_view(self) -> Any:
        """Return the scene with data of its own and OpenGL: drawing must not disturb physics."""
        from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim

        view = MjSim(self._env.sim.model._model)
        try:
            context = MjRenderContextOffscreen(view, device_id=-1)
        except (ImportError, RuntimeError, AttributeError, OSError, mujoco.FatalError) as error:
            raise ConfigError(
                f"robosuite cannot draw: {type(error).__name__}: {error}. It needs OpenGL: "
                "MUJOCO_GL=egl with libegl1, or MUJOCO_GL=osmesa with libosmesa6"
            ) from error
        context.vopt.geomgroup[:2] = 0, 1  # what is seen, not what touches
        return view
