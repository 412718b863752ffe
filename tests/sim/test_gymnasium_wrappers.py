"""Gymnasium's wrappers around the suites' environments, and what a spec says."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import (
    FilterObservation,
    FlattenObservation,
    FrameStackObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    TimeAwareObservation,
    TimeLimit,
)
from gymnasium.wrappers import vector as vector_wrappers

from vla_crl.errors import ConfigError
from vla_crl.sim import gymnasium_envs
from vla_crl.sim.backends import task_horizons
from vla_crl.sim.native.suite import load_suite

gymnasium.register_envs(gymnasium_envs)
TASK = "vla_crl/tabletop_object.red_cube_in_basket-v0"
SUITE = "vla_crl/tabletop_object-v0"

WRAPPERS = {
    "TimeAwareObservation": TimeAwareObservation,
    "RecordEpisodeStatistics": RecordEpisodeStatistics,
    "RenderCollection": RenderCollection,
    "TimeLimit": lambda env: TimeLimit(env, 3),
    "FilterObservation": lambda env: FilterObservation(env, ["state", "images"]),
    "FlattenObservation": lambda env: FlattenObservation(FilterObservation(env, ["state"])),
    "FrameStackObservation": lambda env: FrameStackObservation(
        FilterObservation(env, ["images"]), 2
    ),
    "NormalizeReward": NormalizeReward,
}


def make(**settings: Any) -> gymnasium.Env:
    return gymnasium.make(TASK, image_size=16, render_mode="rgb_array", **settings)


def play(env: gymnasium.Env, seed: int = 0) -> dict[str, Any]:
    """Stand still to the end of an episode and return the last info."""
    env.reset(seed=seed)
    while True:
        _, _, terminated, truncated, info = env.step(np.zeros(7, np.float32))
        if terminated or truncated:
            return info


@pytest.mark.parametrize("suite", ["tabletop_object", "tabletop_30", "metaworld_mt10"])
def test_specs_say_how_long_episodes_are(suite: str) -> None:
    horizons = task_horizons(suite)
    specs = {task: gymnasium.spec(f"vla_crl/{suite}.{task}-v0") for task in horizons}
    assert {task: spec.max_episode_steps for task, spec in specs.items()} == horizons
    assert gymnasium.spec(f"vla_crl/{suite}-v0").max_episode_steps == max(horizons.values())


def test_the_spec_of_a_made_environment_makes_it_again() -> None:
    env = make(max_episode_steps=3, reward="dense")
    assert env.spec is not None
    assert env.spec.max_episode_steps == 3
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert play(again) == play(env)
    for each in (env, again):
        each.close()


def test_the_horizon_and_the_time_limit_truncate_at_the_same_step() -> None:
    env = RecordEpisodeStatistics(make())
    assert play(env)["episode"]["l"] == load_suite("tabletop_object").tasks[0].horizon == 48
    env.close()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_gymnasiums_checker_finds_nothing_in_a_wrapped_environment(wrap: Any) -> None:
    env = wrap(make())
    with warnings.catch_warnings():
        # A wrapper is what is checked here.
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(env, skip_render_check=True)
    env.close()


def test_time_is_told_as_a_part_of_the_task() -> None:
    env = TimeAwareObservation(make(), flatten=False, normalize_time=True)
    first, _ = env.reset(seed=0)
    assert first["time"].tolist() == [0.0]
    second, *_ = env.step(np.zeros(7, np.float32))
    assert second["time"].tolist() == [np.float32(1 / 48)]
    env.close()


def test_episodes_are_counted_in_a_batch_too() -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(
        gymnasium.make_vec(SUITE, num_envs=2, image_size=16, max_episode_steps=4)
    )
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(np.zeros((2, 7), np.float32))
    *_, infos = envs.step(np.zeros((2, 7), np.float32))
    assert infos["episode"]["l"].tolist() == [4, 4]
    assert infos["episode"]["r"].tolist() == [0.0, 0.0]
    envs.close()


def test_a_batch_ends_its_episodes_when_it_is_told_to() -> None:
    envs = gymnasium.make_vec(TASK, num_envs=2, image_size=16, max_episode_steps=5)
    assert envs.spec is not None
    assert envs.spec.kwargs["max_episode_steps"] == 5
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((2, 7)))[3].tolist() for _ in range(12)]
    # The step after an end begins the next episode and counts for none.
    assert ends == [[step in {4, 10}] * 2 for step in range(12)]
    envs.close()


def test_gymnasiums_own_vector_env_ends_at_the_same_steps() -> None:
    peer = gymnasium.make_vec(
        TASK, num_envs=2, vectorization_mode="sync", image_size=16, max_episode_steps=5
    )
    peer.reset(seed=0)
    ends = [peer.step(np.zeros((2, 7), np.float32))[3].tolist() for _ in range(12)]
    assert ends == [[step in {4, 10}] * 2 for step in range(12)]
    peer.close()


@pytest.mark.parametrize("steps", [0, -1, 2.5, "5", True])
def test_a_number_of_steps_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match="max_episode_steps is .*, expected a whole number from"):
        gymnasium.make_vec(SUITE, num_envs=2, image_size=16, max_episode_steps=steps)


def test_episodes_cannot_be_made_longer_than_their_task() -> None:
    with pytest.raises(ConfigError, match="max_episode_steps is 49, but .* end after 48 control"):
        gymnasium.make_vec(SUITE, num_envs=2, image_size=16, max_episode_steps=49)


def test_an_episode_is_recorded_as_a_video(tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="pip install moviepy")
    import av

    folder = tmp_path / "films"
    env = RecordVideo(make(max_episode_steps=6), str(folder), name_prefix="cube")
    play(env)
    env.close()
    with av.open(str(folder / "cube-episode-0.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 10  # the suite's control steps per second
    assert [frame.shape for frame in frames] == [(256, 256, 3)] * 7  # and the first
