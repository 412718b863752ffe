"""Does a policy keep the contract that rollout, PPO and evaluation rely on?"""

from dataclasses import fields

import torch
from torch import Tensor

from vla_crl.contracts import Observation
from vla_crl.errors import SpecError
from vla_crl.models.policy import VLAPolicy
from vla_crl.rows import Rows


def check_policy(policy: VLAPolicy, observation: Observation) -> None:
    """Run the policy once on `observation` and check everything it returns.

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
        before = [tensor.clone() for tensor in _tensors(context)]
        chunk = policy.act(context, deterministic=True, generator=_generator(0))
        again = policy.act(context, deterministic=True, generator=_generator(0))
        sampled = policy.act(context, deterministic=False, generator=_generator(0))
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
        all(torch.equal(a, b) for a, b in zip(before, _tensors(context), strict=True)),
        "act or evaluate_actions changed the context, which PPO stores and uses again",
    )
    _require(
        torch.equal(log_prob, sampled.log_prob),
        "evaluate_actions gives another log_prob than act for the same weights; "
        "the first PPO ratio would not be 1",
    )


def _tensors(rows: Rows) -> list[Tensor]:
    return [getattr(rows, field.name) for field in fields(rows)]  # pyright: ignore[reportArgumentType]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SpecError(f"check_policy: {message}")
