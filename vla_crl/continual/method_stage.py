"""What a continual-learning method may use of a stage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vla_crl.algos.protocols import Rollout
from vla_crl.sim.task_suite import TaskSuite

if TYPE_CHECKING:
    from vla_crl.rollout.demonstrations import Demonstrations  # which loads the worlds


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a stream: what it is about, and what can be done in it.

    Attributes:
        number: From 1 on.
        num_stages: Of the whole stream.
        tasks: What it trains; one name, of a joint stage all of them.
        suite: What the tasks are of.
        collect: Collects a fresh rollout of the tasks with the policy as it is, outside the budget
            of episodes, advantages included. The next one is written over it.
        train: Spends so many more episodes with the stage's learning rule, for methods that train
            again after they have changed the policy; these episodes are outside the budget, too.
        demonstrations: Gives so many episodes of the scripted expert on a task of the suite, on
            training states. The same call returns the same demonstrations.
        generator: Random numbers of torch on the CPU, the method's own and seeded by the run.
        rng: Likewise of numpy.
        folder: For the files of a replay memory; of the whole run, made on use.
    """

    number: int
    num_stages: int
    tasks: tuple[str, ...]
    suite: TaskSuite
    collect: Callable[[], Rollout]
    train: Callable[[int], None]
    demonstrations: "Callable[[str, int], Demonstrations]"
    generator: torch.Generator
    rng: np.random.Generator
    folder: Path
