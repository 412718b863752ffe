import pytest
import torch

from vla_crl.algos.gradient_norms import gradient_norms, gradient_ratios


def test_each_term_has_the_norm_of_its_own_gradient_coefficient_included():
    first = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    second = torch.nn.Parameter(torch.tensor([5.0]))
    terms = {
        "policy_loss": 3.0 * first[0] + 4.0 * second.sum(),  # gradients (3, 0) and 4: norm 5
        "value_loss": 0.5 * first.square().sum(),  # gradient (1, 2)
        "replay": torch.zeros(()),  # none
        "penalty": second.detach().sum(),  # none
    }
    norms = gradient_norms(terms, [first, second])
    assert {name: float(norm) for name, norm in norms.items()} == {
        "policy_loss_grad_norm": pytest.approx(5.0),
        "value_loss_grad_norm": pytest.approx(5.0**0.5),
        "replay_grad_norm": 0.0,
        "penalty_grad_norm": 0.0,
    }


def test_ratios_are_to_the_policy_loss():
    norms = {"policy_loss_grad_norm": torch.tensor(2.0), "pull_grad_norm": torch.tensor(3.0)}
    assert gradient_ratios(norms, ["pull"]) == {"pull_grad_ratio": torch.tensor(1.5)}
    assert gradient_ratios({}, []) == {}  # nothing but the value head is trained
    norms = {"policy_loss_grad_norm": torch.zeros(()), "pull_grad_norm": torch.zeros(())}
    assert gradient_ratios(norms, ["pull"])["pull_grad_ratio"].isnan()


def test_graph_and_gradients_stay_as_they_are():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([7.0])
    loss = weight.square().sum()
    gradient_norms({"policy_loss": loss}, [weight])
    assert weight.grad.item() == 7.0
    loss.backward()
    assert weight.grad.item() == 11.0
