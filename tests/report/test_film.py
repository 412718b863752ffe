import pytest

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.report.film import film_run, record_rollouts
from vla_crl.report.video import read_notes
from vla_crl.rollout.agents import ExpertAgent, PolicyAgent
from vla_crl.sim.native.suite import load_suite

SUITE = "tabletop_object"
TASKS = ("red_cube_in_basket", "purple_ball_in_basket")
COMPUTE = ComputeConfig()


@pytest.fixture
def agent(untrained_policy):
    return PolicyAgent(untrained_policy, deterministic=True)


def test_every_tile_shows_its_instruction_and_its_outcome(agent, tmp_path):
    output = tmp_path / "film.mp4"
    outcomes = record_rollouts(
        agent,
        load_suite(SUITE),
        TASKS,
        num_episodes=1,
        output=output,
        title="Test",
        compute=COMPUTE,
    )
    notes = read_notes(output)
    assert outcomes == [False, False]
    assert notes.title == "Test"
    assert "pick up the red cube and place it in the basket" in notes.captions[0]
    assert "failure" in notes.captions[1]


def test_a_run_is_filmed_once_per_policy(agent, tmp_path):
    policies = {"before training": agent}
    suite = load_suite(SUITE)
    film_run(policies, suite, TASKS[:1], num_episodes=1, folder=tmp_path, compute=COMPUTE)
    assert [path.name for path in tmp_path.iterdir()] == ["0_before_training.mp4"]
    assert read_notes(tmp_path / "0_before_training.mp4").title == "Before training"


def test_more_episodes_than_test_states_are_refused(agent, tmp_path):
    with pytest.raises(ConfigError, match="rollout: 0 episodes a task, expected 1 to"):
        record_rollouts(
            agent,
            load_suite(SUITE),
            TASKS,
            num_episodes=0,
            output=tmp_path / "film.mp4",
            compute=COMPUTE,
        )


@pytest.mark.render
def test_mujocos_own_renderer_films_episodes_of_all_scenes(tmp_path):
    tasks = ("red_cube_in_basket", "pink_egg_in_tray")
    outcomes = record_rollouts(
        ExpertAgent(),
        load_suite(SUITE),
        tasks,
        num_episodes=1,
        output=tmp_path / "film.mp4",
        compute=COMPUTE,
        renderer="mujoco",
    )
    assert outcomes == [True, True]
    assert (tmp_path / "film.mp4").stat().st_size > 10_000


def test_a_perturbed_episode_is_filmed_in_its_own_words(tmp_path):
    output, tasks = tmp_path / "film.mp4", ("paraphrase", "robot_base")
    suite = load_suite("tabletop_perturbed")
    outcomes = record_rollouts(
        ExpertAgent(), suite, tasks, num_episodes=3, output=output, compute=COMPUTE
    )
    assert outcomes == [True] * 6
    task = suite.tasks[suite.task_index("paraphrase")]
    sentences = {caption.rsplit(":", 1)[0] for caption in read_notes(output).captions[:3]}
    assert len(sentences) > 1
    assert sentences <= {task.instruction, *task.paraphrases}
