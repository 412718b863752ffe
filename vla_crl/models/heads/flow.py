"""A flow from noise to action chunks: the head, and flow matching and Flow-SDE as pure functions.

Flow time t = 1 is noise and t = 0 the clean, normalised action chunk a:

    x_t = t * eps + (1 - t) * a,        v = eps - a = (x_t - a) / t.

The network predicts the clean chunk `a_hat`; the velocity follows from it. Sampling walks the
grid 1, 1 - 1/K, ..., 1/K, 0. One step may be stochastic: Flow-SDE turns the flow ODE into an SDE
with the same marginals, which gives the chunk a Gaussian log-probability for policy gradients.

References: Flow-GRPO, arXiv 2505.05470, eq. 9 (the SDE step); pi_RL, arXiv 2510.25889, section 4
(one stochastic step per chunk, the noise schedule); pi_0, arXiv 2410.24164 (flow time sampling).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.density import GaussianDensity
from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpert, ActionExpertConfig, Memory
from vla_crl.models.context import Context
from vla_crl.models.heads.head import ActionHead, HeadConfig, HeadSizes, Sampled
from vla_crl.rows import Rows

MAX_LOSS_WEIGHT = 3.0
MIN_FLOW_TIME = 0.001

StochasticStep = Literal["last", "random"]
NoiseLevel = Annotated[float, Interval(gt=0, le=100)]
"""Above 0: a policy acts without noise where it is told to act deterministically."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps x [B, H, A] and flow time [B] to the predicted clean chunk [B, H, A]."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(HeadConfig):
    """Training and sampling of the flow."""

    kind: str = "flow"
    """Name of the head."""
    num_steps: Annotated[int, Interval(ge=1, le=1000)] = 4
    """Steps K from noise to action."""
    initial_noise: Literal["zero", "normal"] = "zero"
    """Start of sampling at flow time 1."""
    noise_level: NoiseLevel = 0.6
    """Noise level of the one stochastic step when sampling."""
    stochastic_step: StochasticStep = "last"
    """Which step is stochastic; "random" draws one for every observation."""
    num_flow_draws: Annotated[int, Interval(ge=1, le=1000)] = 4
    """(noise, flow time) pairs per observation in the supervised loss."""
    expert: ActionExpertConfig = field(default_factory=ActionExpertConfig)
    """Action expert."""


@dataclass(frozen=True)
class FlowTrace(Rows):
    """What has to be kept of a sampled chunk to evaluate its log-probability again.

    Attributes:
        x: [B, H, A] input of the stochastic step.
        x_next: [B, H, A] its sample.
        step: [B] int64, index of the stochastic step in the grid.
    """

    x: Tensor
    x_next: Tensor
    step: Tensor


@dataclass(frozen=True)
class FlowDraws(Rows):
    """All that is random in a walk from noise to actions.

    Attributes:
        start: [B, H, A] where it begins, at t = 1.
        step: [B] int64 index of the stochastic step; None walks the ODE.
        noise: [B, H, A] standard normal numbers of that step, None likewise.
    """

    start: Tensor
    step: Tensor | None = None
    noise: Tensor | None = None


