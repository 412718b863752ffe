"""Flow-Noise: a flow whose every step is stochastic, with noise that a small network has learnt.

Sampling walks the grid of flow times t_0 = 1, t_1, ..., t_K = 0, see `vla_crl.models.heads.flow`:

    x_(k+1) ~ N(x_k - (t_k - t_(k+1)) v(x_k, t_k), sigma(x_k, t_k)^2),

the Euler step of the flow with its own deviation for every number. All K steps are parts of the
density, so its sum is the log-density of the walk, and a ratio of two is that of the paper's
formula. Their starts are alike in both and cancel.

References: pi_RL, arXiv 2510.25889, section 4 (Flow-Noise, bounds of the deviation); ReinFlow,
arXiv 2505.22094 (noise network on the features of the velocity). Deviations:

- Published code tempers the ratio: that of pi_RL takes the mean over the start and the K steps,
  which is the (K + 1)-th root, that of ReinFlow also over the numbers. Here nothing is divided.
- ReinFlow clamps every step to [-1, 1] and its noise to 3 deviations, which its density leaves
  out. Here neither is clamped.
- Like there, the numbers of actions that are not executed are in no step's density, though those of
  inner steps can reach the executed ones by way of the expert.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from vla_crl.config import Size
from vla_crl.density import GaussianDensity
from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.context import Context
from vla_crl.models.heads.drawn import DrawnHead
from vla_crl.models.heads.flow import (
    InitialNoise,
    draw_start,
    make_expert,
    matching_loss,
    step_mean_std,
    time_grid,
)
from vla_crl.models.heads.head import HeadConfig, HeadSizes, Sampled
from vla_crl.rows import Rows

Std = Annotated[float, Interval(gt=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(HeadConfig):
    """Training and sampling of a flow with learnt noise."""

    kind: str = "noise"
    """Name of the head."""
    num_steps: Annotated[int, Interval(ge=1, le=1000)] = 4
    """Steps K from noise to action, all of them stochastic."""
    initial_noise: InitialNoise = "zero"
    """Start of sampling at flow time 1; deterministically it is zero."""
    min_std: Std = 0.08
    """Least deviation of a step, in normalised actions."""
    max_std: Std = 0.16
    """Greatest deviation of a step; it begins at the geometric mean of both."""
    noise_width: Size = 64
    """Hidden width of the noise network."""
    num_flow_draws: Annotated[int, Interval(ge=1, le=1000)] = 4
    """(noise, flow time) pairs per observation in the supervised loss."""
    expert: ActionExpertConfig = field(default_factory=ActionExpertConfig)
    """Action expert."""

    def __post_init__(self) -> None:
        """Check the order of the bounds."""
        super().__post_init__()
        if self.min_std > self.max_std:
            raise ConfigError(
                f"min_std = {self.min_std} is above max_std = {self.max_std}; give the smaller "
                "number as min_std"
            )


@dataclass(frozen=True)
class NoiseTrace(Rows):
    """The walk of a sampled chunk.

    Attributes:
        x: [B, K + 1, H, A] from the start to the actions.
    """

    x: Tensor


@dataclass(frozen=True)
class NoiseDraws(Rows):
    """All that is random in a walk from noise to actions.

    Attributes:
        start: [B, H, A] where it begins, at t = 1.
        noise: [B, K, H, A] standard normal numbers; None walks the ODE.
    """

    start: Tensor
    noise: Tensor | None = None


class NoiseHead(DrawnHead):
    """An action expert that predicts the clean chunk, and a network that says how noisy a step is.

    The supervised loss teaches the network nothing: it learns from reward alone.
    """

    config_class: ClassVar[type[HeadConfig]] = NoiseConfig
    draws_class: ClassVar[type[Rows]] = NoiseDraws
    exploration: ClassVar[tuple[str, ...]] = ("min_std", "max_std", "initial_noise")
    exploration_parameters: ClassVar[tuple[str, ...]] = ("noise_network",)

    def __init__(self, config: NoiseConfig, sizes: HeadSizes) -> None:
        """Build expert and noise network.

        Raises:
            ConfigError: The expert does not fit the backbone or the chunks.
        """
        super().__init__(config, sizes)
        self.expert = make_expert(config.expert, sizes)
        numbers_per_token = self.expert.action_out.out_features
        self.noise_network = nn.Sequential(
            nn.Linear(config.expert.width, config.noise_width),
            nn.Tanh(),
            nn.Linear(config.noise_width, numbers_per_token),
            nn.Tanh(),
        )
        for parameter in self.noise_network[2].parameters():
            nn.init.zeros_(parameter)

    def draw(
        self, num_rows: int, generator: torch.Generator | None, *, deterministic: bool
    ) -> NoiseDraws:
        """Draw the start and the noise of all steps."""
        shape = self.chunk_shape(num_rows)
        if deterministic:
            return NoiseDraws(torch.zeros(shape))
        start = draw_start(self.config.initial_noise, shape, generator)
        steps = num_rows, self.config.num_steps, *shape[1:]
        return NoiseDraws(start, torch.randn(steps, generator=generator))

    def walk(self, context: Context, draws: NoiseDraws) -> Sampled:
        """Walk from noise to actions; without noise along the ODE."""
        memory, x, num_rows = self.expert.remember(context), draws.start, draws.start.shape[0]
        grid = time_grid(self.config.num_steps, x.device)
        walked, means, stds = [x], [], []
        for index in range(self.config.num_steps):
            times = grid[index].expand(num_rows, 1), grid[index + 1].expand(num_rows, 1)
            features = self.expert.features(memory, x[:, None], times[0])
            mean, std = self._step(features, x[:, None], *times)
            x = mean[:, 0]
            if draws.noise is not None:
                x = x + std[:, 0] * draws.noise[:, index]
            walked.append(x)
            means.append(mean)
            stds.append(std)
        trace = NoiseTrace(torch.stack(walked, dim=1))
        return Sampled(x, trace, self._density(trace, torch.cat(means, 1), torch.cat(stds, 1)))

    def density(self, context: Context, trace: NoiseTrace) -> GaussianDensity:
        """Run the expert once: the K steps are draws of one sequence, see `ActionExpert`."""
        num_steps, x = self.config.num_steps, trace.x[:, :-1]
        times = time_grid(num_steps, x.device).expand(len(x), -1)
        memory = self.expert.remember(context, num_steps)
        features = self.expert.features(memory, x, times[:, :-1])
        return self._density(trace, *self._step(features, x, times[:, :-1], times[:, 1:]))

    def imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the flow-matching loss."""
        return matching_loss(self.expert, context, actions, self.config.num_flow_draws, generator)

    def _step(
        self, features: Tensor, x: Tensor, flow_time: Tensor, next_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and deviation [B, D, H, A] of steps from x [B, D, H, A] at times [B, D]."""
        clean = self.expert.chunks(features)
        flat = (t.flatten(0, 1) for t in (x, clean, flow_time, next_time))
        mean, _ = step_mean_std(*flat, noise_level=0.0)  # the Euler step
        low, high = math.log(self.config.min_std), math.log(self.config.max_std)
        # log sigma = low + (1 + tanh) / 2 (high - low)
        share = 0.5 * (1.0 + self.noise_network(features).reshape(x.shape))
        return mean.reshape(x.shape), (low + share * (high - low)).exp()

    def _density(self, trace: NoiseTrace, mean: Tensor, std: Tensor) -> GaussianDensity:
        """Return that of the walk, K parts of the executed actions."""
        executed = self.sizes.execution_horizon
        parts = (x[:, :, :executed] for x in (trace.x[:, 1:], mean, std))
        return GaussianDensity(*parts)
