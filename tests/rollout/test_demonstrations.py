from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import Embodiment
from vla_crl.errors import ConfigError
from vla_crl.rollout.demonstrations import (
    Demonstrations,
    PerturbationConfig,
    _perturb,
    collect_demonstrations,
)
from vla_crl.sim.backends import expert_of
from vla_crl.sim.grounding import ground
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig

SUITE = "tabletop_object"
NUM_EPISODES = 12
CALM = PerturbationConfig(sigmas=(0.0,), burst_probability=0.0, flip_probability=0.0)


@pytest.fixture(scope="module")
def demonstrations() -> Demonstrations:
    return collect_demonstrations(load_suite(SUITE), NUM_EPISODES, seed=3)


def assert_equal(one: Demonstrations, other: Demonstrations) -> None:
    for field in fields(Demonstrations):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(left, right), field.name
        assert np.asarray(left).dtype == np.asarray(right).dtype, field.name


def starts(demonstrations: Demonstrations) -> np.ndarray:
    return np.concatenate([[0], np.unique(demonstrations.episode_end)[:-1]])


def test_shapes_and_types_are_as_documented(demonstrations: Demonstrations):
    steps = len(demonstrations)
    expected = {
        "images": ((steps, 2, 64, 64, 3), np.uint8),
        "state": ((steps, 8), np.float32),
        "label": ((steps, 7), np.float32),
        "object_uv": ((steps, 2, 12, 2), np.float32),
        "object_visible": ((steps, 2, 12), np.bool_),
        "episode_success": ((NUM_EPISODES,), np.bool_),
    }
    for name, (shape, dtype) in expected.items():
        assert getattr(demonstrations, name).shape == shape
        assert getattr(demonstrations, name).dtype == dtype
    assert demonstrations.instructions == tuple(t.instruction for t in load_suite(SUITE).tasks)
    assert demonstrations.things == load_suite(SUITE).things
    assert demonstrations.task.shape == (steps,)
    assert demonstrations.named.shape == (steps, 2)
    assert len(np.unique(demonstrations.episode_end)) == NUM_EPISODES
    assert demonstrations.episode_end[-1] == steps


def test_episodes_take_the_tasks_in_turn(demonstrations: Demonstrations):
    assert demonstrations.task[starts(demonstrations)].tolist() == [*range(10), 0, 1]
    for start, end in zip(
        starts(demonstrations), np.unique(demonstrations.episode_end), strict=True
    ):
        assert len(np.unique(demonstrations.task[start:end])) == 1


def test_the_seed_determines_everything_whatever_the_number_of_slots(
    demonstrations: Demonstrations,
):
    again = collect_demonstrations(load_suite(SUITE), NUM_EPISODES, seed=3, num_slots=5)
    assert_equal(again, demonstrations)


def test_another_seed_gives_other_episodes(demonstrations: Demonstrations):
    other = collect_demonstrations(load_suite(SUITE), 1, seed=4)
    assert not np.array_equal(other.state[0], demonstrations.state[0])


def test_more_episodes_begin_with_the_same_ones(demonstrations: Demonstrations):
    fewer = collect_demonstrations(load_suite(SUITE), 3, seed=3)
    assert np.array_equal(fewer.state, demonstrations.state[: len(fewer)])
    assert np.array_equal(fewer.label, demonstrations.label[: len(fewer)])


def test_every_task_meets_every_state_in_the_long_run(monkeypatch):
    suite, met = load_suite(SUITE), set()
    config = replace(suite.scenes[0].config, num_train_states=4)
    scenes = (replace(suite.scenes[0], config=config),)
    small = replace(suite, scenes=scenes, tasks=tuple(t for t in suite.tasks if not t.scene)[:2])
    reset = VectorSim.reset

    def spy(self, slots, *, tasks, state_ids):
        met.update(zip(tasks.tolist(), state_ids.tolist(), strict=True))
        reset(self, slots, tasks=tasks, state_ids=state_ids)

    monkeypatch.setattr(VectorSim, "reset", spy)
    collect_demonstrations(small, 32, seed=0)
    assert met == {(task, state) for task in range(2) for state in range(4)}


