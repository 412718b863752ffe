"""Bytes from the packed pixels of MuJoCo Warp's ray tracer."""

import warp as wp

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
