import numpy as np
import pytest
import torch

from vla_crl.errors import SpecError
from vla_crl.models.normalization import STD_FLOOR, NormStats


def test_statistics_are_those_of_all_leading_axes():
    states = np.array([[[1.0, 5.0]], [[3.0, 5.0]]])
    actions = np.array([[0.0], [1.0]])
    stats = NormStats(2, 1)
    buffer = stats.state_mean
    stats.set(states, actions)
    assert stats.state_mean is buffer  # where the weights are, there it stays
    assert stats.state_mean.tolist() == [2.0, 5.0]
    assert stats.state_std.tolist() == pytest.approx([1.0, STD_FLOOR])
    assert stats.action_mean.tolist() == [0.5]
    assert stats.action_std.tolist() == [0.5]


def test_unnormalising_inverts_normalising_and_clips():
    stats = NormStats(1, 1)
    stats.set(np.zeros((2, 1)), np.array([[-0.5], [0.7]]))
    actions = torch.tensor([[-0.5], [0.2]])
    torch.testing.assert_close(stats.unnormalize_action(stats.normalize_action(actions)), actions)
    assert stats.unnormalize_action(torch.tensor([[50.0]])).item() == 1.0


def test_statistics_are_buffers_and_not_parameters():
    stats = NormStats(8, 7)
    assert list(stats.parameters()) == []
    assert set(stats.state_dict()) == {"state_mean", "state_std", "action_mean", "action_std"}


@pytest.mark.parametrize("actions", [np.zeros((0, 1)), np.array([[np.nan]])])
def test_empty_or_infinite_data_are_refused(actions):
    with pytest.raises(SpecError, match="actions of shape .* are empty or not finite"):
        NormStats(1, 1).set(np.zeros((1, 1)), actions)


def test_statistics_of_another_robot_are_refused():
    with pytest.raises(SpecError, match=r"actions of shape \(5, 4\) have 4 numbers, the robot"):
        NormStats(8, 7).set(np.zeros((5, 8)), np.zeros((5, 4)))
