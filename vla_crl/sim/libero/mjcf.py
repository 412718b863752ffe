"""The scene file of a task in two forms: what is simulated, and what is drawn.

Numbers are kept as they are written in the file that robosuite gives to MuJoCo, so that a stripped
model moves exactly as the whole one. Meshes and textures are named by their content.
"""

import copy
import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from pathlib import Path

import mujoco
import numpy as np

from vla_crl.errors import ConfigError

ARENA_MEMORY = "16M"
"""Of an MjData; what LIBERO asks for is 1.3 GB, of which it uses 1 MB."""
BURNER = "vla_crl burner"
"""Geom of the drawn model that is seen while a stove burns."""
_SEEN_ONLY = ("visual", "sensor")
_PHYSICS = ("actuator", "body", "dof", "eq", "exclude", "jnt", "opt", "site", "tree")
"""How the names of arrays begin that physics depends on beside the geoms'."""
_PICTURES = ("body_geom", "body_bvh", "body_contype", "body_conaffinity", "site_rgba", "site_matid")
_SLEEP = ("dof_length",)
"""Arrays that only MuJoCo's sleep reads."""


def content_name(content: bytes, suffix: str) -> str:
    """Return a name for a file that tells its content."""
    return f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"


def assets_of(root: ET.Element) -> dict[Path, str]:
    """Rename the files of a scene by their content; return their new names."""
    names: dict[Path, str] = {}
    assets = root.find("asset")
    for element in assets if assets is not None else ():
        for attribute, file in element.attrib.items():
            if attribute.startswith("file"):
                path = Path(file)
                if path not in names:
                    names[path] = content_name(path.read_bytes(), path.suffix)
                if element.tag == "mesh" and "name" not in element.attrib:
                    element.set("name", path.stem)
                element.set(attribute, names[path])
    compiler = root.find("compiler")
    if compiler is not None:
        compiler.attrib.pop("meshdir", None)
        compiler.attrib.pop("texturedir", None)
    return names


def strip(root: ET.Element, model: mujoco.MjModel) -> None:
    """Remove from a scene what touches nothing: geoms, their meshes, textures, lights, sensors.

    Args:
        root: Of the scene file; changed.
        model: Compiled from it as it is.
    """
    worldbody = root.find("worldbody")
    assert worldbody is not None
    geom, kept = 0, set[str]()
    for body in _bodies(worldbody):
        for element in body.findall("geom"):
            if model.geom_contype[geom] or model.geom_conaffinity[geom]:
                kept.add(element.get("mesh", ""))
                element.attrib.pop("material", None)
            else:
                body.remove(element)
            geom += 1
        for element in [*body.findall("light"), *body.findall("camera")]:
            body.remove(element)
    if geom != model.ngeom:
        raise ConfigError(f"the scene has {model.ngeom} geoms, but {geom} in its file")
    for site in worldbody.iter("site"):
        site.attrib.pop("material", None)
    assets = root.find("asset")
    for element in [*assets] if assets is not None else ():
        if element.tag != "mesh" or element.get("name") not in kept:
            assets.remove(element)  # pyright: ignore[reportOptionalMemberAccess]
    for tag in _SEEN_ONLY:
        for element in root.findall(tag):
            root.remove(element)
    for size in root.findall("size"):
        root.remove(size)
    ET.SubElement(root, "size", memory=ARENA_MEMORY)


def to_be_drawn(
    root: ET.Element,
    visible: dict[str, list[float]],
    burner: str | None,
    fixtures: Collection[str],
) -> ET.Element:
    """Return a copy of a scene for renderers: sites that are seen are geoms.

    Args:
        root: Of the scene file.
        visible: Colours of the sites that are seen.
        burner: A site that is seen at times, which becomes the geom `BURNER`.
        fixtures: Bodies that are displaced from episode to episode, which become mocap bodies, so
            that they are not taken for something that never moves.
    """
    root = copy.deepcopy(root)
    worldbody = root.find("worldbody")
    assert worldbody is not None
    for body in _bodies(worldbody):
        if body.get("name") in fixtures:
            body.set("mocap", "true")
        for site in body.findall("site"):
            name = site.get("name", "")
            if name in visible or name == burner:
                geom = ET.SubElement(body, "geom", site.attrib)
                geom.attrib.update(contype="0", conaffinity="0", group="1", mass="0")
                geom.set("name", BURNER if name == burner else f"site {name}")
                colour = visible.get(name) or [
                    float(x) for x in site.get("rgba", "1 0 0 1").split()
                ]
                geom.set("rgba", " ".join(repr(x) for x in colour))
    for element in root.findall("sensor"):  # they name sites
        root.remove(element)
    return root


def _bodies(worldbody: ET.Element) -> Iterator[ET.Element]:
    """Yield bodies in the order of their numbers: depth first."""
    yield worldbody
    for body in worldbody.findall("body"):
        yield from _bodies(body)


def require_same_physics(model: mujoco.MjModel, stripped: mujoco.MjModel) -> None:
    """Check that a stripped model moves as the whole one does, bit by bit.

    Raises:
        ConfigError: They differ; names the array.
    """
    solid = np.flatnonzero((model.geom_contype != 0) | (model.geom_conaffinity != 0))
    for name in dir(model):
        value = getattr(model, name)
        if not isinstance(value, np.ndarray) or name.startswith(_PICTURES + _SLEEP):
            continue
        if name.startswith("geom_") and name not in ("geom_matid", "geom_dataid", "geom_rgba"):
            expected = value[solid]
        elif name.startswith(_PHYSICS):
            expected = value
        else:
            continue
        if not np.array_equal(getattr(stripped, name), expected):
            raise ConfigError(f"a scene without what is only seen differs from the whole: {name}")
    for name in (name for name in dir(model.opt) if not name.startswith("_")):
        if not np.array_equal(getattr(model.opt, name), getattr(stripped.opt, name)):
            raise ConfigError(f"a scene without what is only seen differs from the whole: {name}")
