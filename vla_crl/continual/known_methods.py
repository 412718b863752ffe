"""Methods by name, one or several composed: what there are and what settings they take."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, cast

from vla_crl.catalog import load_attribute
from vla_crl.config import from_mapping
from vla_crl.continual.composite import Composite
from vla_crl.continual.method import ContinualMethod
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.flags import unfinished
from vla_crl.hooks import require_hooks
from vla_crl.own_classes import all_names, own_classes

METHODS = {
    "ewc": "vla_crl.continual.methods.ewc:EWC",
    "kl_to_previous": "vla_crl.continual.methods.kl_to_previous:KLToPrevious",
    "multitask": "vla_crl.continual.methods.multitask:Multitask",
    "own_replay": "vla_crl.continual.methods.own_replay:OwnReplay",
    "sequential": "vla_crl.continual.methods.sequential:SequentialFineTuning",
    "task_adapters": "vla_crl.continual.methods.task_adapters:TaskAdapters",
}
"""Known methods by name, as "module:Attribute", imported on use."""


def find_method(name: str) -> type[ContinualMethod]:
    """Return one method by its name in `METHODS`, or any other by "package.module:Attribute".

    Raises:
        ConfigError: There is no such method, its module fails, or a hook is misspelt or takes other
            arguments.
    """
    if name not in METHODS and ":" not in name:
        raise unknown_name("method", "method", name, all_names(METHODS, _BASE))
    found = load_attribute(METHODS.get(name, name), "method", fits=_is_method)
    if not _is_method(found):
        raise ConfigError(f"method '{name}': is not a subclass of ContinualMethod")
    method_class = cast(type[ContinualMethod], found)
    if not dataclasses.is_dataclass(method_class.config_class):
        raise ConfigError(
            f"method '{name}': config_class is {method_class.config_class!r}, expected a dataclass"
        )
    require_hooks(method_class, ContinualMethod, f"method '{name}'", "the training loop")
    return method_class


def find_methods(name: str) -> dict[str, type[ContinualMethod]]:
    """Return one method, or those that "one+other" composes, in order.

    Returns:
        The classes by what their settings, losses and states are called: the name, of a
        "module:Class" the class alone.

    Raises:
        ConfigError: As of `find_method`; one is named twice, or two have one name or add adapters.
    """
    found: dict[str, type[ContinualMethod]] = {}
    parts: list[str] = []
    for part in name.split("+"):
        if not part:
            raise ConfigError(f"method '{name}': expected names with a + between them")
        label = part.rpartition(":")[2]
        if part in parts:
            raise ConfigError(f"method '{name}': '{part}' is composed twice; name it once")
        if label in found:
            raise ConfigError(
                f"method '{name}': two classes are called '{label}', which is what settings and "
                "losses of each would be called; rename one of them"
            )
        parts.append(part)
        found[label] = find_method(part)
    owners = [label for label, method_class in found.items() if method_class.owns_adapters]
    if len(owners) > 1:
        raise ConfigError(
            f"method '{name}': '{owners[0]}' and '{owners[1]}' both say which adapters there are "
            "and which act; compose one of them with others"
        )
    return found


def settings_class(name: str, *, finished: bool = True) -> type[Any]:
    """Return the dataclass of the settings of a method.

    Args:
        name: Of one method or several; of several there is a section for each.
        finished: False for one that asks for no setting and checks none.

    Raises:
        ConfigError: As of `find_methods`.
    """
    classes = {label: method.config_class for label, method in find_methods(name).items()}
    if not finished:
        classes = {label: unfinished(own) for label, own in classes.items()}
    if len(classes) == 1:
        return next(iter(classes.values()))
    sections = [(label, own, _default_of(own)) for label, own in classes.items()]
    return dataclasses.make_dataclass("MethodSettings", sections, frozen=True, kw_only=True)


def make_method(name: str, settings: Mapping[str, Any]) -> ContinualMethod:
    """Build a method, or several composed.

    Args:
        name: As of `find_methods`.
        settings: Fields of the method's `config_class`; of several a mapping for each.

    Raises:
        ConfigError: No such method, settings that it does not have, or one makes the other nothing.
    """
    classes = find_methods(name)
    config = from_mapping(settings_class(name), settings, f"method '{name}'")
    if len(classes) == 1:
        return next(iter(classes.values()))(config)
    methods = {label: own(getattr(config, label)) for label, own in classes.items()}
    _require_composable(methods, name)
    return Composite(methods)


def list_methods() -> list[dict[str, Any]]:
    """Return what there is to know of all methods: of the package's, then of the user's own.

    Returns:
        Rows of name, description, paper, stores, needs_task_id and file.
    """
    rows: list[dict[str, Any]] = []
    for name in sorted(METHODS):
        method_class = find_method(name)
        rows.append(
            {
                "name": name,
                "description": (method_class.__doc__ or "").partition("\n")[0],
                "paper": method_class.paper,
                "stores": method_class.stores,
                "needs_task_id": method_class.needs_task_id,
                "file": str(sys.modules[method_class.__module__].__file__),
            }
        )
    own, broken = own_classes(METHODS, _BASE)
    rows += [
        {
            "name": name,
            "description": method.description,
            **{key: method.told.get(key, getattr(ContinualMethod, key)) for key in _TOLD},
            "file": str(method.file),
        }
        for name, method in own.items()
    ]
    unknown = dict.fromkeys(_TOLD)
    rows += [
        {"name": file.stem, "description": f"cannot be read: {why}", **unknown, "file": str(file)}
        for file, why in broken.items()
    ]
    return rows


_BASE = ContinualMethod.__name__


def _require_composable(methods: Mapping[str, ContinualMethod], name: str) -> None:
    """Refuse methods of which one holds what the other keeps apart."""
    holding = [label for label, method in methods.items() if method.needs_shared_parameters]
    isolating = [label for label, method in methods.items() if method.isolates_tasks]
    if holding and isolating:
        raise ConfigError(
            f"method '{name}': '{holding[0]}' holds something of earlier tasks in the weights that "
            f"the present task trains, but those of '{isolating[0]}' act in no other task, so that "
            "nothing would come of it; name one of them alone"
        )


_TOLD = ("paper", "stores", "needs_task_id")


def _default_of(config_class: type[Any]) -> Any:
    """Return the default of a section: its settings, unless there is one that has to be named."""
    if any(
        field.default is field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(config_class)
    ):
        return dataclasses.field()
    return dataclasses.field(default_factory=config_class)


def _is_method(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, ContinualMethod)
        and value is not ContinualMethod
    )
