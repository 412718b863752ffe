"""robosuite's own tasks as a suite: it keeps the contract, and plays what robosuite plays."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.episode_sim import PhysicsError
from vla_crl.sim.foreign.foreign_episode import ForeignTask
from vla_crl.sim.foreign.robosuite_episode import RobosuiteEpisode
from vla_crl.sim.foreign.robosuite_package import import_robosuite
from vla_crl.sim.foreign.worker import seed_of
from vla_crl.testing import check_suite

CAMERAS = ("agentview", "eye_in_hand")
LIFT = ForeignTask("lift", "lift the red cube", {"env": "Lift"})


def test_the_suite_is_told_without_the_package():
    suite = find_suite("robosuite")
    assert suite.embodiment == ARM
    assert len(suite.tasks_of("train")) == 5
    assert len(suite.tasks_of("heldout")) == 6


@pytest.mark.slow
@pytest.mark.render
def test_the_suite_keeps_the_contract():
    """One task of all: every slot takes half a gigabyte."""
    pytest.importorskip("robosuite")
    suite: Any = find_suite("robosuite")
    index = suite.task_index("nut_assembly_round")
    config = replace(suite.config, tasks=suite.config.tasks[index : index + 1])
    one = replace(suite, config=config, tasks=suite.tasks[index : index + 1])
    lacks = check_suite(one, num_states=1)
    assert [line.partition(":")[0] for line in lacks] == [
        "positions of things (Grounded)", "a scripted expert"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.render
@pytest.mark.filterwarnings("ignore")
def test_an_episode_is_that_of_robosuite_bit_for_bit():
    pytest.importorskip("robosuite")
    suite = find_suite("robosuite")
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (5, 7))
    sim = simulate(suite, 2, image_size=48)
    sim.reset([0, 1], tasks=[4, 0], state_ids=[4, 4000])
    sim.step_chunk(np.stack([actions, actions]))
    seen = sim.observe([1])
    sim.close()
    robosuite: Any = import_robosuite()
    env = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        camera_names=["agentview", "robot0_eye_in_hand"],
        camera_heights=48,
        camera_widths=48,
    )
    np.random.seed(seed_of("lift", 4000))
    observed = env.reset()
    for action in actions:
        observed, _, _, _ = env.step(action)
    env.close()
    for index, camera in enumerate(("agentview", "robot0_eye_in_hand")):
        assert np.array_equal(seen.images[0, index], observed[f"{camera}_image"][::-1])
    assert np.array_equal(seen.state[0, :3], observed["robot0_eef_pos"].astype(np.float32))
    assert np.array_equal(seen.state[0, 6:], observed["robot0_gripper_qpos"].astype(np.float32))


@pytest.mark.filterwarnings("ignore")
def test_lifting_the_cube_is_a_success():
    """The action is a displacement of 5 cm for 1, and +1 closes the gripper."""
    pytest.importorskip("robosuite")
    episode = RobosuiteEpisode(CAMERAS, 8)
    episode.begin(LIFT, 0, seed=1)
    cube = episode._env.sim.data.get_body_xpos("cube_main").copy()
    above, grasped = cube + np.array([0.0, 0.0, 0.1]), cube
    success: list[bool] = []
    for target, gripper, steps in (
        (above, -1, 40), (grasped, -1, 40), (grasped, 1, 15), (above, 1, 40)
    ):  # fmt: skip
        for _ in range(steps):
            move = np.clip((target - episode.state()[:3]) / 0.05, -1.0, 1.0)
            success.append(episode.step(np.array([*move, 0.0, 0.0, 0.0, gripper])))
    assert success[-1]
    assert not any(success[:95])
    episode.close()


@pytest.mark.filterwarnings("ignore")
def test_wrong_names_are_refused_and_broken_physics_is_told():
    pytest.importorskip("robosuite")
    episode = RobosuiteEpisode(CAMERAS, 8)
    with pytest.raises(ConfigError, match="robosuite: unknown environment 'Lyft'. Did you mean 'L"):
        episode.begin(ForeignTask("lift", "lift", {"env": "Lyft"}), 0, seed=0)
    with pytest.raises(ConfigError, match="robosuite: unknown robot 'Pandas'. Did you mean 'Pand"):
        RobosuiteEpisode(CAMERAS, 8, robot="Pandas").begin(LIFT, 0, seed=0)
    with pytest.raises(ConfigError, match="unknown feeling 'pos'. Did you mean 'pose'"):
        RobosuiteEpisode(CAMERAS, 8, feeling="pos")  # pyright: ignore[reportArgumentType]
    episode.begin(LIFT, 0, seed=0)
    episode._env.sim.data._data.qvel[0] = np.nan
    with pytest.raises(PhysicsError, match="MuJoCo warned of numbers that are not finite"):
        episode.step(np.zeros(7))
    episode.close()


def test_a_machine_without_opengl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("robosuite")
    episode = RobosuiteEpisode(CAMERAS, 8)
    episode.begin(LIFT, 0, seed=0)

    def no_display(*_: object, **__: object) -> None:
        raise ImportError("no EGL display")

    monkeypatch.setattr("robosuite.utils.binding_utils.MjRenderContextOffscreen", no_display)
    with pytest.raises(ConfigError, match="cannot draw: ImportError: no EGL display.*MUJOCO_GL="):
        episode.images(CAMERAS, 8)
    episode.close()