def test_without_noise_the_episodes_are_the_experts():
    calm = collect_demonstrations(load_suite(SUITE), 2, seed=0, perturbation=CALM)
    assert calm.episode_success.all()
    sim = VectorSim(load_suite(SUITE), 1)
    expert, slot = expert_of(sim), np.array([0])
    order, success = np.random.default_rng(0).permutation(sim.suite.train_ids), False
    for episode, (start, end) in enumerate(
        zip(starts(calm), np.unique(calm.episode_end), strict=True)
    ):
        sim.reset(slot, tasks=[episode], state_ids=[order[episode]])
        for step in range(start, end):
            observation, labels = sim.observe(), ground(sim, slot)
            action = expert.act(slot)
            assert np.array_equal(calm.images[step], observation.images[0])
            assert np.array_equal(calm.state[step], observation.state[0])
            assert np.array_equal(calm.label[step], action[0].astype(np.float32))
            assert np.array_equal(calm.object_uv[step], labels.uv[0])
            assert np.array_equal(calm.object_visible[step], labels.visible[0])
            assert calm.named[step].tolist() == expert.named(slot)[0].tolist()
            success = sim.step_chunk(action[:, None]).success[0]
        assert success
    sim.close()


def test_noise_moves_the_robot_but_not_the_labels(demonstrations: Demonstrations):
    assert np.abs(demonstrations.label).max() <= 1.0
    assert np.isin(demonstrations.label[:, 6], (-1.0, 1.0)).all()
    calm = collect_demonstrations(load_suite(SUITE), 10, seed=3, perturbation=CALM)
    first = starts(calm)
    assert np.array_equal(calm.label[first], demonstrations.label[starts(demonstrations)[:10]])
    assert len(calm) < demonstrations.episode_end[starts(demonstrations)[9]]


def perturbed(robot: Embodiment, sigma: float, **changes: Any) -> np.ndarray:
    """Perturb the action of standing still 4,000 times."""
    noise = PerturbationConfig(burst_probability=0.0, **changes)
    rng, still = np.random.default_rng(0), np.zeros(len(robot.action))
    still[robot.is_binary] = 1.0
    return np.array([_perturb(rng, still, sigma, noise, robot) for _ in range(4000)])


@pytest.mark.parametrize(
    ("controller", "scales"),
    [
        ("eef_pose", [1.0] * 3 + [0.3] * 3),
        ("eef_position", [1.0] * 3),
        ("joint_position", [0.03] * 7),
    ],
)
def test_noise_has_the_scale_of_what_a_number_means(controller: str, scales: list[float]):
    robot = load_suite(f"{SUITE}@{controller}").embodiment
    drawn = perturbed(robot, 0.2, flip_probability=0.25)
    assert drawn[:, :-1].std(axis=0) == pytest.approx(0.2 * np.array(scales), rel=0.05)
    assert np.isin(drawn[:, -1], (-1.0, 1.0)).all()
    assert np.mean(drawn[:, -1] < 0) == pytest.approx(0.25, abs=0.03)


def test_what_is_binary_is_flipped_each_on_its_own():
    robot = Embodiment(action=("a", "x", "b"), state=("x",), cameras=("top",), binary=("a", "b"))
    drawn = perturbed(robot, 0.1, flip_probability=0.5)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.06
    nothing = perturbed(replace(robot, binary=()), 0.1, flip_probability=1.0)
    assert np.abs(nothing.mean(axis=0)).max() < 0.01


def test_joints_are_demonstrated_and_relearnt_from_where_noise_has_led():
    suite = load_suite(f"{SUITE}@joint_position")
    collected = collect_demonstrations(suite, 10, seed=3)
    assert collected.state.shape[1:] == (15,)
    assert collected.label.shape[1:] == (8,)
    assert np.abs(collected.label).max() <= 1.0
    assert collected.episode_success.mean() >= 0.7


def test_at_least_one_episode_is_needed():
    with pytest.raises(ConfigError, match="num_episodes is 0, expected at least 1"):
        collect_demonstrations(load_suite(SUITE), 0)


def test_a_variation_of_textures_changes_what_is_seen_and_nothing_else():
    varied = collect_demonstrations(
        load_suite(SUITE), 2, seed=3, variation=VariationConfig(materials=("tiles",))
    )
    plain = collect_demonstrations(load_suite(SUITE), 2, seed=3)
    for field in fields(Demonstrations):
        same = np.array_equal(getattr(varied, field.name), getattr(plain, field.name))
        assert same is (field.name != "images"), field.name
