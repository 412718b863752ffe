import pytest

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.models.checkpoint import load_policy
from vla_crl.report.film import film_run, record_failures, record_rollouts
from vla_crl.report.video import read_notes
from vla_crl.rollout.agents import ExpertAgent, PolicyAgent
from vla_crl.rollout.evaluate import evaluate
from vla_crl.sim.backends import simulate
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
        episodes=1,
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
            episodes=0,
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
        episodes=1,
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
        ExpertAgent(), suite, tasks, episodes=3, output=output, compute=COMPUTE
    )
    assert outcomes == [True] * 6
    task = suite.tasks[suite.task_index("paraphrase")]
    sentences = {caption.rsplit(":", 1)[0] for caption in read_notes(output).captions[:3]}
    assert len(sentences) > 1
    assert sentences <= {task.instruction, *task.paraphrases}


def test_the_states_that_are_named_are_filmed(tmp_path):
    suite = load_suite("tabletop_perturbed")
    named = [suite.train_ids[5], suite.test_ids[3], suite.test_ids[4]]
    output = tmp_path / "film.mp4"
    outcomes = record_rollouts(
        ExpertAgent(), suite, ["paraphrase"], episodes=named, output=output, compute=COMPUTE
    )
    assert outcomes == [True] * 3
    sim = simulate(suite, 3)
    sim.reset(range(3), tasks=[suite.task_index("paraphrase")] * 3, state_ids=named)
    expected = [f"{said}: success" for said in sim.observe(images=False).instruction]
    assert len(set(expected)) > 1
    assert list(read_notes(output).captions) == expected
    sim.close()


def test_an_initial_state_that_a_suite_lacks_is_refused(agent, tmp_path):
    suite = load_suite(SUITE)
    spans = (
        rf"{suite.test_ids[0]} to {suite.test_ids[-1]} \(test\) or 0 to {suite.train_ids[-1]} \(t"
    )
    with pytest.raises(ConfigError, match=f"has no initial state 999999, expected {spans}"):
        record_rollouts(
            agent, suite, TASKS, episodes=[0, 999999], output=tmp_path / "a.mp4", compute=COMPUTE
        )


@pytest.fixture
def few_trials(monkeypatch):
    """Twenty-four episodes a task are an evaluation."""
    monkeypatch.setattr(type(load_suite(SUITE)), "trials", 24)


@pytest.mark.usefixtures("few_trials")
def test_what_failed_in_an_evaluation_is_filmed_as_it_went(tmp_path, make_lanes, capsys):
    policy, suite = PolicyAgent(load_policy("tiny"), deterministic=True), load_suite(SUITE)
    results = evaluate(policy, make_lanes(suite, 48), TASKS, num_episodes=24)
    num_failed = [result.episodes - result.successes for result in results]
    assert 0 < num_failed[0] < 24
    output = tmp_path / "film.mp4"
    outcomes = record_failures(
        policy, suite, TASKS, num_episodes=5, num_envs=128, output=output, compute=COMPUTE
    )
    assert outcomes == [False] * sum(min(num, 5) for num in num_failed)
    assert all(caption.endswith(": failure") for caption in read_notes(output).captions)
    said = f"{sum(num_failed)} of 48 episodes failed, filmed are {len(outcomes)}"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("few_trials")
def test_where_nothing_fails_there_is_no_video(tmp_path, capsys):
    outcomes = record_failures(
        ExpertAgent(),
        load_suite(SUITE),
        ["pink_egg_in_tray"],
        num_episodes=4,
        num_envs=128,
        output=tmp_path / "film.mp4",
        compute=COMPUTE,
    )
    assert outcomes == []
    assert not list(tmp_path.iterdir())
    assert "0 of 24 episodes failed, filmed are 0" in capsys.readouterr().err
