"""What a scene must be like so that what is simulated is what its file says."""

from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.sim.native.kernel.controller import FINGER_OPEN_M
from vla_crl.sim.native.scene import Scene, check_reachable, is_free
from vla_crl.sim.native.servos import servos_of
from vla_crl.sim.renderer import GEOM_GROUPS, drawable_views

ONE_DOF = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
CLOSE_TO_AN_END = 1e-3
"""Parts of a joint's range by which a servo's may be narrower, as in files that round both."""
MAX_SUBSTEPS = 10_000
"""Of physics in a control step."""
ELEMENTS = {
    "body": "body", "jnt": "joint", "geom": "geom", "site": "site", "cam": "camera",
    "light": "light", "mat": "material", "eq": "equality", "tendon": "tendon",
    "actuator": "actuator", "sensor": "sensor",
}  # fmt: skip
"""Of the prefixes of mjModel's arrays with a row for each: what MJCF calls it."""


def check_scene(scene: Scene, scene_file: Path) -> None:
    """Refuse what is not simulated or drawn as MuJoCo would, with the name of the element.

    Args:
        scene: Just compiled.
        scene_file: The MJCF file.

    Raises:
        ConfigError: The suite.toml does not fit the scene, or the scene has such an element.
    """
    _check_numbers(scene.model, scene_file)
    _check_physics(scene.model, scene_file)
    _check_names(scene, scene.file)
    _check_things(scene, scene.file)
    _check_arm(scene, scene.file)
    _check_links(scene, scene.file)
    _check_fingers(scene, scene.file)
    _check_commands(scene, scene.file)
    _check_period(scene, scene.file)
    _check_lenses(scene, scene_file)
    cameras = (*scene.config.cameras, scene.config.film_camera)
    try:
        drawable_views(str(scene_file), scene.model, cameras, GEOM_GROUPS)
    except SpecError as error:
        raise ConfigError(str(error)) from error


def _check_numbers(model: mujoco.MjModel, scene_file: Path) -> None:
    """Refuse NaN and infinity, which MuJoCo takes almost everywhere and warns of at most."""
    visual = [getattr(model.vis, part) for part in ("headlight", "map", "scale", "rgba")]
    for holder in (model, model.opt, model.stat, *visual):
        for field in sorted(dir(holder), key=_derived_from_others):
            if field.startswith(("_", "key_")) or field.endswith("user"):
                continue  # what simulates nothing
            numbers = getattr(holder, field)
            if not isinstance(numbers, (float, np.ndarray)):
                continue
            wrong = np.argwhere(~np.isfinite(np.atleast_1d(numbers)))
            if not len(wrong):
                continue
            element = _element(model, field, int(wrong[0, 0])) if holder is model else "the scene's"
            raise ConfigError(
                f"{scene_file}: {element} {field} has {np.atleast_1d(numbers)[tuple(wrong[0])]}, "
                "expected finite numbers"
            )


def _derived_from_others(field: str) -> int:
    """Sort fields: those of a file first, then bodies', made of geoms', then initial postures'."""
    return 2 if field.endswith("0") else int(field.startswith("body_"))


def _element(model: mujoco.MjModel, field: str, index: int) -> str:
    kind = ELEMENTS.get(field.partition("_")[0])
    if kind is None:
        return "the scene's"
    number = getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}")
    return f"{kind} '{mujoco.mj_id2name(model, number, index) or ''}' (id {index}):"


def _check_physics(model: mujoco.MjModel, scene_file: Path) -> None:
    if not (np.isfinite(model.opt.timestep) and model.opt.timestep > 0):
        raise ConfigError(
            f"{scene_file}: option timestep is {model.opt.timestep:g} s, expected more than 0"
        )
    if model.nplugin:
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_PLUGIN, 0) or ""
        raise ConfigError(
            f"{scene_file}: plugin '{name}' (id 0): no plugins are simulated, as what one "
            "remembers is no part of a slot's state; leave it out"
        )
    try:
        mujoco.mj_forward(model, mujoco.MjData(model))
    except mujoco.FatalError as error:
        raise ConfigError(f"{scene_file}: MuJoCo cannot simulate it: {error}") from error


