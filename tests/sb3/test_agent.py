"""Policies of stable-baselines3 in our evaluation."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="pip install --editable '.[sb3]'")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from torch import Tensor

from vla_crl.catalog import catalog_dir
from vla_crl.errors import ConfigError, SpecError
from vla_crl.rollout.evaluate import evaluate
from vla_crl.sb3.agent import SB3Agent
from vla_crl.sb3.vec_env import SuiteVecEnv
from vla_crl.sim.backends import find_suite
from vla_crl.sim.gymnasium_envs import TaskEnv
from vla_crl.sim.native.suite import load_suite

TASK = "press_button"


def test_an_evaluation_plays_what_the_single_environment_plays(
    make_lanes: Any, tmp_path: Path
) -> None:
    suite = load_suite("tabletop_goal")
    env = VecNormalize(
        SuiteVecEnv("tabletop_goal", 4, tasks=[TASK], privileged=True),
        norm_obs_keys=["state", "privileged"],
    )
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, n_epochs=1, seed=0).learn(32)
    agent = SB3Agent(model, env)
    (result,) = evaluate(agent, make_lanes(suite, 4), [TASK], num_episodes=4, divergences=tmp_path)
    single = TaskEnv("tabletop_goal", TASK, image_size=None, privileged=True, instruction="one_hot")
    for played in result.played:
        seen, _ = single.reset(options={"state_id": played.state_id})
        num_steps, is_over, info = 0, False, {}
        while not is_over:
            # In a batch of two, as in the lanes: matrix products round by its size.
            batch = {name: np.stack([value] * 2) for name, value in seen.items()}
            actions, _ = model.predict(env.normalize_obs(batch), deterministic=True)  # pyright: ignore
            seen, _, terminated, truncated, info = single.step(actions[0])
            num_steps, is_over = num_steps + 1, terminated or truncated
        assert (info["success"], num_steps) == (played.success, played.num_steps)
    single.close()
    env.close()


def test_lanes_act_one_after_the_other(
    make_lanes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = SuiteVecEnv("tabletop_goal", 4, tasks=[TASK])
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, seed=0)
    kept = model.policy.action_dist
    inside: list[int] = []

    def slow_mode() -> Tensor:
        inside.append(threading.get_ident())
        before = len(inside)
        time.sleep(0.002)
        assert len(inside) == before, "the other lane changed the distribution meanwhile"
        return type(kept).mode(kept)

    monkeypatch.setattr(kept, "mode", slow_mode)
    lanes = make_lanes(load_suite("tabletop_goal"), 4)
    evaluate(SB3Agent(model, env), lanes, [TASK], num_episodes=4, divergences=tmp_path)
    assert len(set(inside)) == 2
    env.close()


def test_a_description_tells_weights_and_what_is_observed() -> None:
    env = SuiteVecEnv("tabletop_goal", 1, tasks=[TASK], image_size=36)
    suite = load_suite("tabletop_goal")
    models = [PPO("MultiInputPolicy", env, n_steps=2, batch_size=2, seed=s) for s in (0, 0, 1)]
    told = [SB3Agent(model, env).description(suite) for model in models]
    assert told[0] == told[1]
    assert told[0]["weights"] != told[2]["weights"]
    assert told[0]["observed"] == "agentview, eye_in_hand, instruction, state"
    assert SB3Agent(models[0], env).image_size == 36
    env.close()


def test_the_environment_of_something_else_is_refused() -> None:
    env = DummyVecEnv(
        [lambda: TaskEnv("tabletop_goal", TASK, image_size=None, instruction="index")]
    )
    model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=2)
    with pytest.raises(SpecError, match="got a DummyVecEnv, expected a SuiteVecEnv"):
        SB3Agent(model, env)
    env.close()


def test_the_example_of_the_documents_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (catalog_dir("envs") / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## stable-baselines3\n.*?```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(example, "envs/README.md", "exec"), {})
    assert re.fullmatch(r"\d+ of 10 test states\n", capsys.readouterr().out)


def make_agent(**settings: Any) -> SB3Agent:
    env = SuiteVecEnv("tabletop_goal", 1, tasks=[TASK], **settings)
    return SB3Agent(PPO("MultiInputPolicy", env, n_steps=2, batch_size=2), env)


@pytest.mark.parametrize(
    ("suite", "settings", "message"),
    [
        ("tabletop_goal@joint_position", {}, "action.0. of the suite is 'target_joint1'"),
        (
            "tabletop_object",
            {},
            "instruction is 'one_hot', which counts the tasks of 'tabletop_goal'",
        ),
        (
            "tabletop_object",
            {"privileged": True, "instruction": lambda sentence: np.zeros(2)},
            '"privileged" has other numbers there',
        ),
    ],
)
def test_what_is_observed_otherwise_than_in_training_is_refused(
    make_lanes: Any, suite: str, settings: dict[str, Any], message: str
) -> None:
    agent, other = make_agent(**settings), find_suite(suite)
    lanes = make_lanes(other, 1)
    where = f"suite '{suite}', observed as 'tabletop_goal': "
    with pytest.raises(ConfigError, match=re.escape(where) + message):
        evaluate(agent, lanes, [other.tasks[0].name], num_episodes=1)


def test_a_task_that_the_instruction_does_not_count_is_refused(make_lanes: Any) -> None:
    lanes = make_lanes(load_suite("tabletop_goal"), 1)
    message = f"task 'open_drawer': instruction is 'one_hot' among {TASK}, which leaves it out"
    with pytest.raises(ConfigError, match=message):
        evaluate(make_agent(), lanes, ["open_drawer"], num_episodes=1)


def test_a_wrapper_that_changes_what_is_observed_is_refused() -> None:
    env = VecFrameStack(SuiteVecEnv("tabletop_goal", 1, tasks=[TASK]), 2)
    model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=2)
    with pytest.raises(SpecError, match="SB3Agent: VecFrameStack changes what is observed"):
        SB3Agent(model, env)


def test_wrappers_that_stable_baselines3_adds_to_pictures_are_known() -> None:
    env = VecNormalize(
        VecMonitor(SuiteVecEnv("tabletop_goal", 1, tasks=[TASK], image_size=36)),
        norm_obs_keys=["state"],
    )
    model = PPO("MultiInputPolicy", env, n_steps=2, batch_size=2)
    added = model.get_env()
    assert isinstance(added, VecTransposeImage)
    assert SB3Agent(model, added).image_size == 36
