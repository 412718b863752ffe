"""MuJoCo's own renderer, called like `BatchRenderer`: slow, and the measure of what is right."""

import atexit
import copy
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.hardware import GL_INSTALL
from vla_crl.sim.renderer.appearance import (
    Appearance,
    check_appearance,
    model_appearance,
    wear,
)
from vla_crl.sim.renderer.looks import DEFAULT_LOOK, LookName, reads_srgb
from vla_crl.sim.renderer.poses import Poses, blocks_of, check_poses, check_view, images_for
from vla_crl.sim.renderer.view import fixed_camera, view_option

FAR_AWAY_M = 1e6
"""Where a geom goes that has no finite pose: beyond every far plane."""


class GLRenderer:
    """Draw the geoms of B worlds with MuJoCo's OpenGL renderer, one image after another.

    Drawn is what MuJoCo draws by default, with smooth edges, shadows and reflections; sites are
    not. MuJoCo takes its GL backend from MUJOCO_GL when it is imported.

    A context of OpenGL belongs to the thread that made it, so each context has a thread of its own,
    and `render` may be called from any thread. `close` lets go of them.

    Args:
        model: Kept; must not be changed.
        cameras: Names, in the order of the images' camera axis.
        height: In pixels.
        width: In pixels.
        geom_groups: mjModel geom groups that are drawn.
        look: Whose pictures these are, see `looks`.
        num_threads: Contexts that share a call, each with the textures in its own memory.

    Raises:
        ConfigError: A camera or look does not exist, or there is no OpenGL.
        SpecError: A size is not positive.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[str],
        height: int,
        width: int,
        *,
        geom_groups: Sequence[int] = (0, 1, 2),
        look: LookName = DEFAULT_LOOK,
        num_threads: int = 1,
    ) -> None:
        check_view("GLRenderer", cameras, height, width, num_threads)
        known = [model.camera(index).name for index in range(model.ncam)]
        for name in cameras:
            if name not in known:
                raise unknown_name("GLRenderer", "camera", name, known)
        if not cameras:
            raise SpecError("GLRenderer: no camera was named; give at least one camera name.")
        self.cameras = tuple(cameras)
        self.height = height
        self.width = width
        self.look = look
        self.num_threads = num_threads
        self._model = model
        self._own_appearance: Appearance | None = None
        srgb = reads_srgb("GLRenderer", look)
        self._painters: list[_Painter] = []
        self._close = weakref.finalize(self, _close_all, self._painters)
        self._close.atexit = False  # then the threads are gone already: see _close_at_exit
        for _ in range(num_threads):
            painter = _Painter()
            self._painters.append(painter)
            painter.run(painter.open, model, (height, width), geom_groups, srgb)

    @property
    def version(self) -> str:
        """Backend, driver and version that made the pictures, for the fingerprint of a result."""
        return self._painters[0].version

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
        """Draw colour images; arguments, result and errors as in `BatchRenderer.render`.

        Lights are where the model has them; those that move with a body stay at its reference pose.
        """
        given = Poses(geom_xpos, geom_xmat, cam_xpos, cam_xmat)
        poses = check_poses("GLRenderer", given, self._model.ngeom, self._model.ncam)
        if appearance is not None:
            if self._own_appearance is None:
                self._own_appearance = model_appearance(self._model)
            check_appearance(appearance, self._own_appearance, len(geom_xpos))
        shape = (len(geom_xpos), len(self.cameras), self.height, self.width, 3)
        out = images_for("GLRenderer", out, shape, np.uint8)
        camera_ids = [self._model.camera(name).id for name in self.cameras]
        jobs = [
            painter.submit(painter.draw, poses, appearance, block, camera_ids, out)
            for painter, block in zip(
                self._painters,
                blocks_of("GLRenderer", rows, len(geom_xpos), self.num_threads),
                strict=True,
            )
        ]
        for job in jobs:
            job.result()
        return out

    def close(self) -> None:
        """Free the contexts and their threads; nothing can be drawn any more."""
        self._close()

    def __enter__(self) -> "GLRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Painter:
    """A thread and what belongs to it: a GL context, the textures and meshes in it, a scene."""

    def __init__(self) -> None:
        self.version = ""
        self._thread = ThreadPoolExecutor(1, "gl")
        self.submit = self._thread.submit
        self._context: Any = None
        self._resources: mujoco.MjrContext | None = None

    def run(self, function: Any, *arguments: Any) -> None:
        """Call a method in the thread and wait for it."""
        self.submit(function, *arguments).result()

    def open(
        self,
        model: mujoco.MjModel,
        resolution: tuple[int, int],
        geom_groups: Sequence[int],
        srgb: bool,
    ) -> None:
        height, width = resolution
        self._context = _gl_context(width, height)
        atexit.register(self._close_at_exit)  # called before what the context has registered
        uploaded = model
        if not srgb:
            uploaded = copy.copy(model)
            uploaded.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
        self._resources = mujoco.MjrContext(uploaded, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._resources)
        mujoco.mjr_resizeOffscreen(width, height, self._resources)
        self.version = _gl_version()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 1000)
        self._option = view_option(geom_groups)
        self._model, self._is_own_copy = model, False
        self._data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, self._data)
        mujoco.mj_comPos(model, self._data)
        mujoco.mj_camlight(model, self._data)

    def draw(
        self,
        poses: Poses,
        appearance: Appearance | None,
        block: tuple[int, int],
        camera_ids: Sequence[int],
        out: NDArray[np.uint8],
    ) -> None:
        """Draw some worlds from all cameras."""
        if appearance is not None and not self._is_own_copy:
            self._model, self._is_own_copy = copy.copy(self._model), True
        own = model_appearance(self._model) if appearance is not None else None
        for world in range(*block):
            if appearance is not None:
                wear(self._model, appearance, world)
            self._take_poses(poses, world)
            for image, camera in zip(out[world], camera_ids, strict=True):
                self._draw_view(camera, image)
        if own is not None:
            wear(self._model, own)

    def _take_poses(self, poses: Poses, world: int) -> None:
        for name, array in poses._asdict().items():
            getattr(self._data, name)[:] = array[world]
        data = self._data
        is_finite = np.isfinite(data.geom_xpos).all(axis=1) & np.isfinite(data.geom_xmat).all(
            axis=1
        )
        data.geom_xpos[~is_finite] = FAR_AWAY_M
        data.geom_xmat[~is_finite] = np.eye(3).ravel()

    def _draw_view(self, camera: int, image: NDArray[np.uint8]) -> None:
        data = self._data
        if not (
            np.isfinite(data.cam_xpos[camera]) & np.isfinite(data.cam_xmat[camera]).all()
        ).all():
            image[:] = 0
            return
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, fixed_camera(camera),
            mujoco.mjtCatBit.mjCAT_ALL, self._scene,
        )  # fmt: skip
        mujoco.mjr_render(self._viewport, self._scene, self._resources)
        mujoco.mjr_readPixels(image, None, self._viewport, self._resources)
        image[:] = image[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free what belongs to the thread, in the thread, and end it."""
        if self._resources is not None:
            self._resources.free()
        if self._context is not None:
            self._context.free()
        self._resources = self._context = None
        atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        """Free the context of a thread that has ended, while OpenGL is still there.

        Only that thread could free what is in the context, which goes with the process.
        """
        self._context.free()
        self._context = None


