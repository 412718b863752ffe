"""From an MJCF file to a scene with some of its objects."""

import os
import re
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

_INCLUDED = re.compile(rb"""<\s*(?:include|model)\b[^>]*?\bfile\s*=\s*["']([^"']+)["']""")
"""Files of MJCF that MuJoCo opens when it reads one."""


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
    _require_parts(path, path.parent, set())
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
    _keep_awake(model)
    # A world that blows up must not begin anew by itself: the episode ends there.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    things = tuple(thing for thing in config.things if thing not in absent)
    scene = Scene(config, file, things, model)
    check_scene(scene, path)
    return scene


def _require_parts(path: Path, folder: Path, seen: set[Path]) -> None:
    """Refuse a scene's file, or one that it includes, if it is something else, such as a pipe.

    Args:
        path: Of the file.
        folder: Of the scene, where MuJoCo looks for what is included.
        seen: Files that are known; this one and those that it includes are added.

    Raises:
        ConfigError: Names the file. Of an included one that is missing MuJoCo tells.
    """
    require_file(path)
    seen.add(path)
    for name in _INCLUDED.findall(path.read_bytes()):
        part = folder / os.fsdecode(name)
        if part not in seen and part.exists():
            _require_parts(part, folder, seen)


def _require_assets(spec: mujoco.MjSpec, folder: Path) -> None:
    """Refuse what lies in the place of an asset and is no file; of none there MuJoCo tells."""
    assets = [(spec.meshdir, mesh) for mesh in spec.meshes]
    assets += [(spec.texturedir, texture) for texture in spec.textures]
    assets += [(spec.meshdir, field) for field in spec.hfields]
    assets += [(spec.meshdir, skin) for skin in spec.skins]
    files = [(directory, asset.file) for directory, asset in assets]
    files += [(spec.texturedir, side) for texture in spec.textures for side in texture.cubefiles]
    for directory, file in files:
        place = folder / directory / file
        if file and place.exists():
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


def _keep_awake(model: mujoco.MjModel) -> None:
    """Let no object sleep that an equality ties to a mocap body.

    It moves with the body. MuJoCo ends the process (mj_sleep: "found sleeping tree") where it
    sleeps.
    """
    ties = (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD)
    for equality in np.flatnonzero(np.isin(model.eq_type, ties)):
        bodies = np.array([model.eq_obj1id[equality], model.eq_obj2id[equality]])
        if model.eq_objtype[equality] == mujoco.mjtObj.mjOBJ_SITE:
            bodies = model.site_bodyid[bodies]
        if (model.body_mocapid[model.body_rootid[bodies]] >= 0).any():
            trees = model.body_treeid[bodies]
            model.tree_sleep_policy[trees[trees >= 0]] = mujoco.mjtSleepPolicy.mjSLEEP_NEVER
