"""From an MJCF file to a scene with some of its objects."""

from collections.abc import Collection, Sequence
from pathlib import Path

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.files.reading import require_file
from vla_crl.sim.native.memory import wanted_bytes
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.scene_checks import check_scene
from vla_crl.sim.native.scene_config import SceneConfig, ThingConfig


def compile_scene(config: SceneConfig, file: Path, objects: Collection[str]) -> Scene:
    """Compile the scene of a suite with only some of its objects.

    Args:
        config: Content of `file`.
        file: The suite.toml.
        objects: Names of the things with a free joint that are to be there.

    Raises:
        ConfigError: The things do not fit the scene.
    """
    path = file.parent / config.scene
    require_file(path)
    absent: list[ThingConfig] = []
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        _require_assets(spec, path.parent)
        free = {body.name for body in spec.bodies if _is_free(body)}
        absent = [t for t in config.things if t.body in free and t.name not in objects]
        for thing in absent:
            spec.delete(spec.body(thing.body))
        model = spec.compile()
        if model.narena < (wanted := wanted_bytes(model)):
            spec.memory = wanted
            model = spec.compile()
    except ValueError as error:
        without = _left_out(path, absent)
        raise ConfigError(f"{path}: MuJoCo cannot compile it{without}: {error}") from error
    _turn_outwards(model)
    # A world that blows up must not begin anew by itself: the episode ends there.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    things = tuple(thing for thing in config.things if thing not in absent)
    scene = Scene(config, file, things, model)
    check_scene(scene, path)
    return scene


def _require_assets(spec: mujoco.MjSpec, folder: Path) -> None:
    """Refuse what lies in the place of an asset and is no file; of none there MuJoCo tells."""
    assets = [(spec.meshdir, mesh) for mesh in spec.meshes]
    assets += [(spec.texturedir, texture) for texture in spec.textures]
    assets += [(spec.meshdir, field) for field in spec.hfields]
    for directory, asset in assets:
        place = folder / directory / asset.file
        if asset.file and place.exists():
            require_file(place)


def _is_free(body: mujoco.MjsBody) -> bool:
    return any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints)


def _left_out(path: Path, absent: Sequence[ThingConfig]) -> str:
    """Say which things are missing if all is well with them."""
    if not absent:
        return ""
    try:
        mujoco.MjSpec.from_file(str(path)).compile()
    except ValueError:
        return ""
    names = ", ".join(f"'{thing.name}'" for thing in absent)
    return f" without {names}, which a task's things leave out and the scene refers to"


def _turn_outwards(model: mujoco.MjModel) -> None:
    """Turn the hull of mirrored meshes right side out.

    MuJoCo mirrors the vertices of a mesh whose scale has an odd number of negative factors, but
    leaves the polygons of its convex hull in their order, so that contacts find their normals
    inwards.
    """
    first, count = model.mesh_polyvertadr, model.mesh_polyvertnum
    for mesh in np.flatnonzero(model.mesh_scale.prod(axis=1) < 0):
        start, stop = model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh]
        vertices = model.mesh_vert[start:stop]
        centre = vertices.mean(axis=0)
        polygons = range(
            model.mesh_polyadr[mesh], model.mesh_polyadr[mesh] + model.mesh_polynum[mesh]
        )
        for polygon in polygons:
            corners = model.mesh_polyvert[first[polygon] : first[polygon] + count[polygon]]
            if model.mesh_polynormal[polygon] @ (vertices[corners[0]] - centre) < 0:
                model.mesh_polynormal[polygon] *= -1
                corners[:] = corners[::-1].copy()
