"""How fast the project's renderer draws a suite, beside MuJoCo's own renderer."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from statistics import median

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.hardware import num_cores
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.simulation import MujocoScenes, require
from vla_crl.sim.task_suite import TaskSuite

LEFT_OUT = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_HAZE,
)
"""What MuJoCo is told not to draw either, so that both make the same picture."""
GOAL_SIZE = 64
"""Pixels in height and width."""
NUM_STATES = 64
"""Different initial states among the drawn ones."""


def bench_render(
    suite: str = "tabletop_object",
    *,
    num_frames: int = 4000,
    num_peer_frames: int = 60,
    sizes: Sequence[int] = (64,),
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure frames per second on all cores, initial states and cameras of a suite in turn.

    MuJoCo's renderer draws one frame at a time through OpenGL, in software where there is no GPU.

    Args:
        suite: Its name in the catalogue; its first scene is drawn.
        num_frames: Images the batch renderer draws in one timed call, all cameras counted.
        num_peer_frames: Images MuJoCo's renderer draws in one timed turn.
        sizes: Heights, equal to the widths, in pixels.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Returns:
        One record per size.
    """
    loaded = find_suite(suite)
    states = settled_states(loaded, num_frames)
    return [
        _bench_size(loaded, states, size, num_frames, num_peer_frames, num_repeats)
        for size in sizes
    ]


def render_goal(model: mujoco.MjModel, size: int) -> float | None:
    """Return the wanted speed-up over MuJoCo's renderer in software: meshes cost more.

    There is a goal for the size that policies see by default; OpenGL's cost hardly grows with it.
    """
    if size != GOAL_SIZE:
        return None
    return 15.0 if model.nmesh else 40.0


def settled_states(suite: TaskSuite, num_states: int) -> list[mujoco.MjData]:
    """Return initial states of a suite's first scene with all poses, at most `NUM_STATES`."""
    count = min(NUM_STATES, num_states, len(suite.train_ids))
    with closing(simulate(suite, count, num_threads=num_cores())) as sim:
        scenes = require(sim, MujocoScenes, "drawn by MuJoCo")
        sim.reset(range(count), tasks=[0] * count, state_ids=suite.train_ids[:count])
        model = scenes.scene_model(0)
        states = [mujoco.MjData(model) for _ in range(count)]
        for slot, data in enumerate(states):
            scenes.write_scene(slot, copy(model), data)
    return states


def stacked_poses(states: list[mujoco.MjData]) -> tuple[NDArray[np.float64], ...]:
    """Return geom_xpos, geom_xmat, cam_xpos and cam_xmat, each [states, ...]."""
    fields = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
    return tuple(np.stack([getattr(data, field) for data in states]) for field in fields)


@contextmanager
def own_turn(
    suite: TaskSuite, states: list[mujoco.MjData], size: int, num_frames: int
) -> Iterator[Callable[[], float]]:
    """Give what draws with the batch renderer on all cores and returns frames per second."""
    cameras = suite.embodiment.cameras
    num_worlds, model = max(1, num_frames // len(cameras)), states[0].model
    renderer = BatchRenderer(model, cameras, size, size, num_threads=num_cores())
    poses = stacked_poses([states[world % len(states)] for world in range(num_worlds)])
    images = renderer.render(*poses)  # also compiles, or loads from the disk

    def turn() -> float:
        start = time.perf_counter()
        renderer.render(*poses, out=images)
        return images.shape[0] * images.shape[1] / (time.perf_counter() - start)

    yield turn


@contextmanager
def gl_turn(
    suite: TaskSuite, states: list[mujoco.MjData], size: int, num_frames: int
) -> Iterator[Callable[[], float]]:
    """Give what draws with MuJoCo's renderer frame by frame and returns frames per second."""
    cameras, frame = suite.embodiment.cameras, np.empty((size, size, 3), np.uint8)
    with mujoco.Renderer(states[0].model, size, size) as renderer:

        def turn() -> float:
            start = time.perf_counter()
            for index in range(num_frames):
                data = states[index // len(cameras) % len(states)]
                renderer.update_scene(data, cameras[index % len(cameras)])
                for flag in LEFT_OUT:
                    renderer.scene.flags[flag] = 0
                renderer.render(out=frame)
            return num_frames / (time.perf_counter() - start)

        yield turn


def _bench_size(
    suite: TaskSuite, states: list[mujoco.MjData], size: int, num_frames: int, num_peer_frames: int,
    num_repeats: int,
) -> BenchRecord:  # fmt: skip
    with (
        own_turn(suite, states, size, num_frames) as turn,
        gl_turn(suite, states, size, num_peer_frames) as peer_turn,
    ):
        peer_turn()
        pairs = [(turn(), peer_turn()) for _ in range(num_repeats)]
    value, peer_value = (median(rates) for rates in zip(*pairs, strict=True))
    name = f"render.{suite.name}.{size}x{size}"
    goal = render_goal(states[0].model, size)
    return against_peer(name, value, "frames/s", "mujoco.Renderer", peer_value, goal=goal)
