"""Colours, textures and lights: what may differ between the worlds of a batch besides poses."""

from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.errors import SpecError
from vla_crl.sim.renderer.compilation import array_maker
from vla_crl.sim.renderer.scene_arrays import GeomArrays, LightArrays
from vla_crl.sim.renderer.surfaces import SurfaceArrays
from vla_crl.sim.renderer.view import visual_geoms, visual_scene

AMBIENT_WITHOUT_LIGHTS = 0.3
"""MuJoCo's global ambient light, which it sets only where there is no light at all."""


class Appearance(NamedTuple):
    """Colours, textures and lights of B worlds; names, numbering and dtypes are mjModel's.

    Lights are red, green, blue. Positions and directions are in world coordinates; those of a light
    that MuJoCo does not draw (not active) and colours of geoms that are not drawn say nothing.
    """

    geom_rgb: NDArray[np.float32]  # [B, ngeom, 3] in [0, 1]; a texture is multiplied by it
    geom_matid: NDArray[np.int32]  # [B, ngeom] whose texture is shown, and only that; -1: of none
    headlight_ambient: NDArray[np.float32]  # [B, 3]
    headlight_diffuse: NDArray[np.float32]  # [B, 3]
    light_ambient: NDArray[np.float32]  # [B, nlight, 3]
    light_diffuse: NDArray[np.float32]  # [B, nlight, 3]
    light_pos: NDArray[np.float64]  # [B, nlight, 3] metres; says nothing about directional lights
    light_dir: NDArray[np.float64]  # [B, nlight, 3] the way the light travels; of any length


class LookArrays(NamedTuple):
    """An appearance as the loops read it: only what is drawn; W = 1 if all worlds look the same."""

    colour: NDArray[np.float32]  # [W, 3, G + 1]; the last column is black and stands for "no geom"
    surface: NDArray[np.int32]  # [W, G] index into the surfaces
    ambient: NDArray[np.float32]  # [W, 3] global plus that of the headlight and every sun
    position: NDArray[np.float64]  # [W, L, 3] metres; of a sun: unit vector towards it
    direction: NDArray[np.float64]  # [W, L, 3] unit vector, the way the light travels
    diffuse: NDArray[np.float32]  # [W, L, 3]
    spot_ambient: NDArray[np.float32]  # [W, L, 3]


def model_appearance(model: mujoco.MjModel) -> Appearance:
    """Return the appearance that a model itself has, for one world."""
    geom_rgb = np.array(model.geom_rgba[:, :3], np.float32)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for geom in visual_geoms(visual_scene(model, data, range(mujoco.mjNGROUP))):
        geom_rgb[geom.objid] = geom.rgba[:3]  # knows whether the material's colour counts
    headlight = model.vis.headlight
    return Appearance(
        geom_rgb=geom_rgb[None],
        geom_matid=np.array(model.geom_matid, np.int32)[None],
        headlight_ambient=np.array([headlight.ambient], np.float32),
        headlight_diffuse=np.array([headlight.diffuse], np.float32),
        light_ambient=np.array(model.light_ambient, np.float32)[None],
        light_diffuse=np.array(model.light_diffuse, np.float32)[None],
        light_pos=np.array(model.light_pos, np.float64)[None],
        light_dir=np.array(model.light_dir, np.float64)[None],
    )


def wear(model: mujoco.MjModel, appearance: Appearance, world: int = 0) -> None:
    """Give a model what one world of an appearance looks like, for MuJoCo's own renderer."""
    model.geom_rgba[:, :3] = appearance.geom_rgb[world]
    model.geom_matid[:] = appearance.geom_matid[world]
    model.vis.headlight.ambient[:] = appearance.headlight_ambient[world]
    model.vis.headlight.diffuse[:] = appearance.headlight_diffuse[world]
    model.light_ambient[:] = appearance.light_ambient[world]
    model.light_diffuse[:] = appearance.light_diffuse[world]
    model.light_pos[:] = appearance.light_pos[world]
    model.light_dir[:] = appearance.light_dir[world]


