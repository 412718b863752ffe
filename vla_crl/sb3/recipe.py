"""What a recipe of `vla-crl baseline` says."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from vla_crl.compute import ComputeConfig
from vla_crl.config import Count, Fraction, Seed, Settings, Size
from vla_crl.errors import ConfigError
from vla_crl.sim.rewards import Reward

MIN_PIXELS = 36
"""What the convolutions of stable-baselines3 need."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Settings):
    """Settings of stable-baselines3's PPO, under its own names."""

    n_steps: Count = 64
    """Control steps of every environment between two updates."""
    batch_size: Annotated[int, Interval(ge=2, le=10**9)] = 512
    n_epochs: Count = 8
    learning_rate: Annotated[float, Interval(gt=0, le=1)] = 1e-3
    gamma: Fraction = 0.9
    """Discount of a control step; a dense reward tells soon what is good."""
    gae_lambda: Fraction = 0.9
    ent_coef: Annotated[float, Interval(ge=0, le=1)] = 0.0
    log_std_init: Annotated[float, Interval(ge=-10, le=10)] = -1.0
    """Logarithm of the actions' standard deviation at first."""
    net_arch: tuple[Size, ...] = (128, 128)
    """Widths of the hidden layers, of actor and critic each."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Settings):
    """A recipe of `vla-crl baseline`."""

    suite: str
    """Suite of the task; also NAME@eef_position."""
    task: str
    num_steps: Count
    """Control steps of all environments together."""
    num_envs: Size = 64
    reward: Reward = "dense"
    """What is learnt from; measured is success alone."""
    privileged: bool = True
    """Whether observations tell where things are."""
    image_size: Annotated[int, Interval(ge=MIN_PIXELS, le=4096)] | None = None
    """Height and width of images, pixels; None: nothing is drawn."""
    evaluate_every: Count = 24_576
    """Control steps between two points of the learning curve."""
    num_eval_episodes: Count = 100
    """Test states at each point."""
    seed: Seed = 0
    ppo: PPOConfig = field(default_factory=PPOConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Device and threads; worlds are simulated on the CPU, in float32."""

    def __post_init__(self) -> None:
        """Check types, ranges, and that every setting has an effect.

        Raises:
            ConfigError: A setting is not as it should be.
        """
        super().__post_init__()
        if self.num_envs * self.ppo.n_steps < 2:
            raise ConfigError(
                "num_envs = 1 and ppo.n_steps = 1: an update needs two control steps or more; "
                "raise one of them"
            )
        for name, only in (("sim_device", "cpu"), ("dtype", "float32")):
            if (value := getattr(self.compute, name)) != only:
                raise ConfigError(
                    f"compute.{name} = '{value}', but a baseline knows '{only}' alone; leave it out"
                )
