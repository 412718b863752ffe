"""Pictures of all worlds of a scene, by MuJoCo Warp's ray tracer, as bytes on the device."""

from collections.abc import Sequence
from typing import Any

import mujoco_warp
import warp as wp

from vla_crl.sim.warp.kernels.pictures import unpack
from vla_crl.sim.warp.worlds import Worlds


class Drawing:
    """Draws the policy's cameras of all copies of a scene."""

    def __init__(
        self, worlds: Worlds, cameras: Sequence[str], image_size: int, num_worlds: int
    ) -> None:
        """Build what the ray tracer needs, within `wp.ScopedDevice`.

        Args:
            worlds: What to draw.
            cameras: Their names in the order of the images.
            image_size: Height and width, pixels.
            num_worlds: N.
        """
        self._worlds, model = worlds, worlds.model
        ids = [model.camera(name).id for name in cameras]
        self._order = wp.array([sorted(ids).index(camera) for camera in ids], dtype=int)
        self._context = mujoco_warp.create_render_context(
            model, nworld=num_worlds, cam_res=(image_size, image_size), render_rgb=True,
            render_depth=False, render_seg=False,
            cam_active=[camera in ids for camera in range(model.ncam)],
        )  # fmt: skip
        self._drawn = wp.zeros(num_worlds, dtype=int)
        self._graph: Any = None

    def draw(self, drawn: Any, images: wp.array) -> None:
        """Draw the worlds where `drawn` [N] into images [N, C, H, W], always the same array."""
        self._drawn.assign(drawn)
        mujoco_warp.refit_bvh(self._worlds.warp_model, self._worlds.data, self._context)
        if self._graph is not None:
            wp.capture_launch(self._graph)
            return
        self._launch(images)  # also compiles, or loads from the disk
        if wp.get_device().is_cuda:
            with wp.ScopedCapture() as capture:
                self._launch(images)
            self._graph = capture.graph

    def _launch(self, images: wp.array) -> None:
        worlds, context = self._worlds, self._context
        mujoco_warp.render(worlds.warp_model, worlds.data, context)
        num_worlds, num_cameras, height, width = images.shape
        wp.launch(
            unpack, (num_worlds, num_cameras, height * width),
            [context.rgb_data, self._order, self._drawn, images],
        )  # fmt: skip
