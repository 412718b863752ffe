"""Does a policy keep the contract that rollout, PPO and evaluation rely on?"""

import torch

from vla_crl.contracts import Observation
from vla_crl.models.policy import VLAPolicy
from vla_crl.testing.requirements import (
    LOG_PROB_TOLERANCE,
    log_prob_gap,
    requirement,
    seeded,
    tensors_of,
)

_require = requirement("check_policy")


def check_policy(policy: VLAPolicy, observation: Observation) -> None:
    """Run the policy once on `observation` and check everything it returns.

    What its action head does within is checked by `check_head`.

    Args:
        policy: What to check; left as it was.
        observation: A few observations of a suite, e.g. `VectorSim.observe()`.

    Raises:
        SpecError: The first violation, with what came and what was expected; also where the
            observation is not one of the policy's robot.
    """
    observation.validate(policy.embodiment)
    num, horizon = len(observation), policy.config.action_horizon
    with torch.no_grad():
        context = policy.encode(observation)
        _require(len(context) == num, f"encode: {len(context)} rows for {num} observations")
        before = [tensor.clone() for tensor in tensors_of(context)]
        chunk = policy.act(context, deterministic=True, generator=seeded(0))
        again = policy.act(context, deterministic=True, generator=seeded(0))
        sampled = policy.act(context, deterministic=False, generator=seeded(0))
        evaluation = policy.evaluate_actions(context, sampled.trace)
        log_prob, value = evaluation.density.log_prob(), evaluation.value
    shape = (num, horizon, len(policy.embodiment.action))
    actions = chunk.actions
    _require(
        tuple(actions.shape) == shape, f"act: actions {tuple(actions.shape)}, expected {shape}"
    )
    _require(bool(actions.isfinite().all()), "act: an action is not finite")
    _require(bool((actions.abs() <= 1).all()), "act: an action lies outside [-1, 1]")
    _require(torch.equal(actions, again.actions), "act: deterministic actions differ when repeated")
    for name, tensor in (("value", sampled.value), ("value", value)):
        _require(tuple(tensor.shape) == (num,), f"{name}: {tuple(tensor.shape)}, expected ({num},)")
    came = tuple(sampled.log_prob.shape)
    _require(len(came) == 2 and came[0] == num, f"log_prob: {came}, expected ({num}, P)")
    _require(
        all(torch.equal(a, b) for a, b in zip(before, tensors_of(context), strict=True)),
        "act or evaluate_actions changed the context, which PPO stores and uses again",
    )
    came = tuple(log_prob.shape)
    _require(
        came == tuple(sampled.log_prob.shape),
        f"log_prob: {came} of evaluate_actions, {tuple(sampled.log_prob.shape)} of act",
    )
    gap = log_prob_gap(log_prob, sampled.log_prob)
    _require(
        gap <= LOG_PROB_TOLERANCE,
        f"evaluate_actions gives a log_prob that differs by {gap:.2g} from that of act for the "
        f"same weights, at most {LOG_PROB_TOLERANCE}; the first PPO ratio would not be 1",
    )
