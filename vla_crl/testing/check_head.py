"""Does an action head keep the contract that policies, learning rules and methods rely on?"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vla_crl.contracts import Observation
from vla_crl.errors import SpecError
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.policy import VLAPolicy
from vla_crl.testing.head_density import (
    check_density,
    check_executed_actions,
    check_expectations,
)
from vla_crl.testing.head_exploration import check_exploration, check_gradients, check_names
from vla_crl.testing.head_trial import HeadTrial
from vla_crl.testing.requirements import requirement, seeded, tensors_of
from vla_crl.testing.strict_device import strict_device

NUM_UPDATES, LEARNING_RATE = 20, 1e-3
"""Steps of Adam on one batch in which the supervised loss has to fall."""
ACTION_TOLERANCE = 1e-4
"""What actions may differ by in another batch, or on another device."""

_require = requirement("check_head")


def check_head(policy: VLAPolicy, observation: Observation | None = None) -> None:
    """Try all that a head can do, within a policy.

    Example:
        check_head(build_policy("my_preset.toml", embodiment=ARM))

    Args:
        policy: Whose head is checked; left as it was. Its weights may be random.
        observation: What it sees, two rows or more; None takes noise for pictures.

    Raises:
        SpecError: The first violation, with what came and what was expected.
    """
    trial = HeadTrial(policy, observation)
    with torch.no_grad():
        check_names(trial)
        _check_sampling(trial)
        check_density(trial)
        check_executed_actions(trial)
        check_expectations(trial)
        check_exploration(trial)
    check_gradients(trial)
    _check_context(trial)
    with TemporaryDirectory() as folder:
        save_policy(policy, Path(folder))
        _check_stored(trial, load_policy(folder))
        with strict_device() as device:
            try:
                _check_on_device(trial, load_policy(folder, device=device))
            except RuntimeError as error:  # of torch
                raise SpecError(
                    f"check_head: fails on another device than the CPU: {error}; make tensors on "
                    "that of context.features"
                ) from error
        _check_learning(trial, load_policy(folder, is_trained=not policy.adapters.names))


def _check_sampling(trial: HeadTrial) -> None:
    """Check shapes, numbers and repetition."""
    shape = (trial.num_rows, trial.sizes.action_horizon, trial.sizes.num_numbers)
    actions, mode = trial.sampled.actions, trial.sample(0, deterministic=True).actions
    for name, tensor in (("sampled", actions), ("deterministic", mode)):
        came = tuple(tensor.shape)
        _require(came == shape, f"sample: {name} actions are {came}, expected {shape}")
        _require(bool(tensor.isfinite().all()), f"sample: a {name} action is not finite")
    _require(
        torch.equal(mode, trial.sample(1, deterministic=True).actions),
        "sample: deterministic actions depend on the generator",
    )
    _require(
        torch.equal(actions, trial.sample(0).actions),
        "sample: the same generator gives other actions; draw all that is random from it",
    )
    _require(
        not torch.equal(actions, trial.sample(1).actions),
        "sample: another generator gives the same actions; draw from it",
    )
    half = trial.head.sample(
        trial.context[: trial.num_rows // 2], deterministic=True, generator=seeded(0)
    ).actions
    gap = float((half - mode[: trial.num_rows // 2]).abs().max())
    _require(
        gap <= ACTION_TOLERANCE,
        f"sample: deterministic actions differ by {gap:.2g} in half the batch; rows must not "
        "see others",
    )


def _check_context(trial: HeadTrial) -> None:
    """Check that the context is as it was."""
    pairs = zip(tensors_of(trial.before), tensors_of(trial.context), strict=True)
    _require(
        all(torch.equal(before, now) for before, now in pairs),
        "the context was changed, which PPO stores and uses again",
    )


@torch.no_grad()
def _check_stored(trial: HeadTrial, loaded: VLAPolicy) -> None:
    """Check that a policy acts as before it was saved."""
    context = loaded.insulate(loaded.encode(trial.seen))
    sampled = loaded.head.sample(context, deterministic=False, generator=seeded(0))
    gap = float((sampled.actions - trial.sampled.actions).abs().max())
    _require(
        gap <= ACTION_TOLERANCE,
        f"saved and loaded, the policy samples actions that differ by {gap:.2g}; keep what it "
        "learns in parameters or buffers, what is set in config",
    )


@torch.no_grad()
def _check_on_device(trial: HeadTrial, policy: VLAPolicy) -> None:
    """Check that nothing remains on the CPU where the policy is elsewhere."""
    head, context = policy.head, policy.insulate(policy.encode(trial.seen))
    sampled = head.sample(context, deterministic=False, generator=seeded(0))
    density = head.density(context, trial.sampled.trace.to(policy.device))
    loss = head.imitation(context, trial.demonstrated().to(policy.device), seeded(3))
    for name, tensor in {
        "actions": sampled.actions,
        **{f"trace.{name}": tensor for name, tensor in sampled.trace.flatten().items()},
        "log_prob": density.log_prob(),
        "imitation": loss,
    }.items():
        _require(
            tensor.device == policy.device,
            f"'{name}' is on {tensor.device}, where the policy is on {policy.device}",
        )


def _check_learning(trial: HeadTrial, policy: VLAPolicy) -> None:
    """Check that the supervised loss of one batch falls."""
    with torch.no_grad():
        context = policy.insulate(policy.encode(trial.seen))
    actions = trial.demonstrated()
    adam = torch.optim.Adam(policy.head.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    for _ in range(NUM_UPDATES + 1):
        loss = policy.head.imitation(context, actions, seeded(3)).mean()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    _require(
        losses[-1] < losses[0],
        f"imitation: the loss of one batch goes from {losses[0]:.4g} to {losses[-1]:.4g} in "
        f"{NUM_UPDATES} steps of Adam, expected to fall",
    )
