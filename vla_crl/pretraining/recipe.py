"""What a pretraining recipe says."""

import os
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval, MinLen

from vla_crl.algos.supervised import SupervisedConfig
from vla_crl.compute import ComputeConfig
from vla_crl.config import Count, Seed, Settings
from vla_crl.datasets.config import DatasetConfig, is_own_file
from vla_crl.errors import ConfigError
from vla_crl.rollout.demonstrations import PerturbationConfig
from vla_crl.sim.variation import VariationConfig

EXPERT = "expert"
"""What stands for the scripted expert among the origins of demonstrations."""
Weight = Annotated[float, Interval(gt=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """A pretraining recipe."""

    suite: str
    """Suite whose tasks, training and held-out, are demonstrated; also NAME@joint_position."""
    policy: str
    """Preset, or checkpoint. A preset gives the architecture, and weights start at random; robot
    and things that it does not name are the suite's. The folder of a checkpoint gives all, and
    pretraining goes on from its weights. Words that either does not know are added."""
    supervised: SupervisedConfig
    """Optimisation."""
    data: Annotated[tuple[str, ...], MinLen(1)] = (EXPERT,)
    """Whose demonstrations are learnt, mixed: "expert" stands for those of the scripted expert,
    made now; else files of `vla-crl collect` or of your own (.npz) and, for suites of LIBERO, its
    HDF5 files, folders of them, and LeRobot folders."""
    data_weights: tuple[Weight, ...] = ()
    """How often each of `data` is drawn from, relative to one another; () means as often as it has
    steps."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """What is read of recorded demonstrations."""
    num_episodes: Count = 2000
    """Demonstrations of the scripted expert, spread evenly over the tasks."""
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    """Noise on the expert's executed actions."""
    variation: VariationConfig = field(default_factory=VariationConfig)
    """Domain randomisation of the demonstrations, in tasks without a variation of their own."""
    renormalize: bool = False
    """Going on from a checkpoint: take mean and deviation of states and actions from `data`
    instead of the checkpoint, which changes what it does in its old tasks."""
    question_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Part of the samples that ask "where is the red cube" instead of commanding an action."""
    target_success: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Stop as soon as the mean success on training states reaches this; None: do all updates."""
    check_every: Count = 100
    """Updates between two looks at that success."""
    num_check_episodes: Count = 10
    """Training states a task that such a look takes."""
    num_eval_episodes: Count = 100
    """Test episodes a task for the checkpoint's card."""
    seed: Seed = 0
    """Seed of demonstrations, weights and batches."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Devices, precision and threads. Demonstrations are always recorded on the CPU."""

    def __post_init__(self) -> None:
        """Check types, ranges, and that what is said of demonstrations fits those that are read."""
        super().__post_init__()
        places = {name if name == EXPERT else os.path.abspath(name) for name in self.data}
        if len(places) < len(self.data):
            raise ConfigError(f"data = {list(self.data)}, expected each once")
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise ConfigError(
                f"data_weights has {len(self.data_weights)} numbers, but data names "
                f"{len(self.data)}: {', '.join(self.data)}"
            )
        recorded = [name for name in self.data if name != EXPERT]
        readers = {"tasks": recorded, "episodes_per_task": recorded}
        others = [name for name in recorded if not is_own_file(name)]
        for name, read in (readers | dict.fromkeys(("view", "gripper", "seen"), others)).items():
            if getattr(self.dataset, name) and not read:
                kind = "recorded demonstrations" if name in readers else "files of LIBERO"
                raise ConfigError(
                    f"dataset.{name} = {getattr(self.dataset, name)!r} is for {kind}, but data is "
                    f"{', '.join(self.data)}"
                )
