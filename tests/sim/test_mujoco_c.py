"""Errors inside MuJoCo that compiled code runs into end the process with a sentence."""

import subprocess
import sys

FATAL = """
import mujoco
from numba import njit
from vla_crl.sim.mujoco_c import mj_step

@njit(nogil=True)
def step(model, data):
    mj_step(model, data)

cube = '<body pos="0 0 {}"><freejoint/><geom type="box" size=".02 .02 .02"/></body>'
cubes = "".join(cube.format(0.001 * n) for n in range(20))
model = mujoco.MjModel.from_xml_string(
    f'<mujoco><size memory="2M"/><worldbody>{cubes}</worldbody></mujoco>'
)
data = mujoco.MjData(model)
try:
    mujoco.mj_step(model, data)
except mujoco.FatalError:
    print("raised", flush=True)
fresh = mujoco.MjData(model)
step(model._address, fresh._address)
print("went on")
"""


def test_a_fatal_error_of_mujoco_ends_the_process_with_a_sentence():
    done = subprocess.run(
        [sys.executable, "-c", FATAL], capture_output=True, text=True, check=False
    )
    assert done.stdout == "raised\n"  # in Python it is an exception still
    assert done.returncode == 2
    assert done.stderr.startswith("vla-crl: MuJoCo cannot go on with the scene: mj_stackAlloc: out")
    assert '<size memory="512M"/>' in done.stderr
