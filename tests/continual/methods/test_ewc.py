import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vla_crl.algos.learner import policy_parameters
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.methods.ewc import EWC, EWCConfig
from vla_crl.errors import ConfigError
from vla_crl.testing.toy_stream import ToyPolicy, ToyTraining


def training(folder: Path, **settings) -> ToyTraining:
    return ToyTraining(EWC(EWCConfig(**settings)), folder, num_tasks=2, num_iterations=6)


def stage_done(folder: Path, number: int = 1, **settings) -> ToyTraining:
    run = training(folder, **settings)
    for stage in range(1, number + 1):
        run.begin(stage)
        for _ in range(run.num_iterations):
            run.iterate()
        run.close()
    return run


def penalty_of(method: ContinualMethod, policy: ToyPolicy) -> torch.Tensor:
    losses = method.losses(policy, None, None)  # type: ignore[arg-type]
    return losses["penalty"]


def test_nothing_is_held_in_the_first_stage(tmp_path: Path):
    run = training(tmp_path)
    run.begin(1)
    run.iterate()
    run.iterate()
    assert "penalty" not in run.rows[-1]
    assert run.rows[-1]["num_held"] == 0.0


def test_the_penalty_is_that_of_the_paper(tmp_path: Path):
    run = stage_done(tmp_path, strength=6.0, num_chunks=64)
    policy, method = run.policy, run.method
    bias = policy.get_parameter("head.2.bias")
    assert penalty_of(method, policy).item() == 0.0  # where the task left the weights
    importance = method.state_dict()["importance/head.2.bias"]
    assert (importance > 0).all()
    # Of a bias of a normal density with standard deviation 0.3, F is near 1 / 0.3^2 = 11.1.
    torch.testing.assert_close(importance, torch.full((2,), 11.1), rtol=0.5, atol=0.0)
    with torch.no_grad():
        bias += torch.tensor([0.1, -0.2])
    # lambda / 2 sum F d^2 = 3 (0.01 F_0 + 0.04 F_1), and its gradient is lambda F d.
    penalty = penalty_of(method, policy)
    assert penalty.item() == pytest.approx(3.0 * float(importance @ torch.tensor([0.01, 0.04])))
    (gradient,) = torch.autograd.grad(penalty, [bias])
    torch.testing.assert_close(gradient, 6.0 * importance * torch.tensor([0.1, -0.2]))


def test_importance_is_of_as_many_fresh_chunks_as_asked_for(tmp_path: Path):
    # A rollout has 128 chunks, so three are needed; the budget of the stage does not pay for them.
    run = stage_done(tmp_path, num_chunks=300)
    before = len(run.rows)
    again = stage_done(tmp_path, num_chunks=300)
    assert before == 6
    ours, theirs = run.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def one_task(value: float, importance: float) -> dict[str, torch.Tensor]:
    names = policy_parameters(ToyPolicy())
    return {
        **{f"anchor/{n}": torch.full_like(p, value).detach() for n, p in names.items()},
        **{f"importance/{n}": torch.full_like(p, importance).detach() for n, p in names.items()},
    }


@pytest.mark.parametrize("variant", ["separate", "online"])
def test_tasks_add_up_as_the_variant_says(tmp_path: Path, variant):
    run = training(tmp_path, variant=variant, decay=0.5, strength=2.0)
    run.begin(1)
    run.method.load_state_dict(one_task(value=3.0, importance=4.0))
    run.close()
    anchor = {n: p.detach() for n, p in policy_parameters(run.policy).items()}
    state = run.method.state_dict()
    for name, value in anchor.items():
        importance = state[f"importance/{name}"]
        if variant == "online":  # F <- gamma F + F_t around where the last task left the weights
            fresh = importance - 0.5 * 4.0
            assert torch.equal(state[f"anchor/{name}"], value)
        else:
            # d/d theta of F_1 (theta - 3)^2 + F_2 (theta - theta_2)^2, wherever theta is.
            fresh = importance - 4.0
            at = torch.full_like(value, 0.7)
            expected = 4.0 * (at - 3.0) + fresh * (at - value)
            found = importance * (at - state[f"anchor/{name}"])
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert (fresh >= 0).all()


def test_the_gradient_grows_with_the_strength(tmp_path: Path):
    ratios = []
    for strength in (1.0, 10.0):
        run = stage_done(tmp_path / str(strength), strength=1.0)
        run.method.config = replace(run.method.config, strength=strength)
        run.begin(2)
        run.iterate()  # the value head alone
        run.iterate()
        with torch.no_grad():
            run.policy.get_parameter("head.2.bias").add_(0.1)
        run.iterate()
        ratios.append(run.rows[-1]["penalty_grad_ratio"])
    assert ratios[1] > 5.0 * ratios[0] > 0.0


def test_a_closed_form_of_the_importance_can_be_chosen(tmp_path: Path):
    exact = stage_done(tmp_path, fisher="gaussian", num_chunks=128).method.state_dict()
    sampled = stage_done(tmp_path, fisher="sampled", num_chunks=4096).method.state_dict()
    name = "importance/head.2.bias"
    # Nothing of a bias's depends on what was seen: 1 / 0.3^2 exactly, and nearly.
    torch.testing.assert_close(exact[name], torch.full((2,), 1 / 0.09), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(sampled[name], exact[name], rtol=0.15, atol=0.0)


def test_weights_of_another_shape_cannot_be_held(tmp_path: Path):
    run = training(tmp_path)
    run.method.load_state_dict(
        {"anchor/head.2.bias": torch.zeros(3), "importance/head.2.bias": torch.ones(3)}
    )
    message = "method 'ewc': 'head.2.bias' has shape [2], but what is held of it [3]; train the"
    with pytest.raises(ConfigError, match=re.escape(message)):
        run.begin(1)
