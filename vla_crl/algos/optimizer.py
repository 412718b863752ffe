"""Adam over groups of parameters; policy and value head have a gradient limit each."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from vla_crl.algos.protocols import ParamGroup
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.state_dicts import require_like

ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


class GroupedAdam:
    """Steps all groups together.

    Policy and value head have their own gradient norm limit: under insulation they share no
    parameter, and in a joint norm the large value errors of a new task would only shrink the
    policy's step.

    Attributes:
        policy: The trained parameters by name, without those of the value head.
        value: Those of the value head.
    """

    def __init__(
        self,
        groups: Sequence[ParamGroup],
        value_head: Collection[nn.Parameter],
        *,
        max_grad_norm: float,
        where: str,
    ) -> None:
        """Begin without moments.

        Args:
            groups: What is trained.
            value_head: All parameters of the value head, trained or not.
            max_grad_norm: Limit of each of the two norms.
            where: Whose it is, for errors.

        Raises:
            ConfigError: A parameter is in two groups, or frozen.
        """
        self.policy: dict[str, nn.Parameter] = {}
        self.value: dict[str, nn.Parameter] = {}
        self._where, self._max_grad_norm = where, max_grad_norm
        for group in groups:
            for name, parameter in group.parameters.items():
                if name in self.parameters or not parameter.requires_grad:
                    fault = "is in two of them" if name in self.parameters else "is frozen"
                    raise ConfigError(
                        f"{where}: of the groups of parameters, '{group.name}' holds '{name}', "
                        f"which {fault}; expected each trainable one in a single group"
                    )
                (self.value if parameter in value_head else self.policy)[name] = parameter
        self._order = [name for group in groups for name in group.parameters]
        self._adam = torch.optim.Adam(
            [{"params": [*g.parameters.values()], "lr": g.learning_rate} for g in groups],
            fused=True,  # one call for all of them: many small ones take a tenth of an update
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained."""
        return self.policy | self.value

    @property
    def has_trained_policy(self) -> bool:
        """Whether a step has reached a parameter that is not the value head's."""
        return any(parameter in self._adam.state for parameter in self.policy.values())

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._adam.zero_grad()

    def clip(self) -> dict[str, Tensor]:
        """Limit the gradients and return their norms before that."""
        return {
            "grad_norm": clip_grad_norm_(self.policy.values(), self._max_grad_norm),
            "value_grad_norm": clip_grad_norm_(self.value.values(), self._max_grad_norm),
        }

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self._adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return per trained parameter "exp_avg/<name>", "exp_avg_sq/<name>" and "step/<name>".

        Learning rates are not in it: they come from the settings.
        """
        state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            moments = self._adam.state.get(parameter, {})
            state |= {f"{kind}/{name}": moment.clone() for kind, moment in moments.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: It does not belong to the parameters trained here.
            SpecError: A tensor of it is of another shape or type, or not finite.
        """
        where, scalar = f"{self._where} state", torch.zeros(())
        own = {
            f"{kind}/{name}": scalar if kind == "step" else parameter
            for name, parameter in self.parameters.items()
            for kind in ADAM_STATE
        }
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if key not in own:
                raise CheckpointError(f"{where}: '{key}' belongs to no parameter trained here")
            require_like({key: tensor}, {key: own[key]}, where)
            moments[name][kind] = tensor.clone()
        complete = {f"{kind}/{name}" for name in moments for kind in ADAM_STATE}
        if missing := complete - set(state):
            raise CheckpointError(f"{where}: '{min(missing)}' is missing; it is not complete")
        index = {name: i for i, name in enumerate(self._order)}
        self._adam.load_state_dict(
            {
                "state": {index[name]: kinds for name, kinds in moments.items()},
                "param_groups": self._adam.state_dict()["param_groups"],
            }
        )
