"""KL to the policy of the previous task, or to the base: what the policy does may not change far.

The penalty of learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282, eq. 1-3) as a
divergence of policies on the states of the present task, the form that reinforcement learning from
feedback uses (Ouyang et al. 2022, arXiv 2203.02155, eq. 2, there from the first policy):

    L = L_policy + coefficient * mean_b KL(pi_theta(.|s_b) || pi_ref(.|s_b))

in closed form (`Density.kl`). The reference is a frozen copy of what is trained, be it adapters or
the weights themselves, not of the policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.learner import Learner
from vla_crl.algos.protocols import Batch, ParamGroup, Reference
from vla_crl.config import Settings
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.reference import as_it_is, reference_by, require_base
from vla_crl.density import Evaluation


@dataclass(frozen=True, kw_only=True)
class KLToPreviousConfig(Settings):
    """Settings of `KLToPrevious`."""

    coefficient: Annotated[float, Interval(ge=0, le=1e9)] = 0.1
    """Weight of the divergence in the loss."""
    reference: Literal["previous_task", "base"] = "previous_task"
    """Near which policy: the one that the previous task left, so nothing is held in the first, or
    the one without adapters, in all stages."""


class KLToPrevious(ContinualMethod):
    """Stay near the policy that the previous task left, or near the base."""

    config_class = KLToPreviousConfig
    config: KLToPreviousConfig
    paper = "arXiv 1606.09282, arXiv 2203.02155"
    stores = "a copy of what is trained, while the next task is"

    def __init__(self, config: KLToPreviousConfig) -> None:
        """Begin with no task done."""
        super().__init__(config)
        self._num_done = 0
        self._reference: Reference | None = None

    @property
    def needs_shared_parameters(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the reference is of an earlier task."""
        return self.config.reference == "previous_task"

    def check(self, policy: Any, learner: Learner, evaluation: Evaluation) -> None:
        """Refuse the base of a policy without adapters.

        Raises:
            ConfigError: It is asked for.
        """
        if self.config.reference == "base":
            setting = "method 'kl_to_previous': method_settings.reference"
            advice = "give the recipe a section lora, or choose 'previous_task'"
            require_base(policy, setting, advice)

    def param_groups(self, policy: Any, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Keep a copy of all that is trained in the stage, now that every method has said what."""
        if self.config.reference == "base":
            self._reference = reference_by(policy, policy.adapters.as_base)
        elif self._num_done:
            self._reference = as_it_is(policy)
        return groups

    def losses(self, policy: Any, batch: Batch, evaluation: Evaluation) -> dict[str, Tensor]:
        """Return the mean divergence times the coefficient."""
        if self._reference is None:
            return {}
        kl = evaluation.density.kl(self._reference(batch)).mean()
        return {"reference_kl": self.config.coefficient * kl}

    def after_task(self, policy: Any, stage: Stage) -> None:
        """Let go of the copy."""
        self._num_done += 1
        self._reference = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return how many stages are done; the copy is made anew of a stage's beginning."""
        return {"num_done": torch.tensor(self._num_done)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self._num_done = int(state["num_done"])
