"""What a suite's scenes and its slots look like to the kernel."""

import mujoco
import numpy as np

from vla_crl.sim.native.controllers import KINDS
from vla_crl.sim.native.kernel.controller import Controller, state_size
from vla_crl.sim.native.kernel.mechanics import Mechanics, Objects, mechanics_of
from vla_crl.sim.native.kernel.slots import (
    Dynamics,
    SceneConstants,
    Sizes,
    SlotPoses,
    Slots,
    Varied,
    sizes_of,
)
from vla_crl.sim.native.servos import servos_of
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.packed_state import JUST_WOKEN, STATE_SPEC
from vla_crl.sim.stepped import Progress
from vla_crl.sim.threads import made_once
from vla_crl.sim.variation import MAX_LATENCY


@made_once
def constants_of(suite: Suite, index: int) -> SceneConstants:
    """Collect the constants of one of a suite's scenes; all simulations share them."""
    scene = suite.scenes[index]
    model, arm = scene.model, scene.config.arm
    cameras = suite.camera_ids[index]
    return SceneConstants(
        controller=Controller(
            KINDS[suite.controller],
            scene.chain,
            arm.max_step_m,
            arm.max_step_rad,
            np.array(arm.workspace_low_m),
            np.array(arm.workspace_high_m),
        ),
        arm_actuators=servos_of(model, arm.joints, str(scene.file)),
        arm_qpos=np.array(scene.qpos_index(arm.joints)),
        finger_actuators=servos_of(model, arm.fingers, str(scene.file)),
        grip_site=model.site(arm.grip_site).id,
        num_substeps=scene.num_substeps,
        horizon=scene.config.horizon,
        goals=suite.goals_of(index),
        sizes=sizes_of(model),
        mechanics=Mechanics(*(array.copy() for array in mechanics_of(model))),
        objects=Objects(scene.objects, model.body_dofadr[scene.objects].astype(np.int64)),
        base=model.body(arm.base).id,
        varied_cameras=np.isin(np.arange(model.ncam), cameras) & _are_fixed(model),
    )


def _are_fixed(model: mujoco.MjModel) -> np.ndarray:
    """Return [cameras] bool: those that neither a joint nor a mocap body moves."""
    bodies = model.cam_bodyid
    return (model.body_weldid[bodies] == 0) & (model.body_mocapid[model.body_rootid[bodies]] < 0)


def allocate_slots(suite: Suite, num_slots: int) -> Slots:
    """Allocate slots as wide as the widest scene; nothing varies, all else is zero."""
    scenes = suite.scenes
    sizes = [sizes_of(scene.model) for scene in scenes]
    size = Sizes(*(max(column) for column in zip(*sizes, strict=True)))

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((num_slots, *shape))

    return Slots(
        progress=Progress(*np.zeros((len(Progress._fields), num_slots), np.int64)),
        dynamics=Dynamics(
            physics=zeros(max(mujoco.mj_stateSize(s.model, STATE_SPEC) for s in scenes)),
            tree_asleep=np.full((num_slots, size.ntree), JUST_WOKEN, np.int32),
            controller=zeros(max(state_size(len(s.config.arm.joints)) for s in scenes)),
            pending=zeros(MAX_LATENCY, len(suite.embodiment.action)),
        ),
        poses=SlotPoses(
            body_pos=zeros(size.nbody, 3),
            site_pos=zeros(size.nsite, 3),
            site_mat=zeros(size.nsite, 9),
            geom_pos=zeros(size.ngeom, 3),
            geom_mat=zeros(size.ngeom, 9),
            camera_pos=zeros(size.ncam, 3),
            camera_mat=zeros(size.ncam, 9),
            qpos=zeros(size.nq),
        ),
        varied=Varied(
            camera_shift=zeros(3),
            camera_turn=zeros(9) + np.eye(3).ravel(),
            base_shift=zeros(3),
            mass_gain=zeros(max(len(s.objects) for s in scenes)) + 1.0,
            friction_gain=zeros() + 1.0,
            latency=np.zeros(num_slots, np.int64),
        ),
    )
