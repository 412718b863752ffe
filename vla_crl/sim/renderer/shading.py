"""The colour of each pixel once the geom and the depth are known.

OpenGL's fixed pipeline as MuJoCo uses it, but per pixel instead of per vertex (meshes keep to their
vertices): with n the normal, l the direction to a light and a its attenuation and cone,
colour = min(1, rgba (emission + sum over lights a (ambient + diffuse max(0, n.l)))) * texture.
Specular light, shadows, reflections, fog and haze are left out.
"""

import math

import numpy as np

from vla_crl.sim.renderer.appearance import LookArrays
from vla_crl.sim.renderer.compilation import HALF, ONE, TINY, ZERO, inlined
from vla_crl.sim.renderer.frame import (
    Frame,
    Workspace,
    eye_in_geom,
    list_pixels,
    ray,
    row_ramp,
    row_start,
    turn,
    window_of,
)
from vla_crl.sim.renderer.intersections import (
    box_gradient,
    capsule_gradient,
    cylinder_gradient,
    ellipsoid_gradient,
    plane_gradient,
)
from vla_crl.sim.renderer.mesh_light import light_meshes
from vla_crl.sim.renderer.outlines import CAPSULE, CYLINDER, ELLIPSOID, PLANE
from vla_crl.sim.renderer.scene_arrays import SPOT_TABLE_SIZE, Scene
from vla_crl.sim.renderer.textures import SKY_TABLE_SIZE
from vla_crl.sim.renderer.texturing import NO_TEXTURE, apply_texture

LAST_SPOT = np.float32(SPOT_TABLE_SIZE - 1)
LAST_SKY = np.float32(SKY_TABLE_SIZE - 1)
WHITE = np.float32(255.0)


@inlined
def shade(
    scene: Scene,
    look: LookArrays,
    camera: int,
    pose: tuple,
    workspace: Workspace,
    image: np.ndarray,
):
    """Write the frame's colours into an image.

    Args:
        scene: Constants of the model.
        look: Colours and lights of one world, see `look_of`.
        camera: Index into the drawn cameras.
        pose: geom_xpos, geom_xmat, cam_xpos, cam_xmat of one world, as in mjData.
        workspace: What `find_surfaces` and `find_seen` left; the rest is written.
        image: [H, W, 3] uint8; written, black where there is no geom.
    """
    num_geoms, num_lights = scene.geoms.model_id.size, scene.lights.is_spot.size
    geoms, view, model_id = scene.geoms, pose[3], scene.cameras.model_id[camera]
    columns, rows = scene.cameras.columns[camera], scene.cameras.rows[camera]
    frame = workspace.frame
    for index in range(num_lights):
        x, y, z, w = _light_in_camera(scene.lights, look, index, model_id, pose)
        lights = workspace.lights
        lights[index, 0], lights[index, 1], lights[index, 2], lights[index, 3] = x, y, z, w
    if scene.meshes.max_vertices:
        list_pixels(workspace)
        light_meshes(scene, camera, workspace)
    _set_light(look.ambient, frame)
    for index in range(num_lights):
        light = _row(workspace.lights, index)
        _find_facing(geoms, index, light, columns, rows, frame)
        if scene.lights.is_spot[index]:
            axis = look.direction[index]
            axis_in_camera = turn(view, model_id, axis[0], axis[1], axis[2])
            _add_spot(scene.lights, look, index, light, axis_in_camera, columns, rows, frame)
        else:
            _add_sun(look.diffuse, index, frame)
    for geom in range(num_geoms):
        if frame.is_seen[geom] and geoms.emission[geom] > 0:
            _add_emission(geom, geoms.emission[geom], frame)
    _write_bytes(look.colour, frame, image)
    for geom in range(num_geoms):
        surface = look.surface[geom]
        if frame.is_seen[geom] and scene.surfaces.mapping[surface] != NO_TEXTURE:
            apply_texture(scene, geom, surface, camera, workspace, image)


@inlined
def find_seen(frame: Frame):
    """Write which geoms the frame shows."""
    frame.is_seen[:] = False
    geom, is_seen = frame.geom.reshape(-1), frame.is_seen
    for i in range(geom.size):
        is_seen[np.uint32(geom[i])] = True


