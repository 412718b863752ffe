"""Initial states: one enumerable layout per id, the same for every task of a scene."""

from typing import NamedTuple

import mujoco
import numpy as np
from numba import njit

from vla_crl.errors import ConfigError
from vla_crl.sim.machine_code import source_version
from vla_crl.sim.native.kernel.controller import (
    FINGER,
    FINGER_OPEN_M,
    JOINTS,
    POSITION,
    ROTATION,
    state_size,
)
from vla_crl.sim.native.kernel.kinematics import forward, inverse
from vla_crl.sim.native.kernel.predicates import support
from vla_crl.sim.native.scene import Scene, is_free
from vla_crl.sim.stepped import SOURCES
from vla_crl.sim.threads import made_once

FIRST_TEST_SEED = 1_000_000
"""Test states have random streams of their own, so they stay when training states are added."""
MAX_ATTEMPTS = 10_000
MAX_MISS_M = 0.02
"""How far the grip may start from its place; an arm of few joints has to compromise."""
GRIP_DOWN = np.diag([1.0, -1.0, -1.0])
"""Orientation of the grip site at the start: approach axis straight down."""


class InitialStates(NamedTuple):
    """All initial states of a scene, indexed by id.

    Attributes:
        qpos: [ids, nq].
        mocap_pos: [ids, fixtures, 3] m, world.
        controller: [ids, R] controller states at rest.
    """

    qpos: np.ndarray
    mocap_pos: np.ndarray
    controller: np.ndarray


@made_once
def initial_states(scene: Scene) -> InitialStates:
    """Compute the initial states of a scene; every id has its own random stream.

    Raises:
        ConfigError: The layout leaves no room for the objects, or the arm does not reach it.
    """
    model, chain = scene.model, scene.chain
    layout, arm = scene.config.layout, scene.config.arm
    num_train = scene.config.num_train_states
    num_states = num_train + scene.config.num_test_states
    free = scene.objects.tolist()
    mocap = [b for b in scene.bodies.values() if model.body_mocapid[b] >= 0]
    positions = np.empty((num_states, len(free), 2))
    yaws = np.empty((num_states, len(free)))
    fixtures = np.empty((num_states, len(mocap), 2))
    grips = np.empty((num_states, 3))
    seeds = np.arange(num_states)
    seeds[num_train:] += FIRST_TEST_SEED - num_train
    sampled = _sample(layout_arrays(scene), seeds, positions, yaws, fixtures, grips)
    if not sampled:
        raise ConfigError(
            f"{scene.file}: layout: found no room for {len(free)} objects at least "
            f"{layout.free_distance_m} m apart; enlarge free_low_m..free_high_m "
            "or lower free_distance_m"
        )
    qpos = np.tile(model.qpos0, (num_states, 1))
    for k, body in enumerate(free):
        start = model.jnt_qposadr[model.body_jntadr[body]]
        qpos[:, start : start + 2] = positions[:, k]
        qpos[:, start + 2] = rest_height(model, body)
        qpos[:, start + 3 : start + 7] = _turned(model.body_quat[body], yaws[:, k])
    mocap_pos = np.tile(mujoco.MjData(model).mocap_pos, (num_states, 1, 1))
    for k, body in enumerate(mocap):
        mocap_pos[:, model.body_mocapid[body], :2] = fixtures[:, k]
    controller = np.empty((num_states, state_size(len(arm.joints))))
    controller[:, POSITION], controller[:, ROTATION] = grips, GRIP_DOWN.ravel()
    controller[:, JOINTS], controller[:, FINGER] = chain.rest_rad, FINGER_OPEN_M
    misses = np.empty(num_states)
    _solve_postures(chain, controller, misses)
    if misses.max() > MAX_MISS_M:
        raise ConfigError(
            f"{scene.file}: layout: the arm does not reach {np.round(grips[misses.argmax()], 3)}, "
            f"it stays {misses.max():.3f} m away; move grip_low_m..grip_high_m, or the robot"
        )
    qpos[:, scene.qpos_index(arm.joints)] = controller[:, JOINTS]
    qpos[:, scene.qpos_index(arm.fingers)] = FINGER_OPEN_M
    return InitialStates(qpos, mocap_pos, controller)


class LayoutArrays(NamedTuple):
    """`LayoutConfig` as arrays for compiled code."""

    free_low: np.ndarray  # [objects, 2]
    free_high: np.ndarray
    free_distance: float
    max_yaw: float
    fixture_low: np.ndarray  # [fixtures, 2]
    fixture_high: np.ndarray
    is_mirrored: np.ndarray  # [fixtures] without a rectangle of its own: sides are drawn
    grip_low: np.ndarray
    grip_high: np.ndarray


