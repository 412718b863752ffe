"""One renderer in its own process: `python -m vla_crl.bench.render_turns PEER SUITE SIZE FRAMES`.

See `vla_crl.bench.turns`. A turn draws FRAMES images and answers frames per second.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mujoco
import numpy as np

from vla_crl.bench.render import gl_turn, settled_states, stacked_poses
from vla_crl.bench.turns import serve_turns
from vla_crl.sim.backends import find_suite
from vla_crl.sim.task_suite import TaskSuite


@contextmanager
def warp_turn(
    suite: TaskSuite, states: list[mujoco.MjData], size: int, num_frames: int
) -> Iterator[Callable[[], float]]:
    """Give what draws with MuJoCo Warp's ray tracer on the CPU and returns frames per second.

    Poses are there before the clock starts; a turn fits the hierarchy of boxes to them and casts
    rays, into packed pixels; without shadows, as the others.
    """
    import mujoco_warp  # pyright: ignore[reportMissingImports]
    import warp  # pyright: ignore[reportMissingImports]

    model = states[0].model
    cameras = [model.camera(i).name in suite.embodiment.cameras for i in range(model.ncam)]
    num_worlds = max(1, num_frames // sum(cameras))
    model = copy.copy(model)
    # Settings of the physics, which Warp does not know and rendering does not need.
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    with warp.ScopedDevice("cpu"):
        warp_model = mujoco_warp.put_model(model)
        data = mujoco_warp.put_data(model, states[0], nworld=num_worlds)
        worlds = [states[world % len(states)] for world in range(num_worlds)]
        fields = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
        for field, poses in zip(fields, stacked_poses(worlds), strict=True):
            target = getattr(data, field)
            target.assign(poses.astype(np.float32).reshape(target.numpy().shape))
        context = mujoco_warp.create_render_context(
            model, nworld=num_worlds, cam_res=(size, size), render_rgb=True, render_depth=False,
            render_seg=False, cam_active=cameras,
        )  # fmt: skip

    def turn() -> float:
        start = time.perf_counter()
        with warp.ScopedDevice("cpu"):
            mujoco_warp.refit_bvh(warp_model, data, context)
            mujoco_warp.render(warp_model, data, context)
            warp.synchronize()
        return num_worlds * sum(cameras) / (time.perf_counter() - start)

    yield turn


def main(arguments: list[str]) -> None:
    """Prepare a renderer and take turns."""
    peer, suite_name, size, num_frames = arguments
    suite = find_suite(suite_name)
    states = settled_states(suite, int(num_frames))
    make_turn = warp_turn if peer == "warp" else gl_turn
    serve_turns(make_turn(suite, states, int(size), int(num_frames)))


if __name__ == "__main__":
    main(sys.argv[1:])
