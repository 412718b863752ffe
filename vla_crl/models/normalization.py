"""Normalisation of state and actions with statistics that never change after pretraining."""

import numpy as np
import torch
from torch import Tensor, nn

from vla_crl.errors import SpecError

STD_FLOOR = 1e-3
"""Smallest standard deviation; a constant number must not be divided by zero."""


class NormStats(nn.Module):
    """Mean and standard deviation of state and actions, stored in the checkpoint as buffers.

    They stay fixed over the task sequence: recomputing them on new data would silently change
    the behaviour on old tasks.
    """

    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, state_dim: int, action_dim: int) -> None:
        """Start with the identity: mean 0 and standard deviation 1."""
        super().__init__()
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))

    def set(self, states: np.ndarray, actions: np.ndarray) -> None:
        """Take over the statistics of data, over every axis but the last.

        Args:
            states: [..., S] raw states.
            actions: [..., A] raw actions in [-1, 1].

        Raises:
            SpecError: No rows, other numbers than the robot's, or one that is not finite.
        """
        for name, values in (("state", states), ("action", actions)):
            mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
            if values.shape[-1] != len(mean):
                raise SpecError(
                    f"NormStats.set: {name}s of shape {values.shape} have {values.shape[-1]} "
                    f"numbers, the robot has {len(mean)}"
                )
            rows = np.asarray(values, dtype=np.float64).reshape(-1, values.shape[-1])
            if not len(rows) or not np.isfinite(rows).all():
                raise SpecError(
                    f"NormStats.set: {name}s of shape {values.shape} are empty or not finite; "
                    "check the demonstrations"
                )
            mean.copy_(torch.from_numpy(rows.mean(axis=0)))
            std.copy_(torch.from_numpy(np.maximum(rows.std(axis=0), STD_FLOOR)))

    def normalize_state(self, state: Tensor) -> Tensor:
        """Map raw states to zero mean and unit variance."""
        return (state - self.state_mean) / self.state_std

    def normalize_action(self, actions: Tensor) -> Tensor:
        """Map raw actions to the space in which the flow lives."""
        return (actions - self.action_mean) / self.action_std

    def unnormalize_action(self, actions: Tensor) -> Tensor:
        """Map flow output back to raw actions, clipped to [-1, 1]."""
        return (actions * self.action_std + self.action_mean).clamp(-1.0, 1.0)
