import dataclasses

import pytest

from vla_crl.errors import SpecError
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.testing import check_policy


@pytest.fixture(scope="module")
def observation():
    sim = VectorSim(load_suite("tabletop_object"), 3, num_threads=1)
    sim.reset(range(3), tasks=[0, 4, 9], state_ids=range(3))
    return sim.observe()


def test_the_tiny_policy_keeps_the_contract(untrained_policy, observation):
    check_policy(untrained_policy, observation)


def test_a_policy_that_writes_into_its_context_is_refused(
    untrained_policy, observation, monkeypatch
):
    act = untrained_policy.act

    def act_and_scribble(context, **settings):
        chunk = act(context, **settings)
        context.features.add_(1.0)
        return chunk

    monkeypatch.setattr(untrained_policy, "act", act_and_scribble)
    with pytest.raises(SpecError, match="changed the context"):
        check_policy(untrained_policy, observation)


def test_a_policy_whose_ratio_is_not_one_is_refused(untrained_policy, observation, monkeypatch):
    evaluate = untrained_policy.evaluate_actions

    def evaluate_wrongly(context, trace):
        found = evaluate(context, trace)
        return dataclasses.replace(
            found, density=dataclasses.replace(found.density, mean=found.density.mean + 0.1)
        )

    monkeypatch.setattr(untrained_policy, "evaluate_actions", evaluate_wrongly)
    with pytest.raises(SpecError, match="the first PPO ratio would not be 1"):
        check_policy(untrained_policy, observation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :4], r"actions \(3, 4, 7\), expected \(3, 8, 7\)"),
        (lambda a: a * float("nan"), "an action is not finite"),
        (lambda a: a * 0 + 2, r"outside \[-1, 1\]"),
    ],
)
def test_actions_that_break_the_contract_are_refused(
    untrained_policy, observation, monkeypatch, change, message
):
    act = untrained_policy.act

    def act_wrongly(context, **settings):
        chunk = act(context, **settings)
        return dataclasses.replace(chunk, actions=change(chunk.actions))

    monkeypatch.setattr(untrained_policy, "act", act_wrongly)
    with pytest.raises(SpecError, match=message):
        check_policy(untrained_policy, observation)