def check_appearance(appearance: Appearance, own: Appearance, num_worlds: int) -> None:
    """Refuse arrays whose shape or dtype does not fit.

    Args:
        appearance: What a caller gave.
        own: The model's appearance.
        num_worlds: B.

    Raises:
        SpecError: An array has the wrong shape or dtype.
    """
    for name, array, fitting in zip(Appearance._fields, appearance, own, strict=True):
        shape = (num_worlds, *fitting.shape[1:])
        if array.shape != shape or array.dtype != fitting.dtype:
            raise SpecError(
                f"BatchRenderer: appearance.{name} is {array.dtype} {list(array.shape)}; expected "
                f"{fitting.dtype} {list(shape)}. BatchRenderer.appearance(num_worlds) returns "
                "arrays that fit."
            )


def look_arrays(
    appearance: Appearance, geoms: GeomArrays, surfaces: SurfaceArrays, lights: LightArrays
) -> LookArrays:
    """Pick what is drawn; every world is computed alone, so a batch gives the same bytes.

    Args:
        appearance: Of W worlds.
        geoms: The drawn geoms.
        surfaces: Theirs.
        lights: The drawn lights.

    Raises:
        SpecError: A material does not exist.
    """
    material, num_materials = appearance.geom_matid, surfaces.of_geom.shape[1] - 1
    if np.any((material < -1) | (material >= num_materials)):
        raise SpecError(
            f"BatchRenderer: appearance.geom_matid has {material.min()} to {material.max()}; "
            f"expected -1 (no material) to {num_materials - 1}."
        )
    num_worlds = len(appearance.geom_rgb)
    colour = np.zeros((num_worlds, 3, len(geoms.model_id) + 1), np.float32)
    colour[:, :, :-1] = appearance.geom_rgb[:, geoms.model_id].transpose(0, 2, 1)
    ambient = _pick(lights, appearance.headlight_ambient, appearance.light_ambient)
    # As mjvLight has them: unit vectors, in float32.
    inverse_length = 1.0 / np.maximum(np.linalg.norm(appearance.light_dir, axis=-1), 1e-15)
    unit = (appearance.light_dir * inverse_length[..., None]).astype(np.float32)
    nowhere = np.zeros((num_worlds, 3), np.float32)
    direction = _pick(lights, nowhere, unit)
    position = _pick(lights, nowhere, appearance.light_pos.astype(np.float32))
    everywhere = np.full(
        (num_worlds, 3), 0.0 if len(lights.is_spot) else AMBIENT_WITHOUT_LIGHTS, np.float64
    )
    for index in np.flatnonzero(~lights.is_spot):
        everywhere += ambient[:, index]
    looks = LookArrays(
        colour=colour,
        surface=surfaces.of_geom[np.arange(len(geoms.model_id)), material[:, geoms.model_id]],
        ambient=everywhere.astype(np.float32),
        position=np.where(lights.is_spot[:, None], position, -direction).astype(np.float64),
        direction=direction.astype(np.float64),
        diffuse=_pick(lights, appearance.headlight_diffuse, appearance.light_diffuse),
        spot_ambient=ambient,
    )
    # One memory layout for any number of worlds: numba compiles the renderer for each anew.
    return LookArrays._make(np.ascontiguousarray(array) for array in looks)


def _pick(
    lights: LightArrays, headlight: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return [W, L, 3] from [W, 3] and [W, nlight, 3]."""
    return np.concatenate([others, headlight[:, None]], axis=1)[:, lights.model_id]


@array_maker
def look_of(looks, world):
    """Return the arrays of one world, without their first axis."""
    row = min(world, looks.colour.shape[0] - 1)
    return LookArrays(
        looks.colour[row],
        looks.surface[row],
        looks.ambient[row],
        looks.position[row],
        looks.direction[row],
        looks.diffuse[row],
        looks.spot_ambient[row],
    )
