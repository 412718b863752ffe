import importlib.metadata
import shutil
from pathlib import Path

import pytest

from vla_crl import catalog
from vla_crl.cli import doctor


def test_the_tested_set_is_installed_here() -> None:
    checks = list(doctor.check_packages())
    assert {"torch", "mujoco", "transformers"} <= {check.name for check in checks}
    assert [check for check in checks if check.status == "fail"] == []


def test_every_dependency_has_a_tested_version() -> None:
    assert set(doctor.required_packages()) <= doctor.tested_versions().keys()


def test_another_version_is_a_warning_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "required_packages", lambda: ["numpy", "torch"])
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"numpy": "2.2.6", "torch": "2.13.0"})
    versions = {"numpy": "1.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    numpy, torch = doctor.check_packages()
    assert (numpy.status, numpy.found) == ("warn", "1.0")
    assert numpy.advice == "tested with 2.2.6: pip install numpy==2.2.6"
    assert (torch.status, torch.advice) == ("ok", "")


def test_a_missing_package_fails_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "required_packages", lambda: ["no-such-package"])
    (check,) = doctor.check_packages()
    assert (check.status, check.advice) == ("fail", "pip install no-such-package")


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "draws_frames", lambda backend: False)
    check = doctor.check_gl()
    assert check.status == "warn"
    assert doctor.GL_INSTALL in check.advice


@pytest.mark.parametrize(
    ("chosen", "status", "advice"),
    [("osmesa", "ok", ""), ("egl", "warn", "MUJOCO_GL is egl; set MUJOCO_GL=osmesa")],
)
def test_the_chosen_gl_backend_must_be_one_that_works(
    monkeypatch: pytest.MonkeyPatch, chosen: str, status: str, advice: str
) -> None:
    monkeypatch.setattr(doctor, "draws_frames", lambda backend: backend == "osmesa")
    monkeypatch.setenv("MUJOCO_GL", chosen)
    check = doctor.check_gl()
    assert (check.status, check.advice) == (status, advice)


def test_a_backend_that_does_not_exist_draws_nothing() -> None:
    assert not doctor.draws_frames("no_such_backend")


@pytest.mark.parametrize(
    ("installed", "chosen"), [(("EGL", "OSMesa"), "egl"), (("OSMesa",), "osmesa"), ((), None)]
)
def test_headless_gl_is_chosen_from_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], chosen: str | None
) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(
        doctor.ctypes.util, "find_library", lambda name: name if name in installed else None
    )
    doctor.use_headless_gl()
    assert (doctor.os.environ["MUJOCO_GL"] or None) == chosen


def test_a_gl_backend_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    doctor.use_headless_gl()
    assert doctor.os.environ["MUJOCO_GL"] == "glfw"


def test_a_machine_without_a_browser_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = doctor.check_browser()
    assert (check.status, check.found) == ("warn", "none")
    assert doctor.BROWSER_INSTALL in check.advice


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}  # 1 GiB
    monkeypatch.setattr(doctor.os, "sysconf", sizes.__getitem__)
    check = doctor.check_memory()
    assert (check.status, check.found) == ("warn", "1.0 GiB")


def test_this_pyav_writes_h264() -> None:
    assert doctor.check_video().status == "ok"


def test_a_broken_definition_fails_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("envs", "policies", "experiments"):
        (tmp_path / kind).mkdir()
    (tmp_path / "policies/tiny.toml").write_text("a =")
    monkeypatch.setattr(catalog, "catalog_dir", lambda kind: tmp_path / kind)
    suites, broken = doctor.check_catalogue()
    assert suites.status == "ok"
    assert broken.status == "fail"
    assert "tiny.toml: not a TOML file" in broken.found


def test_libero_is_no_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBERO_PACKAGES", ("no_such_package",))
    check = doctor.check_libero()
    assert (check.status, check.found) == ("warn", "not installed")
    assert "pip install --editable '.[libero]'" in check.advice


@pytest.mark.parametrize(
    ("program", "status", "advice"),
    [("", "ok", ""), ("raise SystemExit('libGL.so.1 is missing')", "warn", "libGL.so.1 is missing"),
     ("raise SystemExit(3)", "warn", "its import ended with 3")],
)  # fmt: skip
def test_libero_is_told_with_its_versions_and_whether_it_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, program: str, status: str, advice: str
) -> None:
    monkeypatch.setattr(doctor, "LIBERO_PACKAGES", ("numpy",))
    monkeypatch.setattr(doctor, "_IMPORT_LIBERO", program)
    check = doctor.check_libero()
    assert (check.status, check.advice) == (status, advice)
    assert check.found.startswith(f"numpy {importlib.metadata.version('numpy')}, mujoco ")


def test_a_cache_that_does_not_last_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "is_cache_temporary", lambda: False)
    check = doctor.check_cache()
    assert (check.status, check.found, check.advice) == ("ok", str(tmp_path), "")
    monkeypatch.setattr(doctor, "is_cache_temporary", lambda: True)
    check = doctor.check_cache()
    assert (check.status, check.found) == ("warn", f"{tmp_path}, for this process only")
    assert check.advice == (
        "name a folder that can be written in the environment variable XDG_CACHE_HOME"
    )
    monkeypatch.setattr(doctor, "is_cache_temporary", lambda: False)
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path / "missing")
    assert doctor.check_cache().found == f"{tmp_path / 'missing'}, read-only"
