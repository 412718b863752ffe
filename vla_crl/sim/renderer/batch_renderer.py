"""Images of many worlds that share one model."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.renderer.appearance import (
    Appearance,
    LookArrays,
    check_appearance,
    look_arrays,
    look_of,
    model_appearance,
)
from vla_crl.sim.renderer.compilation import entry_point
from vla_crl.sim.renderer.drawable import GEOM_GROUPS
from vla_crl.sim.renderer.frame import new_workspace
from vla_crl.sim.renderer.looks import DEFAULT_LOOK, LookName, reads_srgb
from vla_crl.sim.renderer.poses import Poses, blocks_of, check_poses, check_view, images_for
from vla_crl.sim.renderer.rasterizer import clear, find_surfaces, has_finite_pose
from vla_crl.sim.renderer.scene_arrays import build_scene
from vla_crl.sim.renderer.shading import draw_sky, find_seen, shade
from vla_crl.sim.renderer.stages import (
    BACKGROUND,
    TRANSPARENT,
    Backgrounds,
    begin,
    finish,
    new_backgrounds,
    stage_of,
)


class BatchRenderer:
    """Draw the geoms of B worlds as seen by some cameras of their model.

    Worlds differ in poses and, if `render` is told so, in colours, textures and lights; shapes and
    lenses are read from the model once. What is drawn follows MuJoCo's own renderer: primitives
    with exact outlines (no tessellation), triangle meshes, Lambert shading of ambient and diffuse
    light, 2D and cube textures with smaller copies for far surfaces, the skybox by elevation. The
    same poses and appearance give the same bytes for every batch, thread count and order.

    Deviations: Edges are not smoothed. A checker on a plane has exactly its 2 x 2 colours. Meshes
    that look small are drawn from coarser copies, kept in the user's cache folder, whose surface is
    off by less than about half a pixel. Of the transparent geoms (alpha < 1) only the nearest is
    seen at a pixel, blended over the opaque ones like one that MuJoCo draws (twice, so with the
    opacity 1 - (1 - alpha)^2); alpha is the model's in all worlds.
    Where a camera and meshes are fixed to the world, their picture is kept from call to call, and
    what moves is laid over it.
    Planes are invisible from behind. Sites, shadows, specular light, fog and reflections are not
    drawn. What else MuJoCo would show and this does not, such as tendons, skins, flexes and height
    fields, is refused unless it is hidden by its group or alpha.

    Args:
        model: Not kept; later changes to it are not seen.
        cameras: Names, in the order of the images' camera axis.
        height: In pixels.
        width: In pixels.
        geom_groups: mjModel geom groups that are drawn.
        level_of_detail: Whether meshes that look small are drawn from coarser copies.
        look: Whose pictures these are, see `looks`.
        num_threads: Threads a call is spread over.

    Raises:
        ConfigError: A camera or look does not exist.
        SpecError: The model has something visible that cannot be drawn.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[str],
        height: int,
        width: int,
        *,
        geom_groups: Sequence[int] = GEOM_GROUPS,
        level_of_detail: bool = True,
        look: LookName = DEFAULT_LOOK,
        num_threads: int = 1,
    ) -> None:
        check_view("BatchRenderer", cameras, height, width, num_threads)
        self.cameras = tuple(cameras)
        self.height = height
        self.width = width
        self.num_threads = num_threads
        self._num_geoms = model.ngeom
        self._num_cameras = model.ncam
        reads_srgb("BatchRenderer", look)
        self.look = look
        self._scene, self._shelves = build_scene(
            model,
            self.cameras,
            (height, width),
            geom_groups,
            level_of_detail=level_of_detail,
            look=look,
        )
        self._appearance = model_appearance(model)
        self._looks = self._looks_of(self._appearance)
        self._backgrounds: list[Backgrounds] = []
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def render(
        self,
        geom_xpos: NDArray[np.float64],
        geom_xmat: NDArray[np.float64],
        cam_xpos: NDArray[np.float64],
        cam_xmat: NDArray[np.float64],
        *,
        appearance: Appearance | None = None,
        out: NDArray[np.uint8] | None = None,
        rows: slice = slice(None),
    ) -> NDArray[np.uint8]:
        """Draw colour images.

        A geom whose pose is not finite is not drawn; a camera whose pose is not sees black.
        Releases the interpreter lock, so callers may draw blocks of rows from threads of their own.

        Args:
            geom_xpos: [B, ngeom, 3] of mjData.
            geom_xmat: [B, ngeom, 9].
            cam_xpos: [B, ncam, 3].
            cam_xmat: [B, ncam, 9].
            appearance: Colours, textures and lights of the B worlds; None: those of the model.
            out: [B, cameras, H, W, 3] uint8, C-contiguous; None allocates it.
            rows: Worlds to draw, with step 1; the other rows of `out` are left as they are.

        Returns:
            `out`.

        Raises:
            SpecError: An array has the wrong shape or dtype.
        """
        poses = Poses(geom_xpos, geom_xmat, cam_xpos, cam_xmat)
        looks = self._looks
        if appearance is not None:
            check_appearance(appearance, self._appearance, len(geom_xpos))
            looks = self._looks_of(appearance)

        def kernel(poses: tuple, start: int, stop: int, images: NDArray[np.uint8]) -> None:
            try:
                backgrounds = self._backgrounds.pop()  # nobody else draws with them meanwhile
            except IndexError:
                backgrounds = new_backgrounds(self._scene, self._looks)
            _render_frames(self._scene, looks, backgrounds, poses, start, stop, images)
            self._backgrounds.append(backgrounds)

        return self._draw(kernel, poses, out, rows, np.uint8, (3,))

    def segment(
        self,
        geom_xpos: NDArray[np.float64],
        geom_xmat: NDArray[np.float64],
        cam_xpos: NDArray[np.float64],
        cam_xmat: NDArray[np.float64],
        *,
        out: NDArray[np.int32] | None = None,
        rows: slice = slice(None),
    ) -> NDArray[np.int32]:
        """Draw geom ids instead of colours; arguments as in `render`.

        Returns:
            [B, cameras, H, W] int32: the model's geom id, -1 where there is no geom. Transparent
            geoms count like opaque ones.
        """
        poses = Poses(geom_xpos, geom_xmat, cam_xpos, cam_xmat)

        def kernel(poses: tuple, start: int, stop: int, ids: NDArray[np.int32]) -> None:
            _segment_frames(self._scene, poses, start, stop, ids)

        return self._draw(kernel, poses, out, rows, np.int32, ())

    def appearance(self, num_worlds: int) -> Appearance:
        """Return the model's own appearance for some worlds, to be changed and drawn.

        Example:
            Halve the lights of world 3 and paint one of its geoms red::

                appearance = renderer.appearance(num_worlds)
                appearance.light_diffuse[3] *= 0.5
                appearance.geom_rgb[3, model.geom("ball").id] = 1.0, 0.0, 0.0
                images = renderer.render(*poses, appearance=appearance)
        """
        return Appearance._make(field.repeat(num_worlds, axis=0) for field in self._appearance)

    def _looks_of(self, appearance: Appearance) -> LookArrays:
        scene = self._scene
        return look_arrays(appearance, scene.geoms, scene.surfaces, scene.lights)

    def _draw(
        self,
        kernel: Callable[..., None],
        poses: Poses,
        out: NDArray[Any] | None,
        rows: slice,
        dtype: type,
        channels: tuple[int, ...],
    ) -> NDArray[Any]:
        where, num_worlds = "BatchRenderer", len(poses.geom_xpos)
        checked = tuple(check_poses(where, poses, self._num_geoms, self._num_cameras))
        shape = (num_worlds, len(self.cameras), self.height, self.width, *channels)
        out = images_for(where, out, shape, dtype)
        blocks = blocks_of(where, rows, num_worlds, self.num_threads)
        if self._pool is None:
            kernel(checked, *blocks[0], out)
            return out
        jobs = [self._pool.submit(kernel, checked, *block, out) for block in blocks]
        for job in jobs:
            job.result()
        return out