class FlowHead(ActionHead):
    """An action expert that predicts the clean chunk; one step of its walk may be stochastic."""

    config_class: ClassVar[type[HeadConfig]] = FlowConfig
    exploration: ClassVar[tuple[str, ...]] = ("noise_level", "stochastic_step", "initial_noise")

    def __init__(self, config: FlowConfig, sizes: HeadSizes) -> None:
        """Build the expert.

        Raises:
            ConfigError: It does not fit the backbone or the chunks.
        """
        super().__init__(config, sizes)
        self.expert = make_expert(config.expert, sizes)

    def sample(
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None
    ) -> Sampled:
        """Walk from noise to actions; deterministically the trace holds the last step."""
        shape = len(context), self.sizes.action_horizon, self.sizes.num_numbers
        draws = draw(self.config, shape, generator, deterministic=deterministic)
        return self.walk(context, draws.to(context.features.device))

    def walk(self, context: Context, draws: FlowDraws) -> Sampled:
        """Sample chunks with what is random drawn before."""
        memory = self.expert.remember(context)
        actions, trace, clean = sample(
            lambda x, flow_time: denoise(self.expert, memory, x, flow_time),
            draws,
            num_steps=self.config.num_steps,
            noise_level=self.config.noise_level,
        )
        return Sampled(actions, trace, self._density(trace, clean))

    def density(self, context: Context, trace: FlowTrace) -> GaussianDensity:
        """Run the expert once, at the stored step."""
        flow_time, _ = trace_times(trace, self.config.num_steps)
        clean = denoise(self.expert, self.expert.remember(context), trace.x, flow_time)
        return self._density(trace, clean)

    def imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the flow-matching loss."""
        return matching_loss(self.expert, context, actions, self.config.num_flow_draws, generator)

    def _density(self, trace: FlowTrace, clean: Tensor) -> GaussianDensity:
        return step_density(
            trace,
            clean,
            num_steps=self.config.num_steps,
            noise_level=self.config.noise_level,
            execution_horizon=self.sizes.execution_horizon,
        )


def make_expert(config: ActionExpertConfig, sizes: HeadSizes) -> ActionExpert:
    """Build an action expert for chunks.

    Raises:
        ConfigError: It does not fit the backbone, or its tokens do not share the chunk evenly.
    """
    if sizes.action_horizon % config.num_action_tokens:
        raise ConfigError(
            f"action_horizon = {sizes.action_horizon} must be a multiple of "
            f"head.expert.num_action_tokens = {config.num_action_tokens}"
        )
    return ActionExpert(config, sizes.backbone, sizes.action_horizon, sizes.num_numbers)


def denoise(expert: ActionExpert, memory: Memory, x: Tensor, flow_time: Tensor) -> Tensor:
    """Return the clean chunk [B, H, A] that an expert predicts from x [B, H, A] at times [B]."""
    return expert(memory, x[:, None], flow_time[:, None]).squeeze(1)


def matching_loss(
    expert: ActionExpert,
    context: Context,
    actions: Tensor,
    num_draws: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw flow times and noise, and return `flow_loss` [B, H] of what an expert predicts."""
    draws = (len(actions), num_draws)
    flow_time = sample_flow_time(draws, generator).to(actions.device)
    noise = torch.randn((*draws, *actions.shape[1:]), generator=generator).to(actions.device)
    x = interpolate(actions[:, None], noise, flow_time)
    prediction = expert(expert.remember(context, num_draws), x, flow_time)
    return flow_loss(prediction, actions, flow_time)


def draw(
    config: FlowConfig,
    shape: tuple[int, int, int],
    generator: torch.Generator | None,
    *,
    deterministic: bool,
) -> FlowDraws:
    """Draw what a walk of B chunks needs, on the CPU.

    Args:
        config: Settings of the flow.
        shape: [B, H, A] of the chunks.
        generator: Source of all randomness.
        deterministic: Walk the ODE.
    """
    is_normal = config.initial_noise == "normal"
    start = torch.randn(shape, generator=generator) if is_normal else torch.zeros(shape)
    if deterministic:
        return FlowDraws(start)
    first = config.num_steps - 1 if config.stochastic_step == "last" else 0
    step = torch.randint(first, config.num_steps, shape[:1], generator=generator)
    return FlowDraws(start, step, torch.randn(shape, generator=generator))


