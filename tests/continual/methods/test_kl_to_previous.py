from pathlib import Path

import pytest
import torch

from vla_crl.continual.methods.kl_to_previous import KLToPrevious, KLToPreviousConfig
from vla_crl.errors import ConfigError
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


def test_the_copy_is_an_adapter_that_is_not_trained_and_goes_with_the_stage(tmp_path: Path):
    run = training(tmp_path)
    run_stage(run, 1)
    assert run.policy.adapters.names == ("default",)
    num_base = sum(p.numel() for n, p in run.policy.named_parameters() if "lora" not in n)
    run.begin(2)
    assert run.policy.adapters.names == ("default", "reference")
    assert num_base == sum(p.numel() for n, p in run.policy.named_parameters() if "lora" not in n)
    copied = [m for pair in run.policy.adapters.matrices("reference").values() for m in pair]
    before = [matrix.clone() for matrix in copied]
    for _ in range(3):
        run.iterate()
    assert all(torch.equal(one, other) for one, other in zip(copied, before, strict=True))
    run.close()
    assert run.policy.adapters.names == ("default",)


def test_without_adapters_there_is_no_copy(tmp_path: Path):
    run = training(tmp_path, rank=None)
    run_stage(run, 1)
    with pytest.raises(ConfigError, match="'kl_to_previous': no adapter acts, and a copy of"):
        run.begin(2)
