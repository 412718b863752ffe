import os
import subprocess
import sys
from pathlib import Path

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