def time_grid(num_steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the `num_steps + 1` flow times 1, 1 - 1/K, ..., 1/K, 0."""
    return torch.arange(num_steps, -1, -1, device=device, dtype=torch.float32) / num_steps


def sample_flow_time(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw training flow times t = 0.001 + 0.999 b, b ~ Beta(1.5, 1), biased to the noisy end.

    The distribution function of Beta(1.5, 1) is b^1.5, so b = U^(2/3) (pi_0, appendix B).
    """
    uniform = torch.rand(shape, generator=generator)
    return MIN_FLOW_TIME + (1.0 - MIN_FLOW_TIME) * uniform ** (2.0 / 3.0)


def interpolate(actions: Tensor, noise: Tensor, flow_time: Tensor) -> Tensor:
    """Return x_t = t * noise + (1 - t) * actions; `flow_time` lacks the last two dimensions."""
    t = flow_time[..., None, None]
    return t * noise + (1.0 - t) * actions


def flow_loss(prediction: Tensor, actions: Tensor, flow_time: Tensor) -> Tensor:
    """Return min(1/t, 3) * (a_hat - a)^2 [B, H], the mean over draws and numbers.

    The velocity loss would weigh the same error with 1/t^2; predicting a_hat with a capped weight
    learns faster from pixels (deviation from pi_0, measured).

    Args:
        prediction: [B, D, H, A] predicted clean chunks of D draws per observation.
        actions: [B, H, A] clean chunks.
        flow_time: [B, D].
    """
    weight = (1.0 / flow_time).clamp(max=MAX_LOSS_WEIGHT)[..., None]
    return (weight * (prediction - actions[:, None]).square().mean(dim=-1)).mean(dim=1)


def step_mean_std(
    x: Tensor,
    clean: Tensor,
    flow_time: Tensor,
    next_time: Tensor,
    noise_level: float | Tensor,
    *,
    clamp_noise_weight: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of x_(t - delta) given x_t.

    Flow-GRPO eq. 9 in the form of pi_RL: with v = (x_t - a_hat)/t, x1_hat = x_t + (1 - t) v,

        sigma = noise_level * sqrt(t / (1 - t~)),   t~ = t, but the next grid time where t = 1,
        mean  = (1 - (t - delta)) a_hat + ((t - delta) - sigma^2 delta / (2t)) x1_hat,
        std   = sigma * sqrt(delta).

    `noise_level = 0` is the Euler step of the ODE. Deviation: the weight of x1_hat is kept >= 0.
    That binds on the last step (t - delta = 0), whose mean then is a_hat as in the ODE, and where
    noise_level > 1 before it, too; `clamp_noise_weight=False` is the published formula.

    Args:
        x: [B, H, A].
        clean: [B, H, A] predicted clean chunk a_hat.
        flow_time: [B] t.
        next_time: [B] t - delta.
        noise_level: Number or [B].
        clamp_noise_weight: Keep the weight of x1_hat >= 0.

    Returns:
        mean [B, H, A] and std [B, 1, 1].
    """
    delta = flow_time - next_time
    sigma = noise_level * torch.sqrt(
        flow_time / (1.0 - torch.where(flow_time == 1.0, next_time, flow_time))
    )
    noise_weight = next_time - sigma.square() * delta / (2.0 * flow_time)
    if clamp_noise_weight:
        noise_weight = noise_weight.clamp(min=0.0)
    velocity = (x - clean) / flow_time[:, None, None]
    noise_estimate = x + (1.0 - flow_time)[:, None, None] * velocity
    mean = (1.0 - next_time)[:, None, None] * clean + noise_weight[:, None, None] * noise_estimate
    return mean, (sigma * torch.sqrt(delta))[:, None, None]


def sample(
    denoise: Denoiser, draws: FlowDraws, *, num_steps: int, noise_level: float
) -> tuple[Tensor, FlowTrace, Tensor]:
    """Walk from the start at t = 1 to actions at t = 0 with at most one stochastic step per row.

    Args:
        denoise: Predicts the clean chunk.
        draws: Start, stochastic step and its noise; without a step the trace holds the last one.
        num_steps: Steps K of the grid.
        noise_level: Noise level of the stochastic step.

    Returns:
        Actions [B, H, A], the trace, and the clean chunk [B, H, A] predicted at the traced step.
    """
    x, num_rows = draws.start, draws.start.shape[0]
    grid = time_grid(num_steps, x.device)
    step, noise, is_deterministic = draws.step, draws.noise, draws.step is None
    if step is None or noise is None:
        step = torch.full((num_rows,), num_steps - 1, device=x.device)
        noise = torch.zeros_like(x)
    trace_x, trace_next, trace_clean = x, x, x
    for index in range(num_steps):
        here = step == index
        level = 0.0 if is_deterministic else noise_level * here
        flow_time, next_time = grid[index].expand(num_rows), grid[index + 1].expand(num_rows)
        clean = denoise(x, flow_time)
        mean, std = step_mean_std(x, clean, flow_time, next_time, level)
        x_next = mean + std * noise
        rows = here[:, None, None]
        trace_x = torch.where(rows, x, trace_x)
        trace_next = torch.where(rows, x_next, trace_next)
        trace_clean = torch.where(rows, clean, trace_clean)
        x = x_next
    return x, FlowTrace(trace_x, trace_next, step), trace_clean


def trace_times(trace: FlowTrace, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return flow time and next flow time, each [B], of the traced steps."""
    grid = time_grid(num_steps, trace.x.device)
    return grid[trace.step], grid[trace.step + 1]


def step_density(
    trace: FlowTrace,
    clean: Tensor,
    *,
    num_steps: int,
    noise_level: float,
    execution_horizon: int,
) -> GaussianDensity:
    """Return the density of the traced sample, one part of the executed actions.

    Its log-probability is pi_RL's chunk-level one: only the first `execution_horizon` actions
    count, because the others never reach the world.

    Args:
        trace: Input and sample of the stochastic step.
        clean: [B, H, A] clean chunk predicted at `trace.x`.
        num_steps: Steps K of the grid.
        noise_level: Noise level, > 0.
        execution_horizon: Number of leading actions that count.
    """
    flow_time, next_time = trace_times(trace, num_steps)
    mean, std = step_mean_std(trace.x, clean, flow_time, next_time, noise_level)
    sample, mean = (x[:, None, :execution_horizon] for x in (trace.x_next, mean))
    return GaussianDensity(sample, mean, std[:, None])
