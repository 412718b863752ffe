"""Pictures of all worlds of a scene, by MuJoCo Warp's ray tracer, as bytes on the device."""

from collections.abc import Sequence
from typing import Any

import mujoco_warp
import warp as wp

from vla_crl.sim.warp.worlds import Worlds

wp.set_module_options({"enable_backward": False})

RED, GREEN = wp.constant(wp.uint32(16)), wp.constant(wp.uint32(8))


@wp.kernel
def unpack(
    packed: wp.array2d(dtype=wp.uint32),
    order: wp.array(dtype=int),
    drawn: wp.array(dtype=int),
    images: wp.array4d(dtype=wp.vec3ub),
):
    """Write the pictures of the worlds to draw into images [N, C, H, W].

    Args:
        packed: [N, C H W] 0xAARRGGBB, cameras in the model's order.
        order: [C] for each image, which of those cameras.
        drawn: [N] 1 where the world's picture is wanted.
        images: Written.
    """
    world, camera, pixel = wp.tid()
    if drawn[world] == 0:
        return
    height, width = images.shape[2], images.shape[3]
    colour = packed[world, order[camera] * height * width + pixel]
    images[world, camera, pixel // width, pixel % width] = wp.vec3ub(
        wp.uint8(colour >> RED), wp.uint8(colour >> GREEN), wp.uint8(colour)
    )


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
        if self._graph is not None:
            wp.capture_launch(self._graph)
            return
        self._launch(images)  # also compiles, or loads from the disk
        if images.device.is_cuda:
            with wp.ScopedCapture(images.device) as capture:
                self._launch(images)
            self._graph = capture.graph

    def _launch(self, images: wp.array) -> None:
        worlds, context = self._worlds, self._context
        mujoco_warp.refit_bvh(worlds.warp_model, worlds.data, context)
        mujoco_warp.render(worlds.warp_model, worlds.data, context)
        num_worlds, num_cameras, height, width = images.shape
        wp.launch(
            unpack, (num_worlds, num_cameras, height * width),
            [context.rgb_data, self._order, self._drawn, images],
        )  # fmt: skip
