"""Whether a class of the user's own has the hooks of its base, as they are called and named."""

import difflib
import inspect
from collections.abc import Collection, Iterator
from typing import Any, cast

from vla_crl.errors import ConfigError
from vla_crl.own_code import defined_at

NEAR = 0.8
"""How alike two names are of which one is taken for the other misspelt."""


def require_hooks(
    own: type, base: type, where: str, caller: str, *, not_hooks: Collection[str] = ()
) -> None:
    """Check, before anything is computed, that all hooks can be called, and none is misspelt.

    Args:
        own: Derives from the base.
        base: The package's, whose public functions are the hooks; __init__ is looked at as well.
        where: What errors call it, e.g. "method 'mine:Anchor'".
        caller: What calls the hooks, e.g. "the training loop".
        not_hooks: Functions of the base that nobody means to replace.

    Raises:
        ConfigError: A hook takes other arguments, or a function has nearly the name of a hook that
            is not there.
    """
    hooks = {name: hook for name, hook in _functions(base) if name not in not_hooks}
    for name, hook in hooks.items():
        _require_signature(own, name, hook, where, caller)
    missing = [name for name in hooks if getattr(own, name) is getattr(base, name)]
    for name, function in _own_functions(own):
        if nearest := difflib.get_close_matches(name, missing, n=1, cutoff=NEAR):
            raise ConfigError(
                f"{where}: {name}{_at(function)} is called by nobody. Did you mean '{nearest[0]}'? "
                "If not, choose a name less like it, or begin it with _"
            )


def _functions(of: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(of).items():
        is_public = name == "__init__" or not name.startswith("_")
        if is_public and isinstance(value, staticmethod | classmethod | _FUNCTION):
            yield name, value


def _own_functions(own: type) -> Iterator[tuple[str, Any]]:
    """Yield the public functions that the user's own classes have and none of the package's."""
    ours = [each for each in own.__mro__ if each.__module__.partition(".")[0] == _PACKAGE]
    for each in own.__mro__:
        if each not in ours and each is not object:
            for name, _ in _functions(each):
                if not any(name in vars(one) for one in ours):
                    yield name, getattr(own, name)


def _require_signature(own: type, name: str, hook: Any, where: str, caller: str) -> None:
    found: Any = inspect.getattr_static(own, name)
    if found is hook:
        return
    of_class = isinstance(hook, classmethod)
    base = cast(Any, hook).__func__ if of_class else hook
    wanted = [*inspect.signature(base).parameters.values()]
    own_value = getattr(own, name)
    # A static or class method does not get the object itself, and a class gets nothing of it.
    is_bound = inspect.isfunction(found) and not of_class
    given = wanted[0 if is_bound else 1 :]
    named = {each.name: None for each in given if each.kind is each.KEYWORD_ONLY}
    told = inspect.signature(own_value) if callable(own_value) else f" = {own_value!r}"
    try:
        inspect.signature(own_value).bind(*given[: len(given) - len(named)], **named)
    except TypeError as error:
        plain = [each.replace(annotation=each.empty, default=each.empty) for each in wanted]
        decorated = "@classmethod " if of_class else ""
        raise ConfigError(
            f"{where}: {name}{told}{_at(own_value)} cannot be called as {caller} does, expected "
            f"{decorated}{name}{inspect.Signature(plain)}"
        ) from error


def _at(function: object) -> str:
    place = defined_at(function)
    return f" ({place})" if place else ""


_FUNCTION = type(_at)
_PACKAGE = __name__.partition(".")[0]
