"""What original LIBERO records is read as what ours observes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.original_episode import WAIT_ACTION
from vla_crl.sim.libero.package import import_libero, make_benchmark
from vla_crl.sim.libero.suite import LiberoSuite

TASK, STATE, PIXELS, NUM_STEPS = 6, 0, 128, 6
ACTIONS = np.random.default_rng(0).uniform(-1.0, 1.0, (NUM_STEPS, 7))


def record(path: Path) -> None:
    """Play the actions in original LIBERO and write what LIBERO's script writes, in its order."""
    import h5py
    from robosuite import macros
    from robosuite.utils.transform_utils import quat2axisangle

    benchmark = make_benchmark("libero_spatial")
    env: Any = import_libero().envs.OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(TASK),
        camera_heights=PIXELS,
        camera_widths=PIXELS,
    )
    env.seed(0)
    env.reset()
    env.set_init_state(benchmark.get_task_init_states(TASK)[STATE])
    for _ in range(10):
        env.step(np.array(WAIT_ACTION))
    rows: dict[str, list[np.ndarray]] = {}
    for action in ACTIONS:
        before = env.get_sim_state()
        seen, _, _, _ = env.step(action)
        step = {
            "actions": action,
            "states": before,
            "obs/agentview_rgb": seen["agentview_image"],
            "obs/eye_in_hand_rgb": seen["robot0_eye_in_hand_image"],
            "obs/ee_pos": seen["robot0_eef_pos"],
            "obs/ee_ori": quat2axisangle(seen["robot0_eef_quat"].copy()),
            "obs/gripper_states": seen["robot0_gripper_qpos"],
            "obs/joint_states": seen["robot0_joint_pos"],
        }
        for key, values in step.items():
            rows.setdefault(key, []).append(values.copy())
    env.close()
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["macros_image_convention"] = macros.IMAGE_CONVENTION
        for key, values in rows.items():
            file[f"data/demo_0/{key}"] = np.stack(values)


@pytest.mark.slow
@pytest.mark.render
@pytest.mark.filterwarnings("ignore")  # robosuite's and OpenGL's own
def test_what_liberos_script_records_is_what_ours_observes(read_small, tmp_path):
    pytest.importorskip("h5py", reason="pip install --editable '.[datasets]'")
    suite: LiberoSuite = read_small("libero_spatial")
    path = tmp_path / f"{suite.tasks[TASK].name}_demo.hdf5"
    record(path)
    config, ours = DatasetConfig(), LiberoSim(suite, 1, image_size=64)
    read = read_demonstrations(path, config, suite, pixels=64)
    turned = read_demonstrations(path, config, suite.with_option("openpi"), pixels=64)
    np.testing.assert_array_equal(turned.images, read.images[:, :, :, ::-1])
    said = [read.instructions[number] for number in read.task]
    assert said == [suite.tasks[TASK].instruction] * (NUM_STEPS - 1)
    np.testing.assert_array_equal(read.label, ACTIONS[1:].astype(np.float32))
    try:
        ours.reset([0], tasks=[TASK], state_ids=[suite.test_ids[STATE]])
        for row in range(NUM_STEPS - 1):
            ours.step_chunk(ACTIONS[None, row : row + 1])
            observed = ours.observe()
            np.testing.assert_allclose(read.state[row], observed.state[0], atol=1e-6)
            for picture, expected in zip(read.images[row], observed.images[0], strict=True):
                flips = expected[::-1], expected[:, ::-1], expected[::-1, ::-1]
                difference, *others = (
                    np.abs(picture.astype(float) - other).mean() for other in (expected, *flips)
                )
                assert difference < 0.8 * min(others)  # another renderer, the same picture
    finally:
        ours.close()
