"""What episodes vary of a scene itself: numbers of MuJoCo Warp's model, one set a world."""

import mujoco
import numpy as np
import warp as wp

from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.kernel.mechanics import Mechanics, vary
from vla_crl.sim.native.kernel.slots import SceneConstants, Slots
from vla_crl.sim.renderer import Appearance, model_appearance
from vla_crl.sim.warp.worlds import Worlds, put_rows

MECHANICS = tuple(name for name in Mechanics._fields if name != "dof_M0")
"""MuJoCo Warp has no `dof_M0`."""
LOOKS = ("cam_pos", "cam_quat", "light_dir", "geom_rgba", "geom_matid", "mat_rgba")
RGB = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)


class VariedModel:
    """Replaces fields of MuJoCo Warp's model, which all worlds share, by one row a world.

    The ray tracer knows lights by their direction alone. Light falls on a colour as a factor, so a
    stronger light is a brighter colour. It shows textures on planes and meshes.
    """

    def __init__(
        self, worlds: Worlds, constants: SceneConstants, episodes: Episodes, scene: int
    ) -> None:
        """Give every world the model's own numbers; within `wp.ScopedDevice`.

        Args:
            worlds: Their model is changed.
            constants: Of the scene.
            episodes: What they vary.
            scene: Index of the scene.
        """
        self._model, self._constants, self._episodes = worlds.model, constants, episodes
        self._scene, self._own_look = scene, model_appearance(worlds.model)
        self._fields: dict[str, wp.array] = {}
        for name in (*MECHANICS, *LOOKS):
            own = getattr(worlds.warp_model, name)
            values = np.repeat(own.numpy()[:1], worlds.num_worlds, axis=0)
            self._fields[name] = wp.array(values, dtype=own.dtype)
            setattr(worlds.warp_model, name, self._fields[name])

    def write(self, worlds: np.ndarray, slots: Slots) -> None:
        """Write what the episodes of `worlds` [B], indices of slots, have drawn."""
        values = self._mechanics(worlds, slots) | self._cameras(worlds, slots) | self._look(worlds)
        for name, field in self._fields.items():
            put_rows(field, worlds, values[name])

    def _look(self, worlds: np.ndarray) -> dict[str, np.ndarray]:
        model, num_worlds = self._model, len(worlds)
        look = Appearance._make(np.repeat(own, num_worlds, axis=0) for own in self._own_look)
        look = self._episodes.dress(look, self._scene, worlds)
        gain = self._episodes.light_gain[worlds].reshape(-1, 1, 1)
        rgba = np.repeat(model.geom_rgba[None], num_worlds, axis=0)
        rgba[..., :3] = gain * look.geom_rgb
        material_rgba = np.repeat(model.mat_rgba[None], num_worlds, axis=0)
        material_rgba[..., :3] *= gain
        # A material without a texture is only a colour, which is in `rgba` already.
        has_texture = np.append(model.mat_texid[:, RGB] >= 0, False)[look.geom_matid]
        return {
            "light_dir": look.light_dir,
            "geom_rgba": rgba,
            "geom_matid": np.where(has_texture, look.geom_matid, -1),
            "mat_rgba": material_rgba,
        }

    def _mechanics(self, worlds: np.ndarray, slots: Slots) -> dict[str, np.ndarray]:
        nominal = self._constants.mechanics
        drawn = [Mechanics(*(array.copy() for array in nominal)) for _ in worlds]
        for world, mechanics in zip(worlds, drawn, strict=True):
            gains = slots.varied.mass_gain[world], slots.varied.friction_gain[world]
            vary(nominal, mechanics, self._constants.objects, *gains)
        return {name: np.stack([getattr(each, name) for each in drawn]) for name in MECHANICS}

    def _cameras(self, worlds: np.ndarray, slots: Slots) -> dict[str, np.ndarray]:
        """Displace cameras that are fixed to the world: p + R s, R T."""
        model, varied = self._model, np.flatnonzero(self._constants.varied_cameras)
        position = np.repeat(model.cam_pos[None], len(worlds), axis=0)
        quaternion = np.repeat(model.cam_quat[None], len(worlds), axis=0)
        turn = slots.varied.camera_turn[worlds].reshape(-1, 3, 3)
        for camera in varied:
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, model.cam_quat[camera])
            rotation = rotation.reshape(3, 3)
            position[:, camera] += slots.varied.camera_shift[worlds] @ rotation.T
            for k, matrix in enumerate(rotation @ turn):
                mujoco.mju_mat2Quat(quaternion[k, camera], matrix.ravel())
        return {"cam_pos": position, "cam_quat": quaternion}