def _close_all(painters: list[_Painter]) -> None:
    for painter in painters:
        painter.run(painter.close)
        painter._thread.shutdown()
    painters.clear()


def _gl_context(width: int, height: int) -> Any:
    """Make a context and make it the thread's own.

    Raises:
        ConfigError: There is none; says what to install.
    """
    backend = os.environ.get("MUJOCO_GL", "")
    try:
        from mujoco.gl_context import GLContext

        context = GLContext(width, height)
        context.make_current()
    except (ImportError, RuntimeError, AttributeError, OSError, mujoco.FatalError) as error:
        raise ConfigError(
            f"GLRenderer: MuJoCo's renderer has no OpenGL with MUJOCO_GL={backend or '(not set)'} "
            f"({type(error).__name__}: {error}). On a machine without a display: {GL_INSTALL}, and "
            "set MUJOCO_GL=egl or osmesa before the program starts; 'vla-crl doctor' says which "
            "of them works. Or draw with the CPU renderer."
        ) from error
    return context


def _gl_version() -> str:
    from OpenGL import GL

    backend = os.environ.get("MUJOCO_GL", "") or "glfw"
    renderer, version = (GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION))
    return f"{backend}; {renderer}; OpenGL {version}; MuJoCo {mujoco.__version__}"


def gl_version() -> str:
    """Return what `GLRenderer.version` is on this machine.

    Raises:
        ConfigError: There is no OpenGL.
    """
    scene = "<mujoco><worldbody><camera name='front'/></worldbody></mujoco>"
    with GLRenderer(mujoco.MjModel.from_xml_string(scene), ["front"], 1, 1) as renderer:
        return renderer.version
