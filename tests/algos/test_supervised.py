import math

import pytest
import torch
from torch import nn

from vla_crl.algos.supervised import SupervisedConfig, SupervisedLearner
from vla_crl.errors import ConfigError


def learner(**settings) -> tuple[nn.Linear, SupervisedLearner]:
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    settings = {"num_updates": 12, "num_warmup_updates": 2, "learning_rate": 0.1} | settings
    return model, SupervisedLearner(model, SupervisedConfig(**settings))


def test_learning_rate_warms_up_linearly_and_falls_along_half_a_cosine():
    model, supervised = learner()
    rates = []
    for _ in range(13):
        rates.append(supervised.learning_rate())
        supervised.update({"imitation": model.weight.square().sum()})
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    # Half way (update 7 of 2 .. 12): 5 % + 95 % * (1 + cos(pi / 2)) / 2 of the peak.
    assert rates[7] == pytest.approx(0.1 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert rates[12] == pytest.approx(0.1 * 0.05)


def test_losses_are_weighted():
    model, supervised = learner(loss_weights={"imitation": 2.0, "pointer": 3.0})
    total = supervised.update({"imitation": model.weight.sum(), "pointer": model.weight.sum()})
    assert total == pytest.approx(2.0 * 2.0 + 3.0 * 2.0)


def test_gradients_are_clipped_to_the_norm():
    model, supervised = learner(max_grad_norm=0.5)
    supervised.update({"imitation": 100.0 * model.weight.sum()})
    assert model.weight.grad is not None
    assert model.weight.grad.norm() == pytest.approx(0.5, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model, supervised = learner()
    with pytest.raises(FloatingPointError, match=r"update 0: loss is not finite \(imitation nan\)"):
        supervised.update({"imitation": torch.tensor(float("nan")) * model.weight.sum()})
    assert torch.equal(model.weight, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_updates": 0}, "num_updates = 0, expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0, expected more than 0 and at most 1"),
        ({"learning_rate": math.inf}, "learning_rate = inf, expected a finite number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm = -1.0, expected more than 0"),
        ({"num_warmup_updates": -5}, "num_warmup_updates = -5, expected at least 0"),
        ({"final_fraction": 2.0}, "final_fraction = 2.0, expected at least 0 and at most 1"),
        (
            {"loss_weights": {"imitation": 0.0}},
            "loss_weights.imitation = 0.0, expected more than 0",
        ),
        ({"loss_weights": {}}, "loss_weights has 0 entries, expected at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        SupervisedConfig(**({"num_updates": 1} | settings))
