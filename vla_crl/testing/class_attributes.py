"""What classes of the user's hold for all their objects, and whether it changes."""

from collections.abc import Iterable, Mapping, Set
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

MAX_DEPTH = 8
"""Of values within values that are looked at."""

Attributes = dict[str, Any]


def class_attributes(classes: Iterable[type]) -> Attributes:
    """Return copies of what user's classes and their bases hold, as "Class.name"."""
    return {
        f"{each.__name__}.{name}": _copy(value, MAX_DEPTH)
        for own in classes
        for each in own.__mro__
        if each.__module__.partition(".")[0] not in (_PACKAGE, "builtins", "abc", "typing")
        for name, value in vars(each).items()
        if not name.startswith(("__", "_abc_"))
    }


def changed_attribute(before: Attributes, now: Attributes) -> str | None:
    """Return the first that is another one now, as "Class.name"."""
    return next((key for key in now if key not in before or before[key] != now[key]), None)


def _copy(value: Any, depth: int) -> Any:
    """Return what can be compared, now and later, of a value and all that it holds."""
    if depth == 0:
        return None
    if isinstance(value, nn.Module):
        value = value.state_dict()
    elif not isinstance(value, _ALONE) and hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value).items()
        return [(_copy(key, depth - 1), _copy(each, depth - 1)) for key, each in entries]
    if isinstance(value, list | tuple):
        return [_copy(each, depth - 1) for each in cast(list[Any], value)]
    return _copy_alone(value)


def _copy_alone(value: Any) -> Any:
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return value.dtype, value.shape, numbers.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, Set):
        return sorted(map(repr, cast(Set[Any], value)))
    return id(value) if isinstance(value, _ALONE) else repr(value)


_ALONE = (type, FunctionType, classmethod, staticmethod, property, Tensor)
"""What is looked at as it is, whatever hangs on it."""
_PACKAGE = __name__.partition(".")[0]
