"""How the seen points of triangle meshes face the lights.

Per corner of a triangle and interpolated, not per pixel, like OpenGL: the normals of a model's
meshes are made for that.
"""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import ONE, TINY, ZERO, inlined
from vla_crl.sim.renderer.frame import Workspace, eye_in_geom, ray, row_ramp, row_start
from vla_crl.sim.renderer.scene_arrays import Scene
from vla_crl.sim.renderer.triangles import cross


@inlined
def light_meshes(scene: Scene, camera: int, workspace: Workspace):
    """Write the corners' weights wherever a mesh is seen, and max(0, n.l) for every light.

    Args:
        scene: Constants of the model.
        camera: Index into the drawn cameras.
        workspace: What `find_surfaces` and `list_pixels` left, with lights; `weight` and `facing`
            are written.
    """
    for geom in range(scene.geoms.mesh.size):
        if workspace.frame.is_seen[geom] and scene.geoms.mesh[geom] >= 0:
            lights_in_geom(geom, workspace)
            _light_mesh(scene, geom, camera, workspace)


@inlined
def _light_mesh(scene, geom, camera, workspace):
    meshes, mesh = scene.meshes, scene.geoms.mesh[geom]
    columns, rows = scene.cameras.columns[camera], scene.cameras.rows[camera]
    frame, weight, pixels = workspace.frame, workspace.weight, workspace.pixels
    num_lights, first_vertex = frame.facing.shape[0], meshes.first[mesh, 0]
    ramp, eye = row_ramp(frame, geom), eye_in_geom(frame, geom)
    width = np.uint32(columns.size)
    for i in range(workspace.first_pixel[geom], workspace.first_pixel[geom + 1]):
        pixel = pixels[np.uint64(i)]
        y, x = np.uint64(pixel // width), np.uint64(pixel % width)
        face = np.uint64(workspace.face[y, x])
        a, b, c = _corners(meshes, face, first_vertex)
        d = ray(ramp, row_start(frame, geom, rows[y]), columns[x])
        second, third, ratio = _meet(a, b, c, eye, d)
        weight[0, y, x], weight[1, y, x], weight[2, y, x] = second, third, ratio
        first = ONE - second - third
        for index in range(np.uint64(num_lights)):
            light = workspace.lights_in_geom[index]
            if light[3] == ZERO:
                share = first * _corner_facing_sun(meshes.normals[face, 0], light)
                share += second * _corner_facing_sun(meshes.normals[face, 1], light)
                share += third * _corner_facing_sun(meshes.normals[face, 2], light)
                frame.facing[index, y, x] = share
                continue
            share = first * _corner_facing(meshes.normals[face, 0], a, light)
            share += second * _corner_facing(meshes.normals[face, 1], b, light)
            share += third * _corner_facing(meshes.normals[face, 2], c, light)
            frame.facing[index, y, x] = share


@inlined
def _corners(meshes, face, first):
    v, faces = meshes.vertices, meshes.faces
    a = np.uint64(first + faces[face, 0])
    b = np.uint64(first + faces[face, 1])
    c = np.uint64(first + faces[face, 2])
    return (
        (v[a, 0], v[a, 1], v[a, 2]),
        (v[b, 0], v[b, 1], v[b, 2]),
        (v[c, 0], v[c, 1], v[c, 2]),
    )


@inlined
def _meet(a, b, c, eye, direction):
    """Return where a ray meets a triangle, see Workspace.weight."""
    e = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    f = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    s = eye[0] - a[0], eye[1] - a[1], eye[2] - a[2]
    p, q = cross(direction, f), cross(s, e)
    det = e[0] * p[0] + e[1] * p[1] + e[2] * p[2]
    ratio = ONE / (math.copysign(max(abs(det), TINY * TINY), det))
    second = (s[0] * p[0] + s[1] * p[1] + s[2] * p[2]) * ratio
    third = (direction[0] * q[0] + direction[1] * q[1] + direction[2] * q[2]) * ratio
    second = min(max(second, ZERO), ONE)
    third = min(max(third, ZERO), ONE - second)
    return second, third, abs(ratio)


@inlined
def lights_in_geom(geom: int, workspace: Workspace):
    """Write the lights in the frame of a mesh, from the camera's."""
    axes, lights, out = workspace.frame.axes[geom], workspace.lights, workspace.lights_in_geom
    eye = eye_in_geom(workspace.frame, geom)
    for index in range(lights.shape[0]):
        x, y, z, w = lights[index, 0], lights[index, 1], lights[index, 2], lights[index, 3]
        for k in range(3):
            turned = axes[3 * k] * x + axes[3 * k + 1] * y + axes[3 * k + 2] * z
            out[index, k] = w * eye[k] + turned
        out[index, 3] = w
        if w == ZERO:  # far away: the same direction, of length one, everywhere
            length = math.sqrt(x * x + y * y + z * z)
            for k in range(3):
                out[index, k] /= max(length, TINY)


@inlined
def _corner_facing_sun(n, light):
    return max(n[0] * light[0] + n[1] * light[1] + n[2] * light[2], ZERO)


@inlined
def _corner_facing(n, v, light):
    x, y, z = light[0] - v[0], light[1] - v[1], light[2] - v[2]
    dot = n[0] * x + n[1] * y + n[2] * z
    return max(dot, ZERO) / max(math.sqrt(x * x + y * y + z * z), TINY)
