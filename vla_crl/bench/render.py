"""How fast the project's renderer draws a suite, beside MuJoCo's own renderer."""

import time
from collections.abc import Sequence
from statistics import median

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.hardware import num_cores
from vla_crl.sim.layout import initial_states
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.suite import Suite, load_suite

LEFT_OUT = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_HAZE,
)
"""What MuJoCo is told not to draw either, so that both make the same picture."""


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
        suite: Its name in the catalogue.
        num_frames: Images the batch renderer draws in one timed call, all cameras counted.
        num_peer_frames: Images MuJoCo's renderer draws in one timed turn.
        sizes: Heights, equal to the widths, in pixels.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Returns:
        One record per size.
    """
    loaded = load_suite(suite)
    num_worlds = max(1, num_frames // len(loaded.cameras))
    states = _settled_states(loaded, num_worlds)
    return [_bench_size(loaded, states, size, num_peer_frames, num_repeats) for size in sizes]


def _settled_states(suite: Suite, num_worlds: int) -> list[mujoco.MjData]:
    """Return the suite's initial states with all poses computed, at most 64 different ones."""
    initial, model = initial_states(suite.scenes[0]), suite.scenes[0].model
    states = []
    for state_id in range(min(64, num_worlds, len(initial.qpos))):
        data = mujoco.MjData(model)
        data.qpos[:] = initial.qpos[state_id]
        data.mocap_pos[:] = initial.mocap_pos[state_id]
        mujoco.mj_forward(model, data)
        states.append(data)
    return [states[world % len(states)] for world in range(num_worlds)]


def _bench_size(
    suite: Suite, states: list[mujoco.MjData], size: int, num_peer_frames: int, num_repeats: int
) -> BenchRecord:
    cameras, model = suite.cameras, suite.scenes[0].model
    renderer = BatchRenderer(model, cameras, size, size, num_threads=num_cores())
    poses = _stacked_poses(states)
    images = renderer.render(*poses)  # also compiles, or loads from the disk
    num_frames = images.shape[0] * images.shape[1]

    def rate() -> float:
        start = time.perf_counter()
        renderer.render(*poses, out=images)
        return num_frames / (time.perf_counter() - start)

    with mujoco.Renderer(model, size, size) as peer:
        frame = np.empty((size, size, 3), np.uint8)

        def peer_rate() -> float:
            start = time.perf_counter()
            for index in range(num_peer_frames):
                peer.update_scene(states[index % len(states)], cameras[index % len(cameras)])
                for flag in LEFT_OUT:
                    peer.scene.flags[flag] = 0
                peer.render(out=frame)
            return num_peer_frames / (time.perf_counter() - start)

        peer_rate()
        pairs = [(rate(), peer_rate()) for _ in range(num_repeats)]
    value, peer_value = (median(rates) for rates in zip(*pairs, strict=True))
    name = f"render.{suite.name}.{size}x{size}"
    return against_peer(name, value, "frames/s", "mujoco.Renderer", peer_value, goal=30.0)


def _stacked_poses(states: list[mujoco.MjData]) -> tuple[NDArray[np.float64], ...]:
    fields = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
    return tuple(np.stack([getattr(data, field) for data in states]) for field in fields)
