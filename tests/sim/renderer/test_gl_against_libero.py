"""Pictures of MuJoCo's renderer, against those that the real LIBERO draws of the same state."""

import importlib.util
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from vla_crl.bench.similarity import structural_similarity
from vla_crl.sim.renderer import GLRenderer, Placement

CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZES = (64, 128)
STATES = 2

# Under this MuJoCo the package replaces a function of robosuite by one that fails: put it back.
LIBERO = """
import sys, os, logging
logging.disable(logging.WARNING)
import mujoco, numpy as np
from robosuite.controllers.base_controller import Controller
update = Controller.update
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv
Controller.update = update
suite, folder = benchmark.get_benchmark(sys.argv[1])(), sys.argv[2]
task = suite.get_task(0)
bddl = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
env = OffScreenRenderEnv(bddl_file_name=bddl, camera_heights=32, camera_widths=32)
env.seed(0)
env.reset()
sim, xpos, xmat, images = env.env.sim, [], [], {size: [] for size in (64, 128)}
for state in suite.get_task_init_states(0)[:2]:
    env.set_init_state(state)
    xpos.append(np.array(sim.data.xpos)); xmat.append(np.array(sim.data.xmat).reshape(-1, 9))
    for size in images:
        images[size].append([
            sim.render(width=size, height=size, camera_name=camera)[::-1]
            for camera in ("agentview", "robot0_eye_in_hand")
        ])
mujoco.mj_saveModel(sim.model._model, folder + "/model.mjb", None)
np.savez(folder + "/seen.npz", xpos=xpos, xmat=xmat, **{f"s{k}": v for k, v in images.items()})
"""


@pytest.mark.slow
@pytest.mark.render
@pytest.mark.skipif(
    importlib.util.find_spec("libero") is None or importlib.util.find_spec("robosuite") is None,
    reason="LIBERO is not installed",
)
@pytest.mark.parametrize("suite", ["libero_object", "libero_10"])
def test_pictures_are_those_of_libero(suite, tmp_path):
    command = [sys.executable, "-c", LIBERO, suite, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    model = mujoco.MjModel.from_binary_path(str(tmp_path / "model.mjb"))
    with np.load(tmp_path / "seen.npz") as seen:
        poses = Placement(model, CAMERAS).poses(seen["xpos"], seen["xmat"])
        expected = {size: seen[f"s{size}"] for size in SIZES}
    for size in SIZES:
        with GLRenderer(model, CAMERAS, size, size, geom_groups=[1]) as renderer:
            images = renderer.render(*poses)
        assert np.abs(images.astype(int) - expected[size]).mean() < 0.01
        for state in range(STATES):
            for camera in range(len(CAMERAS)):
                pair = images[state, camera], expected[size][state, camera]
                assert structural_similarity(*pair) >= 0.99
