"""Whether what a learner says and does is what an update can use; errors name learner and file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, cast

from torch import Tensor

from vla_crl.algos.protocols import Batch, ParamGroup
from vla_crl.algos.terms import Terms, faults_of_terms
from vla_crl.errors import SpecError, what_is
from vla_crl.own_code import defined_at


def fault_of(learner_class: type, config: Any, hook: str, told: str) -> SpecError:
    """Build the error on what a method of a learner has returned, to be raised by the caller.

    Args:
        learner_class: Whose method.
        config: The learner's settings.
        hook: Name of the method.
        told: What came, what was expected and what to do.
    """
    place = defined_at(getattr(learner_class, hook))
    of_place = f" ({place})" if place else ""
    return SpecError(f"learner '{config.kind}': {learner_class.__name__}.{hook}{of_place} {told}")


def checked_terms(
    learner_class: Any, config: Any, found: object, num_chunks: int, *, learns_policy: bool
) -> Terms:
    """Return what `Learner.terms` has returned.

    Raises:
        SpecError: It cannot be used, see `faults_of_terms`.
    """
    needs_value: bool = learner_class.needs_value
    for told in faults_of_terms(
        found, num_chunks, needs_value=needs_value, learns_policy=learns_policy
    ):
        raise fault_of(learner_class, config, "terms", told)
    return cast(Terms, found)


def checked_batches(learner_class: type, config: Any, found: object) -> Iterator[Batch]:
    """Yield what `Learner.minibatches` has returned.

    Raises:
        SpecError: It is no iterator of `Batch`.
    """
    wanted = "a Batch each, such as yield from data.minibatches(size, generator)"
    if not isinstance(found, Iterable):
        told = f"returned {what_is(found)}, expected an iterator: {wanted}"
        raise fault_of(learner_class, config, "minibatches", told)
    for batch in cast(Iterable[object], found):
        if not isinstance(batch, Batch):
            told = f"yields {what_is(batch)}, expected {wanted}"
            raise fault_of(learner_class, config, "minibatches", told)
        yield batch


def check_prepared(learner_class: Any, config: Any, found: object, data: Any) -> None:
    """Check what `Learner.prepare` has returned, and what it has made of a rollout.

    Raises:
        SpecError: It returned something, or advantages or returns have no longer their shape.
    """
    if found is not None:
        told = (
            f"returned {what_is(found)}, expected nothing: write into data.advantages and "
            "data.returns, as in data.advantages[:] = ..."
        )
        raise fault_of(learner_class, config, "prepare", told)
    for name in ("advantages", "returns") if learner_class.data == "rollout" else ():
        now, shape = getattr(data, name), data.rewards.shape
        if not isinstance(now, Tensor) or now.shape != shape:
            told = (
                f"leaves data.{name} as {what_is(now)}, expected a tensor of shape {list(shape)}: "
                f"slots beside one another; write into it, data.{name}[:] = ..."
            )
            raise fault_of(learner_class, config, "prepare", told)


def checked_summary(learner_class: type, config: Any, found: object) -> dict[str, float]:
    """Return what `Learner.summary` has returned.

    Raises:
        SpecError: It is no dictionary of numbers.
    """
    if not isinstance(found, Mapping):
        told = f"returned {what_is(found)}, expected a dictionary of numbers"
        raise fault_of(learner_class, config, "summary", told)
    for name, number in cast(Mapping[str, Any], found).items():
        if not isinstance(number, Real):
            told = f"has '{name}' that is {what_is(number)}, expected a number; of a tensor .item()"
            raise fault_of(learner_class, config, "summary", told)
    return {name: float(number) for name, number in cast(Mapping[str, Any], found).items()}


def group_size_of(learner_class: Any, config: Any) -> int:
    """Return how many episodes share a task and an initial state.

    Raises:
        SpecError: `Learner.group_size` is no whole number of at least 1.
    """
    found: object = learner_class.group_size(config)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        what = found if isinstance(found, int | float) else what_is(found)
        told = f"returned {what}, expected a whole number of at least 1; 1 is no groups"
        raise fault_of(learner_class, config, "group_size", told)
    return found


def groups_of(learner_class: Any, policy: Any, config: Any) -> Sequence[ParamGroup]:
    """Return what a learner trains, and how fast.

    Raises:
        SpecError: `Learner.param_groups` is no list of `ParamGroup`.
    """
    found: object = learner_class.param_groups(policy, config)
    if not isinstance(found, list | tuple):
        told = f"returned {what_is(found)}, expected a list of ParamGroup"
        raise fault_of(learner_class, config, "param_groups", told)
    for group in cast(Sequence[object], found):
        if not isinstance(group, ParamGroup):
            told = f"has {what_is(group)} in its list, expected ParamGroup(name, parameters, rate)"
            raise fault_of(learner_class, config, "param_groups", told)
    return cast(Sequence[ParamGroup], found)
