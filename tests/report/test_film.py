import pytest

from vla_crl.errors import ConfigError
from vla_crl.report.film import film_run, record_rollouts
from vla_crl.report.video import read_notes

TASKS = ("red_cube_in_basket", "purple_ball_in_tray")


def test_every_tile_shows_its_instruction_and_its_outcome(untrained_policy, tmp_path):
    output = tmp_path / "film.mp4"
    outcomes = record_rollouts(
        untrained_policy, "tabletop_object", TASKS, num_episodes=1, output=output, title="Test"
    )
    notes = read_notes(output)
    assert outcomes == [False, False]
    assert notes.title == "Test"
    assert "pick up the red cube and place it in the basket" in notes.captions[0]
    assert "failure" in notes.captions[1]


def test_a_run_is_filmed_once_per_policy(untrained_policy, tmp_path):
    policies = {"before training": untrained_policy}
    film_run(policies, "tabletop_object", TASKS[:1], num_episodes=1, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0_before_training.mp4"]
    assert read_notes(tmp_path / "0_before_training.mp4").title == "Before training"


def test_more_episodes_than_test_states_are_refused(untrained_policy, tmp_path):
    with pytest.raises(ConfigError, match="rollout: 0 episodes a task, expected 1 to"):
        record_rollouts(
            untrained_policy,
            "tabletop_object",
            TASKS,
            num_episodes=0,
            output=tmp_path / "film.mp4",
        )


@pytest.mark.render
def test_mujocos_own_renderer_films_the_same_episodes(untrained_policy, tmp_path):
    outcomes = record_rollouts(
        untrained_policy,
        "tabletop_object",
        TASKS[:1],
        num_episodes=1,
        output=tmp_path / "film.mp4",
        renderer="mujoco",
    )
    assert outcomes == [False]
    assert (tmp_path / "film.mp4").stat().st_size > 10_000
