"""Several methods as one: weights multiply, losses join, gradient transforms follow each other."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from vla_crl.algos.learner import Learner
from vla_crl.algos.protocols import ActorCritic, Batch, ParamGroup, Rollout
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.stream import TaskStream
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import join_states, part_of


class Composite(ContinualMethod):
    """Apply several methods in order; their losses, metrics and states are called "name/...".

    Attributes:
        methods: By name.
    """

    def __init__(self, methods: Mapping[str, ContinualMethod]) -> None:
        super().__init__(NoSettings())
        self.methods = dict(methods)

    @property
    def needs_observations(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether one of them does."""
        return any(method.needs_observations for method in self.methods.values())

    def stream(self, stream: TaskStream) -> TaskStream:
        """Let each change the stream of the one before."""
        for method in self.methods.values():
            stream = method.stream(stream)
        return stream

    def check(self, policy: ActorCritic, learner: Learner, evaluation: Evaluation) -> None:
        """Let each refuse what it cannot work with."""
        for method in self.methods.values():
            method.check(policy, learner, evaluation)

    def param_groups(self, policy: ActorCritic, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Let each change the groups of the one before.

        Raises:
            ConfigError: Two change the step size or the group of one parameter.
        """
        changed: dict[str, str] = {}
        for name, method in self.methods.items():
            before = dict(_places(groups))
            groups = method.param_groups(policy, groups)
            after = dict(_places(groups))
            _claim(changed, name, {p for p in before if before[p] != after.get(p)}, "param_groups")
        return groups

    def before_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Let each prepare.

        Raises:
            ConfigError: Two switch the training of one parameter on or off.
        """
        changed: dict[str, str] = {}
        for name, method in self.methods.items():
            before = {n: p.requires_grad for n, p in policy.named_parameters()}
            method.before_task(policy, _own(stage, name))
            switched = {n for n, p in policy.named_parameters() if before.get(n) != p.requires_grad}
            _claim(changed, name, switched, "before_task")

    def before_update(self, policy: ActorCritic, rollout: Rollout) -> None:
        """Let each look at the rollout."""
        for method in self.methods.values():
            method.before_update(policy, rollout)

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the product of their weights."""
        weights = super().sample_weights(batch, evaluation)
        for method in self.methods.values():
            weights = weights * method.sample_weights(batch, evaluation)
        return weights

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        """Return the terms of all."""
        own = {n: m.losses(policy, batch, evaluation) for n, m in self.methods.items()}
        return join_states(own)

    def transform_grads(self, policy: ActorCritic) -> None:
        """Let each change the gradients that the one before leaves."""
        for method in self.methods.values():
            method.transform_grads(policy)

    def after_step(self, policy: ActorCritic) -> None:
        """Let each look at the policy."""
        for method in self.methods.values():
            method.after_step(policy)

    def after_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Let each close the stage."""
        for name, method in self.methods.items():
            method.after_task(policy, _own(stage, name))

    def metrics(self) -> dict[str, float]:
        """Return the numbers of all."""
        return {
            f"{name}/{key}": number
            for name, method in self.methods.items()
            for key, number in method.metrics().items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of all."""
        return join_states({name: method.state_dict() for name, method in self.methods.items()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Give each its own."""
        for name, method in self.methods.items():
            method.load_state_dict(part_of(state, name))


def _own(stage: Stage, name: str) -> Stage:
    """Return the stage with a folder for one method."""
    return replace(stage, folder=stage.folder / name)


def _places(groups: list[ParamGroup]) -> Iterator[tuple[str, tuple[str, float]]]:
    for group in groups:
        for name in group.parameters:
            yield name, (group.name, group.learning_rate)


def _claim(changed: dict[str, str], method: str, parameters: set[str], hook: str) -> None:
    """Note that a method has changed parameters, which no other may have."""
    for parameter in sorted(parameters):
        if (other := changed.setdefault(parameter, method)) != method:
            raise ConfigError(
                f"method '{method}': {hook} changes '{parameter}', which '{other}' has changed "
                f"already ({len(parameters)} parameters in all); both cannot have it: compose "
                "methods that train different parameters, or one of these alone"
            )