def _make_render_frames(version: int) -> Callable[..., None]:
    """Build the loop over worlds and cameras; `version` belongs to the key of its cache."""

    @entry_point
    def render_frames(scene, looks, backgrounds, poses, start, stop, images):
        _ = version  # see entry_point
        num_geoms = scene.geoms.model_id.size
        height, width = images.shape[2], images.shape[3]
        num_lights, num_vertices = scene.lights.is_spot.size, scene.meshes.max_vertices
        workspace = new_workspace(num_geoms, num_lights, height, width, num_vertices)
        frame = workspace.frame
        picture = np.zeros((height, width, 3), np.uint8)
        for world in range(start, stop):
            pose = (poses[0][world], poses[1][world], poses[2][world], poses[3][world])
            look = look_of(looks, world)
            for camera in range(images.shape[1]):
                image = images[world, camera]
                if not has_finite_pose(scene.cameras, camera, pose):
                    image[:] = 0
                    continue
                # One place for every stage, or there would be two versions, rounded differently.
                for stage in range(3):
                    first, last, is_drawn = stage_of(scene, backgrounds, stage, camera, pose, look)
                    if not is_drawn:
                        continue
                    is_whole = first == 0 and stage != TRANSPARENT
                    target = image if is_whole else picture
                    if stage == BACKGROUND:
                        target = backgrounds.image[camera]
                    begin(scene, backgrounds, stage, camera, frame, image)
                    find_surfaces(scene, camera, pose, workspace, first, last)
                    find_seen(frame)
                    frame.is_seen[:first] = False
                    if is_whole or frame.is_seen[first:last].any():
                        shade(scene, look, camera, pose, workspace, target)
                    if is_whole and frame.is_seen[num_geoms]:
                        draw_sky(scene, camera, pose, frame, target)
                    finish(scene, backgrounds, stage, camera, frame, (picture, image))

    return render_frames


def _make_segment_frames(version: int) -> Callable[..., None]:
    """Build the same loop for geom ids."""

    @entry_point
    def segment_frames(scene, poses, start, stop, ids):
        _ = version  # see entry_point
        num_geoms = scene.geoms.model_id.size
        height, width, num_vertices = ids.shape[2], ids.shape[3], scene.meshes.max_vertices
        workspace = new_workspace(num_geoms, 0, height, width, num_vertices)
        frame = workspace.frame
        names = np.full(num_geoms + 1, -1, np.int32)
        names[:num_geoms] = scene.geoms.model_id
        for world in range(start, stop):
            pose = (poses[0][world], poses[1][world], poses[2][world], poses[3][world])
            for camera in range(ids.shape[1]):
                clear(scene.cameras, camera, frame)
                find_surfaces(scene, camera, pose, workspace, 0, num_geoms)
                for y in range(height):
                    for x in range(width):
                        ids[world, camera, y, x] = names[frame.geom[y, x]]

    return segment_frames


_render_frames = _make_render_frames(source_version("renderer/*.py"))
_segment_frames = _make_segment_frames(source_version("renderer/*.py"))
