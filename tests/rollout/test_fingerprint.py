"""What a number is of, and in what two numbers differ."""

import importlib.metadata

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.models.weights import weights_fingerprint
from vla_crl.rollout.agents import ExpertAgent, PolicyAgent
from vla_crl.rollout.fingerprint import differences, fingerprint
from vla_crl.sim.backends import find_suite, simulate


def test_a_fingerprint_tells_protocol_states_horizon_and_versions():
    suite = find_suite("libero_spatial@openpi")
    told = fingerprint(suite, [0, 3], [500, 501, 502, 510], seed=4)
    assert told["protocol"] == "openpi"
    assert (told["state_ids"], told["horizon"], told["seed"]) == ("500-502, 510", 220, 4)
    assert (told["rendered_size"], told["is_turned"], told["wait_steps"]) == (256, True, 10)
    assert (told["resets"], told["physics"]) == ("seed 7", "exact")
    assert told["packages"]["mujoco"] == importlib.metadata.version("mujoco")


def test_a_fingerprint_tells_which_policy_acted_how(untrained_policy):
    agent = PolicyAgent(untrained_policy, deterministic=False, seed=3)
    assert agent.description(find_suite("libero_spatial@openpi")) == {
        "weights": weights_fingerprint(untrained_policy),
        "actions": "sampled, seed 3",
        "image_size": untrained_policy.config.image_size,
        "executed_actions": 5,
    }
    assert agent.description(find_suite("tabletop_object"))["executed_actions"] == 4
    scripted = ExpertAgent().description(find_suite("tabletop_object"))
    assert scripted == {"actions": "scripted", "executed_actions": 1}


def test_horizons_of_several_benchmarks_are_all_told():
    suite = find_suite("libero_100")
    assert fingerprint(suite, range(100), [500])["horizon"] == [400, 520]


def test_two_fingerprints_differ_in_words():
    exact, fast = (
        fingerprint(find_suite(name), [0], [500]) for name in ("libero_goal", "libero_goal@fast")
    )
    assert differences(exact, exact) == []
    assert differences(exact, fast) == [
        "suite: 'libero_goal' and 'libero_goal@fast'",
        "physics: 'exact' and 'fast: what rests may sleep'",
    ]
    assert differences({"a": 1}, {}) == ["a: 1 and None"]


def test_an_evaluation_executes_as_many_actions_of_a_chunk_as_its_suite_says(
    untrained_policy, monkeypatch
):
    suite = find_suite("tabletop_object")
    sim = simulate(suite, 1, tasks=[0])
    sim.reset([0], tasks=[0], state_ids=[suite.test_ids.start])
    agent, slots = PolicyAgent(untrained_policy, deterministic=True), np.array([0])
    assert agent(sim)(slots).shape[1] == untrained_policy.config.execution_horizon == 4
    monkeypatch.setattr(type(suite), "executed_chunk", 6)
    assert agent(sim)(slots).shape[1] == 6
    monkeypatch.setattr(type(suite), "executed_chunk", 9)
    with pytest.raises(ConfigError, match="executes 9 actions of a chunk, but the policy"):
        agent(sim)
    sim.close()