def layout_arrays(scene: Scene) -> LayoutArrays:
    """Convert the scene's layout for compiled code."""
    layout, model = scene.config.layout, scene.model
    free = [t for t in scene.things if is_free(model, scene.bodies[t.name])]
    fixtures = [t for t in scene.things if model.body(t.body).mocapid[0] >= 0]
    return LayoutArrays(
        np.array([thing.low_m or layout.free_low_m for thing in free]).reshape(-1, 2),
        np.array([thing.high_m or layout.free_high_m for thing in free]).reshape(-1, 2),
        layout.free_distance_m,
        layout.max_yaw_rad,
        np.array([thing.low_m or layout.fixture_low_m for thing in fixtures]).reshape(-1, 2),
        np.array([thing.high_m or layout.fixture_high_m for thing in fixtures]).reshape(-1, 2),
        np.array([thing.low_m is None for thing in fixtures], dtype=bool),
        np.array(layout.grip_low_m),
        np.array(layout.grip_high_m),
    )


@njit(cache=True)
def _sample(layout, seeds, positions, yaws, fixtures, grips):
    """Fill the tables by rejection; return False when an id finds no valid arrangement."""
    for state_id in range(positions.shape[0]):
        np.random.seed(seeds[state_id])
        for i in range(3):
            grips[state_id, i] = np.random.uniform(layout.grip_low[i], layout.grip_high[i])
        side = 1.0 if np.random.random() < 0.5 else -1.0
        for k in range(fixtures.shape[1]):
            for i in range(2):
                fixtures[state_id, k, i] = np.random.uniform(
                    layout.fixture_low[k, i], layout.fixture_high[k, i]
                )
            if layout.is_mirrored[k]:
                fixtures[state_id, k, 1] *= side
                side = -side
        for k in range(positions.shape[1]):
            yaws[state_id, k] = np.random.uniform(-layout.max_yaw, layout.max_yaw)
        if not _scatter(layout, positions[state_id]):
            return False
    return True


@njit(cache=True)
def _scatter(layout, places):
    """Draw all places anew until they keep their distance."""
    for _ in range(MAX_ATTEMPTS):
        apart = True
        for k in range(places.shape[0]):
            for i in range(2):
                places[k, i] = np.random.uniform(layout.free_low[k, i], layout.free_high[k, i])
            for other in range(k):
                gap = np.hypot(places[k, 0] - places[other, 0], places[k, 1] - places[other, 1])
                apart = apart and gap >= layout.free_distance
            if not apart:
                break
        if apart:
            return True
    return False


def _make_solver(version):
    """Return the compiled loop over states, cached (see `source_version`)."""

    @njit(cache=True)
    def solve_postures(chain, controller, misses):
        """Find the joints of controller states [B, R]; write how far, m, the grips stay away."""
        _ = version
        position, rotation = np.empty(3), np.empty((3, 3))
        jacobian = np.empty((6, chain.axes.shape[0]))
        for k in range(controller.shape[0]):
            place, joints = controller[k, POSITION], controller[k, JOINTS]
            turn = controller[k, ROTATION].copy().reshape((3, 3))
            inverse(chain, joints, place, turn, 60)
            forward(chain, joints, position, rotation, jacobian)
            misses[k] = np.sqrt(np.sum((position - place) ** 2))

    return solve_postures


_solve_postures = _make_solver(source_version("native/kernel/*.py", *SOURCES))


def _turned(quat_wxyz: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Return [B, 4] an orientation turned about the vertical by yaws [B] (rad)."""
    w, x, y, z = quat_wxyz
    c, s = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w], axis=1)


def rest_height(model: mujoco.MjModel, body: int) -> float:
    """Height of a body's origin when it stands on the plane z = 0, oriented as in the file."""
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_quat[body])
    up = rotation[6:9]  # the vertical in the body's frame
    geoms = range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
    return max(_reach_down(model, geom, up) - model.geom_pos[geom] @ up for geom in geoms)


def _reach_down(model: mujoco.MjModel, geom: int, up: np.ndarray) -> float:
    """Return how far a geom reaches below its centre; up [3] is the vertical in its body."""
    axes = np.empty(9)
    mujoco.mju_quat2Mat(axes, model.geom_quat[geom])
    axes[6:9] = up @ axes.reshape(3, 3)
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
        return -float(np.min(vertices @ axes[6:9]))
    return float(support(model.geom_type[geom], model.geom_size[geom], axes))