def _check_names(scene: Scene, path: Path) -> None:
    model, config = scene.model, scene.config
    known = {
        "body": {model.body(i).name for i in range(model.nbody)},
        "camera": {model.camera(i).name for i in range(model.ncam)},
        "site": {model.site(i).name for i in range(model.nsite)},
        "joint": {model.joint(i).name for i in range(model.njnt)},
    }
    used = [("body", thing.body) for thing in scene.things] + [("body", config.arm.base)]
    used += [("camera", camera) for camera in (*config.cameras, config.film_camera)]
    used += [("joint", joint) for joint in (*config.arm.joints, *config.arm.fingers)]
    used += [("site", config.arm.grip_site)]
    used += [("joint", thing.joint) for thing in scene.things if thing.joint]
    used += [("site", thing.handle) for thing in scene.things if thing.handle]
    for kind, name in used:
        if name not in known[kind]:
            raise unknown_name(str(path), kind, name, known[kind] - {""})


def _is_below(model: mujoco.MjModel, part: Any, ancestor: int) -> bool:
    """Whether a joint or site belongs to a body that is, or descends from, `ancestor`."""
    body = int(part.bodyid[0])
    while body not in (ancestor, 0):
        body = int(model.body_parentid[body])
    return body == ancestor


def _check_things(scene: Scene, path: Path) -> None:
    """Check what the simulation relies on and names alone do not tell."""
    model = scene.model
    for thing in scene.things:
        if thing.joint is not None:
            joint = model.joint(thing.joint)
            if model.body(joint.bodyid[0]).name != thing.body or joint.type[0] not in ONE_DOF:
                raise ConfigError(
                    f"{path}: thing '{thing.name}': joint '{thing.joint}' is no hinge or slide "
                    f"of body '{thing.body}'"
                )
            if joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE and joint.pos.any():
                raise ConfigError(
                    f"{path}: thing '{thing.name}': hinge '{thing.joint}' is not at the origin of "
                    f"body '{thing.body}'; move the body there"
                )
            for name in ("on_at", "off_at"):
                check_reachable(
                    model,
                    thing.joint,
                    getattr(thing, name),
                    f"{path}: thing '{thing.name}': {name}",
                )
        body = model.body(thing.body)
        if thing.joint is None and body.mocapid[0] < 0 and not is_free(model, body.id):
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' is fixed to the scene, "
                "expected a free joint, a mocap body or a joint of its own"
            )
        if is_free(model, body.id) and not body.geomnum[0]:
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' has no geom of its own; put "
                "what it stands on into that body"
            )
        if is_free(model, body.id) and np.any(model.body_parentid == body.id):
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' has bodies within; an object "
                "is one body, so put their geoms into it"
            )
        if thing.body == scene.config.arm.base:
            raise ConfigError(f"{path}: thing '{thing.name}': body '{thing.body}' is the arm's")


def _check_arm(scene: Scene, path: Path) -> None:
    """Check that the arm is a chain of driven hinges whose base an episode can displace."""
    model, config = scene.model, scene.config
    if model.body(config.arm.base).mocapid[0] < 0:
        raise ConfigError(
            f"{path}: arm.base: body '{config.arm.base}' is fixed to the scene, expected "
            'mocap="true", so that an episode can displace the robot'
        )
    servos_of(model, (*config.arm.joints, *config.arm.fingers), f"{path}: arm")
    above, links = model.body(config.arm.base).id, [*map(model.joint, config.arm.joints)]
    for joint in links:
        if joint.type[0] != mujoco.mjtJoint.mjJNT_HINGE or not _is_below(model, joint, above):
            raise ConfigError(
                f"{path}: arm.joints: '{joint.name}' is no hinge below "
                f"'{model.body(above).name}'; name the joints in their order from the base on"
            )
        if not joint.limited[0]:
            raise ConfigError(
                f"{path}: arm.joints: '{joint.name}' has no range, expected one that inverse "
                "kinematics and targets of joints can keep to"
            )
        above = int(joint.bodyid[0])
    site = model.site(config.arm.grip_site)
    if not _is_below(model, site, above):
        raise ConfigError(
            f"{path}: arm.grip_site: '{site.name}' is not on what '{links[-1].name}' moves"
        )
    if len(config.arm.rest_joints_rad) != len(config.arm.joints):
        raise ConfigError(
            f"{path}: arm.rest_joints_rad has {len(config.arm.rest_joints_rad)} numbers, "
            f"expected {len(config.arm.joints)}, one per joint"
        )


