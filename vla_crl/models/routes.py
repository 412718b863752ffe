"""Rules that say which adapters act, and all that a file tells of a policy's adapters."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from vla_crl.config import Names, Settings
from vla_crl.errors import ConfigError
from vla_crl.models.lora import AdapterLayout

Scale = Annotated[float, Interval(ge=-(2.0**16), le=2.0**16)]
Scales = dict[str, Scale]
"""Adapters that act, and what the update of each is multiplied by; none is the base policy."""


@dataclass(frozen=True, kw_only=True)
class FixedRoute(Settings):
    """The same adapters act in all tasks, those that were activated."""

    kind: Literal["fixed"] = "fixed"

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that it needs."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TaskRoute(Settings):
    """The task says which adapters act."""

    tasks: dict[str, Scales]
    """What acts, by the name of the task."""
    default: Scales | None = None
    """What acts in all other tasks, {} being the base policy. None: they are an error."""
    kind: Literal["task"] = "task"

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that it needs."""
        chosen = (*self.tasks.values(), self.default or {})
        return tuple(dict.fromkeys(name for scales in chosen for name in scales))

    def of(self, task: str) -> Scales:
        """Return what acts in a task.

        Raises:
            ConfigError: It is told for neither this task nor for others.
        """
        scales = self.tasks.get(task, self.default)
        if scales is None:
            raise ConfigError(
                f"the policy's adapters are chosen by task, and for '{task}' none is; expected one "
                f"of {', '.join(sorted(self.tasks)) or 'no task'}. Choose among these, or give the "
                "route a default: {} for the base policy, or the scales of some adapters"
            )
        return scales


@dataclass(frozen=True, kw_only=True)
class RouterRoute(Settings):
    """A module of the policy, trained and stored with it, weighs adapters by what each layer sees.

    See `vla_crl.models.router`.
    """

    router: str
    """Its name in `ROUTERS`, or package.module:Class."""
    names: Names
    """Adapters, in the order of its outputs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the router."""
    kind: Literal["router"] = "router"

    def __post_init__(self) -> None:
        """Check that every adapter is there once."""
        super().__post_init__()
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"router: names are {list(self.names)}, expected each once")


Route = FixedRoute | TaskRoute | RouterRoute


@dataclass(frozen=True, kw_only=True)
class BankRecord(Settings):
    """Adapters of a policy but for their numbers, as files tell it."""

    layouts: dict[str, AdapterLayout] = field(default_factory=dict)
    """By name."""
    acting: Scales = field(default_factory=dict)
    """What acts where the route does not choose."""
    route: Route = field(default_factory=FixedRoute)
    """What acts in which task."""

    @property
    def is_mergeable(self) -> bool:
        """Whether one sum of adapters acts as they do, always."""
        return isinstance(self.route, FixedRoute) and bool(self.acting)

    def __str__(self) -> str:
        """Say it in a few words."""
        told = (f"'{name}' of {layout}" for name, layout in self.layouts.items())
        return ", ".join(told) or "no adapters"
