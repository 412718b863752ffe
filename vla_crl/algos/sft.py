"""Supervised fine-tuning on demonstrations of the stage's task, where others learn by reward."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from vla_crl.algos.learner import Learner, LearnerConfig, Terms
from vla_crl.algos.protocols import LabelledBatch
from vla_crl.config import Size
from vla_crl.density import Evaluation


@dataclass(frozen=True, kw_only=True)
class SFTConfig(LearnerConfig):
    """Settings of `SFT`."""

    kind: str = "sft"
    """Learning rule."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Passes over the demonstrations of one iteration, which are not seen again."""
    minibatch_size: Size = 128
    """Control steps per optimizer step."""


class SFT(Learner):
    """Imitate a scripted expert: as many of its episodes as others have of their own.

    An iteration has one episode a world of `collector.num_envs`.
    """

    config_class = SFTConfig
    data = "demonstrations"

    def terms(self, batch: LabelledBatch, evaluation: Evaluation) -> Terms:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the head's supervised loss of each chunk."""
        return Terms(
            self.policy.imitation(batch.context, batch.actions, batch.mask, self.generator)
        )
