import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vla_crl.sim import machine_code
from vla_crl.sim.machine_code import source_version

PROGRAM = """
import logging
import numpy as np
from vla_crl.sim.native.kernel.senses import add_state_noise

logging.basicConfig(level=logging.INFO, format="%(message)s")
add_state_noise(np.zeros((1, 8), np.float32), np.ones(1), np.zeros(1, int), np.zeros(1, int))
"""


def said(cache_dir: Path) -> str:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache_dir)}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stderr


def test_compiling_is_announced_where_no_machine_code_is_cached(tmp_path: Path) -> None:
    assert said(tmp_path).count("Compiling the simulation for this machine: a minute or two") == 1
    assert said(tmp_path) == ""


@pytest.fixture
def sim_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's folder that may be changed."""
    folder = Path(machine_code.__file__).parent
    shutil.copytree(folder, tmp_path / "sim", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(machine_code, "__file__", str(tmp_path / "sim/machine_code.py"))
    return tmp_path / "sim"


@pytest.mark.parametrize(
    ("file", "is_compiled"),
    [
        ("native/kernel/controller.py", True),
        ("outcomes.py", True),
        ("native/vector_sim.py", False),
        ("metaworld/suite.py", False),
    ],
)
def test_the_version_is_that_of_the_files_that_are_compiled(
    sim_folder: Path, file: str, is_compiled: bool
) -> None:
    patterns = ("native/kernel/*.py", "outcomes.py")
    before = source_version.__wrapped__(*patterns)
    with (sim_folder / file).open("a") as text:
        text.write("# Another comment.\n")
    assert (source_version.__wrapped__(*patterns) != before) is is_compiled


def test_a_pattern_without_files_has_a_version_of_its_own() -> None:
    assert source_version("native/kernel/senses.py") != source_version("native/kernel/nothing.py")


def test_damaged_machine_code_is_compiled_again(tmp_path: Path) -> None:
    said(tmp_path)
    for suffix in ("nbi", "nbc"):
        (file,) = tmp_path.rglob(f"*.{suffix}")
        file.write_bytes(file.read_bytes()[:-20])
        assert "is damaged" in said(tmp_path)
        assert said(tmp_path) == ""


def test_where_machine_code_cannot_be_kept_beside_the_source_it_is_in_the_cache(
    tmp_path: Path,
) -> None:
    package = Path(machine_code.__file__).parent.parent
    shutil.copytree(
        package, tmp_path / "vla_crl", ignore=shutil.ignore_patterns("__pycache__", "libero")
    )
    for folder in [*(tmp_path / "vla_crl" / "sim").rglob("kernel")]:
        (folder / "__pycache__").touch()  # no folder can be made there, not even by root
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("NUMBA")}
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    # From this folder `import vla_crl` finds the copy.
    command, environment = [sys.executable, "-c", PROGRAM], inherited | settings
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    assert [*tmp_path.glob("cache/vla_crl/machine_code/*/*.nbi")]
