"""Value head on what the backbone saw."""

from torch import Tensor, nn


class ValueHead(nn.Module):
    """Small MLP from context features to one value per observation.

    The features are detached: the critic never trains the backbone (pi_RL, arXiv 2510.25889).
    """

    def __init__(self, feature_dim: int, hidden_width: int) -> None:
        """Build two hidden layers and an output that starts at 0."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(feature_dim),
            nn.Linear(feature_dim, hidden_width),
            nn.Tanh(),
            nn.Linear(hidden_width, hidden_width),
            nn.Tanh(),
        )
        self.output = nn.Linear(hidden_width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, F] to values [B]."""
        return self.output(self.mlp(features.detach())).squeeze(-1)