def _check_period(scene: Scene, path: Path) -> None:
    period_s = 1.0 / scene.config.control_hz
    if scene.num_substeps > MAX_SUBSTEPS:
        raise ConfigError(
            f"{path}: a control step of {period_s:g} s would take {scene.num_substeps:.3g} steps "
            f"of the scene's timestep {scene.model.opt.timestep:g} s, expected at most "
            f"{MAX_SUBSTEPS}; change control_hz or the timestep"
        )
    rest = abs(scene.num_substeps * scene.model.opt.timestep - period_s)
    if not scene.num_substeps or rest > 1e-9:
        raise ConfigError(
            f"{path}: a control step of {period_s:g} s is no multiple of the scene's "
            f"timestep {scene.model.opt.timestep:g} s; change control_hz or the timestep"
        )


def _check_links(scene: Scene, path: Path) -> None:
    """Check that inverse kinematics knows every joint between the base and the grip."""
    model, arm = scene.model, scene.config.arm
    base, body = model.body(arm.base).id, int(model.site(arm.grip_site).bodyid[0])
    while body != base:
        first = model.body_jntadr[body]
        for joint in range(first, first + model.body_jntnum[body]):
            name = model.joint(joint).name
            if name not in arm.joints:
                raise ConfigError(
                    f"{path}: arm.joints: joint '{name}' of body '{model.body(body).name}' moves "
                    f"'{arm.grip_site}', too; name it there, in its place, or weld its body"
                )
        body = int(model.body_parentid[body])


def _check_fingers(scene: Scene, path: Path) -> None:
    model = scene.model
    for name in scene.config.arm.fingers:
        if model.joint(name).type[0] != mujoco.mjtJoint.mjJNT_SLIDE:
            raise ConfigError(
                f"{path}: arm.fingers: '{name}' is no slide, expected one that is at 0 where the "
                f"gripper is closed and at {FINGER_OPEN_M} m where it is open"
            )
        for place, position in (("closed", 0.0), ("open", FINGER_OPEN_M)):
            check_reachable(model, name, position, f"{path}: arm.fingers: a finger that is {place}")


def _check_commands(scene: Scene, path: Path) -> None:
    """Check that servos may be told to go wherever actions and inverse kinematics send a joint."""
    model, arm = scene.model, scene.config.arm
    if model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL):
        return
    asked = [(name, model.joint(name).range) for name in arm.joints]
    asked += [(name, np.array([0.0, FINGER_OPEN_M])) for name in arm.fingers]
    for name, (low, high) in asked:
        (servo,) = servos_of(model, [name], f"{path}: arm")
        lowest, highest = model.actuator_ctrlrange[servo]
        slack = CLOSE_TO_AN_END * (high - low)
        if model.actuator_ctrllimited[servo] and (lowest > low + slack or highest < high - slack):
            raise ConfigError(
                f"{path}: arm: joint '{name}' is to go from {low:g} to {high:g}, but the ctrlrange "
                f"of actuator '{model.actuator(servo).name}' (id {servo}) is {lowest:g} to "
                f'{highest:g}; leave it out, write inheritrange="1", or narrow the joint\'s range'
            )


def _check_lenses(scene: Scene, scene_file: Path) -> None:
    """Check that fovy is all there is to know about the policy's cameras, as labels suppose."""
    for name in scene.config.cameras:
        camera = scene.model.camera(name).id
        size, lens = scene.model.cam_sensorsize[camera], scene.model.cam_intrinsic[camera]
        if size.any() and (not np.isclose(*lens[:2] / size) or lens[2:].any()):
            raise ConfigError(
                f"{scene_file}: camera '{name}' has a picture that is stretched or off its axis; "
                "expected a sensorsize and focal lengths as of a square picture, and principal at "
                "0, or fovy instead"
            )