@inlined
def _set_light(ambient, frame):
    light = frame.light
    for channel in range(3):
        strength = ambient[channel]
        for y in range(np.uint64(light.shape[1])):
            for x in range(np.uint64(light.shape[2])):
                light[channel, y, x] = strength


@inlined
def _light_in_camera(lights, look, index, camera, pose):
    """Return (x, y, z, w): position and 1 of a spot light, direction towards a sun and 0."""
    position, eye, view = look.position, pose[2], pose[3]
    if lights.model_id[index] < 0:  # shines along the view axis
        return ZERO, ZERO, ONE, ZERO
    w = 1.0 if lights.is_spot[index] else 0.0
    x, y, z = turn(
        view,
        camera,
        position[index, 0] - w * eye[camera, 0],
        position[index, 1] - w * eye[camera, 1],
        position[index, 2] - w * eye[camera, 2],
    )
    return np.float32(x), np.float32(y), np.float32(z), np.float32(w)


@inlined
def _row(lights, index):
    return lights[index, 0], lights[index, 1], lights[index, 2], lights[index, 3]


@inlined
def _find_facing(geoms, index, light, columns, rows, frame):
    for geom in range(geoms.primitive.size):
        if frame.is_seen[geom] and geoms.mesh[geom] < 0:
            kind = geoms.primitive[geom]
            _find_primitive_facing(kind, geom, index, light, columns, rows, frame)


@inlined
def _find_primitive_facing(kind, geom, index, light, columns, rows, frame):
    if kind == PLANE:
        _find_plane_facing(geom, index, light, columns, rows, frame)
    elif kind == ELLIPSOID:
        _find_ellipsoid_facing(geom, index, light, columns, rows, frame)
    elif kind == CAPSULE:
        _find_capsule_facing(geom, index, light, columns, rows, frame)
    elif kind == CYLINDER:
        _find_cylinder_facing(geom, index, light, columns, rows, frame)
    else:
        _find_box_facing(geom, index, light, columns, rows, frame)


def _facing(gradient):
    """Compile the loop over a window for one primitive.

    It writes max(0, n.l) where the geom is seen: n ~ axes^T g, l ~ light - w p in the camera frame.
    """

    @inlined
    def find_facing(geom, index, light, columns, rows, frame):
        origin, ramp = eye_in_geom(frame, geom), row_ramp(frame, geom)
        half_length = frame.half_length[geom]
        a0, a1, a2, a3, a4, a5, a6, a7, a8 = _nine(frame.axes[geom])
        depth, seen, facing, drawn = frame.depth, frame.geom, frame.facing, np.int32(geom)
        light_x, light_y, light_z, w = light
        left, right, top, bottom = window_of(frame, geom)
        for y in range(top, bottom):
            row, start = rows[y], row_start(frame, geom, rows[y])
            for x in range(left, right):
                t, column = depth[y, x], columns[x]
                d = ray(ramp, start, column)
                px, py, pz = origin[0] + t * d[0], origin[1] + t * d[1], origin[2] + t * d[2]
                gx, gy, gz = gradient(px, py, pz, half_length)
                nx = a0 * gx + a3 * gy + a6 * gz
                ny = a1 * gx + a4 * gy + a7 * gz
                nz = a2 * gx + a5 * gy + a8 * gz
                lx, ly, lz = light_x - w * t * column, light_y - w * t * row, light_z + w * t
                norms = (nx * nx + ny * ny + nz * nz) * (lx * lx + ly * ly + lz * lz)
                share = max((nx * lx + ny * ly + nz * lz) / math.sqrt(norms), ZERO)
                facing[index, y, x] = share if seen[y, x] == drawn else facing[index, y, x]

    return find_facing


_find_plane_facing = _facing(plane_gradient)
_find_ellipsoid_facing = _facing(ellipsoid_gradient)
_find_capsule_facing = _facing(capsule_gradient)
_find_cylinder_facing = _facing(cylinder_gradient)
_find_box_facing = _facing(box_gradient)


@inlined
def _nine(a):
    return a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]


@inlined
def _add_sun(diffuse, index, frame):
    facing = frame.facing[index].reshape(-1)
    for channel in range(3):
        strength, light = diffuse[index, channel], frame.light[channel].reshape(-1)
        for i in range(light.size):
            light[i] += strength * facing[i]


