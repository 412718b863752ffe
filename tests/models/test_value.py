import torch

from vla_crl.models.value import ValueHead


def test_value_starts_at_zero():
    head = ValueHead(6, 4)
    assert torch.equal(head(torch.randn(3, 6)), torch.zeros(3))


def test_gradient_stops_at_the_features():
    features = torch.randn(3, 6, requires_grad=True)
    ValueHead(6, 4)(features * 2.0).sum().backward()
    assert features.grad is None
