from pathlib import Path
from typing import Any

import pytest
import torch

from vla_crl.continual.composite import Composite
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.continual.methods.kl_to_previous import KLToPrevious, KLToPreviousConfig
from vla_crl.testing import check_method
from vla_crl.testing.toy_stream import ToyTraining


def training(folder: Path, *, rank: int | None = 4, **settings) -> ToyTraining:
    method = KLToPrevious(KLToPreviousConfig(**settings))
    return ToyTraining(method, folder, num_tasks=2, num_iterations=6, rank=rank)


def run_stage(run: ToyTraining, number: int) -> None:
    run.begin(number)
    for _ in range(run.num_iterations):
        run.iterate()
    run.close()


def distance(run: ToyTraining) -> float:
    """Return how far the second stage moves the policy on the first task."""
    context = run.policy.encode(run._see(torch.zeros(64, dtype=torch.int64)))
    before = run.policy.mean(context).detach()
    run_stage(run, 2)
    return (run.policy.mean(context) - before).norm(dim=-1).mean().item()


def test_nothing_is_held_in_the_first_stage(tmp_path: Path):
    run = training(tmp_path)
    run_stage(run, 1)
    assert not any("reference_kl" in row for row in run.rows)
    run_stage(run, 2)
    assert run.rows[-1]["reference_kl"] > 0.0


def test_the_loss_is_the_divergence_from_the_policy_of_the_previous_task(tmp_path: Path):
    run = training(tmp_path, coefficient=3.0)
    run_stage(run, 1)
    (batch,) = run._collect_fresh().minibatches(128, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = run.policy.mean(batch.context)  # type: ignore[arg-type]
    run.begin(2)
    evaluation = run.policy.evaluate_actions(batch.context, batch.trace)  # type: ignore[arg-type]
    at_first = run.method.losses(run.policy, batch, evaluation)["reference_kl"]
    assert at_first.item() == pytest.approx(0.0, abs=1e-6)
    run.iterate()
    run.iterate()
    evaluation = run.policy.evaluate_actions(batch.context, batch.trace)  # type: ignore[arg-type]
    found = run.method.losses(run.policy, batch, evaluation)["reference_kl"]
    # Two normal densities of standard deviation 0.3: |m - m'|^2 / (2 * 0.09).
    gap = run.policy.mean(batch.context) - before  # type: ignore[arg-type]
    expected = 3.0 * (gap.square().sum(dim=(1, 2)) / 0.18).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    assert found.requires_grad


def test_the_base_is_held_to_from_the_first_stage_on(tmp_path: Path):
    run = training(tmp_path, reference="base", coefficient=1.0)
    run_stage(run, 1)
    assert run.rows[-1]["reference_kl"] > 0.0
    with torch.no_grad(), run.policy.adapters.acting({}):
        (batch,) = run._collect_fresh().minibatches(128, torch.Generator().manual_seed(0))
        evaluation = run.policy.evaluate_actions(batch.context, batch.trace)  # type: ignore[arg-type]
    run.begin(2)
    losses = run.method.losses(run.policy, batch, evaluation)
    assert losses["reference_kl"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_policy_moves_less_the_larger_the_coefficient(tmp_path: Path):
    moved, ratios = [], []
    for coefficient in (0.0, 0.1, 10.0):
        run = training(tmp_path, coefficient=coefficient)
        run_stage(run, 1)
        moved.append(distance(run))
        ratios.append(run.rows[-1]["reference_kl_grad_ratio"])
    assert moved[0] > moved[1] > 3.0 * moved[2]
    assert ratios[0] == 0.0 < ratios[1]


@pytest.mark.parametrize("rank", [4, None])
def test_the_copy_is_of_what_is_trained_and_leaves_the_policy_alone(tmp_path: Path, rank):
    run = training(tmp_path, rank=rank)
    run_stage(run, 1)
    names = [name for name, _ in run.policy.named_parameters()]
    (batch,) = run._collect_fresh().minibatches(128, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = run.policy.mean(batch.context)  # type: ignore[arg-type]
    run.begin(2)
    for _ in range(3):
        run.iterate()
    assert [name for name, _ in run.policy.named_parameters()] == names
    evaluation = run.policy.evaluate_actions(batch.context, batch.trace)  # type: ignore[arg-type]
    gap = run.policy.mean(batch.context) - before  # type: ignore[arg-type]
    expected = 0.1 * (gap.square().sum(dim=(1, 2)) / 0.18).mean()  # as above
    found = run.method.losses(run.policy, batch, evaluation)["reference_kl"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    assert found.item() > 1e-4


class Unfreezing(ContinualMethod):
    """Trains the network beside its adapters in the second stage."""

    def before_task(self, policy: Any, stage):
        policy.head[0].bias.requires_grad_(stage.number == 2)


def test_what_another_method_trains_is_held_too(tmp_path: Path):
    both = {"kl": KLToPrevious(KLToPreviousConfig()), "other": Unfreezing(NoSettings())}
    run = ToyTraining(Composite(both), tmp_path, num_tasks=2, num_iterations=3, rank=4)
    run_stage(run, 1)
    (batch,) = run._collect_fresh().minibatches(128, torch.Generator().manual_seed(0))
    run.begin(2)
    with torch.no_grad():
        run.policy.get_parameter("head.0.bias").add_(1.0)
    evaluation = run.policy.evaluate_actions(batch.context, batch.trace)  # type: ignore[arg-type]
    assert run.method.losses(run.policy, batch, evaluation)["kl/reference_kl"].item() > 0.01


@pytest.mark.parametrize("reference", ["previous_task", "base"])
def test_it_keeps_the_contract(reference):
    check_method("kl_to_previous", {"reference": reference})