@inlined
def _add_spot(lights, look, index, position, axis, columns, rows, frame):
    sx, sy, sz, _ = position
    ax, ay, az = np.float32(axis[0]), np.float32(axis[1]), np.float32(axis[2])
    diffuse, ambient = look.diffuse[index], look.spot_ambient[index]
    attenuation = lights.spot_attenuation[index]
    a0, a1, a2 = attenuation[0], attenuation[1], attenuation[2]
    cutoff, table = lights.spot_cos_cutoff[index], lights.spot_table[index]
    steps = LAST_SPOT / max(ONE - cutoff, TINY)
    facing, light = frame.facing[index], frame.light
    for y in range(np.uint64(rows.size)):
        for x in range(np.uint64(columns.size)):
            t = frame.depth[y, x]
            lx, ly, lz = sx - t * columns[x], sy - t * rows[y], sz + t
            distance = math.sqrt(lx * lx + ly * ly + lz * lz)
            cosine = -(ax * lx + ay * ly + az * lz) / max(distance, TINY)
            step = np.uint32(max(min((cosine - cutoff) * steps, LAST_SPOT), ZERO))
            cone = table[step] if cosine >= cutoff else ZERO
            strength = cone / (a0 + distance * (a1 + distance * a2))
            light[0, y, x] += strength * (ambient[0] + diffuse[0] * facing[y, x])
            light[1, y, x] += strength * (ambient[1] + diffuse[1] * facing[y, x])
            light[2, y, x] += strength * (ambient[2] + diffuse[2] * facing[y, x])


@inlined
def _add_emission(geom, emission, frame):
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        for x in range(left, right):
            if frame.geom[y, x] == geom:
                for channel in range(3):
                    frame.light[channel, y, x] += emission


@inlined
def _write_bytes(colour, frame, image):
    """Write light times colour, at most 1; black where there is no geom."""
    geom, flat, light = frame.geom.reshape(-1), image.reshape(-1, 3), frame.light
    red, green, blue = light[0].reshape(-1), light[1].reshape(-1), light[2].reshape(-1)
    for i in range(geom.size):
        k = np.uint32(geom[i])
        flat[i, 0] = np.uint8(min(red[i] * colour[0, k], ONE) * WHITE + HALF)
        flat[i, 1] = np.uint8(min(green[i] * colour[1, k], ONE) * WHITE + HALF)
        flat[i, 2] = np.uint8(min(blue[i] * colour[2, k], ONE) * WHITE + HALF)


@inlined
def draw_sky(scene: Scene, camera: int, pose: tuple, frame: Frame, image: np.ndarray):
    """Colour the pixels without a geom by the elevation of their ray above the world's horizon."""
    sky, view, empty = scene.sky, pose[3][scene.cameras.model_id[camera]], frame.half_length.size
    columns, rows = scene.cameras.columns[camera], scene.cameras.rows[camera]
    up_x, up_y, up_z = np.float32(view[6]), np.float32(view[7]), np.float32(view[8])
    for y in range(np.uint64(rows.size)):
        v = rows[y]
        for x in range(np.uint64(columns.size)):
            if frame.geom[y, x] != empty:
                continue
            u = columns[x]
            sine = (up_x * u + up_y * v - up_z) / math.sqrt(u * u + v * v + ONE)
            step = np.uint32(max(min((sine * HALF + HALF) * LAST_SKY + HALF, LAST_SKY), ZERO))
            for channel in range(3):
                image[y, x, channel] = sky[step, channel]


@inlined
def blend(opacity: np.ndarray, layer: np.ndarray, frame: Frame, image: np.ndarray):
    """Lay the geoms of the frame over an image.

    Args:
        opacity: [G] of the drawn geoms.
        layer: [H, W, 3] uint8, their colours.
        frame: What `find_surfaces` left.
        image: [H, W, 3] uint8; written.
    """
    empty = frame.half_length.size
    for y in range(np.uint64(image.shape[0])):
        for x in range(np.uint64(image.shape[1])):
            geom = frame.geom[y, x]
            if geom == empty:
                continue
            share = opacity[geom]
            for channel in range(3):
                below, above = np.float32(image[y, x, channel]), np.float32(layer[y, x, channel])
                image[y, x, channel] = np.uint8(below + share * (above - below) + HALF)
