"""What is left out of a recipe where another learner or method is chosen: settings of the first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vla_crl.config import to_mapping
from vla_crl.errors import ConfigError
from vla_crl.files.reading import shown
from vla_crl.flags import flag_value, unfinished

Key = tuple[str, ...]
"""A setting and the sections it stands in."""


@dataclass(frozen=True)
class Choice:
    """What a recipe names, and has settings of.

    Attributes:
        what: Is named.
        key: Under which it is.
        section: Where its settings stand, which are no settings of another one.
        default: What there is if none is named.
    """

    what: str
    key: Key
    section: str
    default: str

    def name(self, settings: Mapping[str, Any]) -> str | None:
        """Return what settings name, if they do."""
        value: Any = settings
        for part in self.key:
            value = cast(Mapping[str, Any], value).get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else None

    def flag(self, *key: str) -> str:
        """Return the flag of a setting in the section."""
        return "--" + ".".join([self.section, *key]).replace("_", "-")


LEARNER = Choice("learner", ("learner", "kind"), "learner", "ppo")
METHOD = Choice("method", ("method",), "method_settings", "sequential")
CHOICES = (LEARNER, METHOD)


@dataclass(frozen=True)
class LeftOut:
    """Settings of what another was chosen for.

    Attributes:
        choice: What was chosen otherwise.
        before: What the settings are of.
        now: What was chosen last.
        settings: Value of each, by its key in the section.
        where: Who chose it, for what is told.
    """

    choice: Choice
    before: str
    now: str
    settings: dict[Key, Any]
    where: str

    @property
    def keys(self) -> dict[Key, Any]:
        """The settings by their keys in the recipe."""
        return {(self.choice.section, *key): value for key, value in self.settings.items()}

    def told(self, said: Mapping[str, Any], overrides: Sequence[str]) -> str | None:
        """Return in a line what is not taken over, unless it would change nothing.

        Args:
            said: Settings of the section that are said of what was chosen.
            overrides: Flags that say more.
        """
        try:
            known = _defaults(self.choice, self.now)
        except ConfigError:
            return None  # told by whoever reads the settings
        given = {flag.partition("=")[0].replace("_", "-") for flag in overrides}
        given = {flag.replace(".no-", ".") for flag in given}
        left, flags = list[str](), list[str]()
        for key, value in self.settings.items():
            # Of a method that is composed with others, the settings have a section of its name.
            same = (k for k in (key, (self.before, *key), key[1:]) if k in known)
            if (now := next(same, None)) is not None:
                flag = self.choice.flag(*now)
                if known[now] == _plain(value) or now in dict(leaves(said)) or flag in given:
                    continue
                flags.append(flag)
            left.append(f"{'.'.join(key)} = {shown(value)}")
        if not left:
            return None
        verb = "are" if len(left) > 1 else "is"
        hint = f"; as flags: {_listed(flags)}" if flags else ""
        return (
            f"{self.where}: {self.choice.what} '{self.now}' in the place of '{self.before}': "
            f"{_listed(left)} {verb} not taken over{hint}"
        )


def lay_over(
    settings: Mapping[str, Any],
    content: Mapping[str, Any],
    left_out: Mapping[Choice, LeftOut],
    where: str,
) -> tuple[dict[str, Any], dict[Choice, LeftOut]]:
    """Lay settings over those of a recipe: what they say wins, sections are merged.

    Args:
        settings: Of the recipe.
        content: What is laid over them; where it chooses another learner or method, settings of
            the first are left out.
        left_out: What was left out of the settings before.
        where: Who says the content.

    Returns:
        The settings, and what was left out of them.
    """
    kept, left = dict(settings), dict(left_out)
    for choice in CHOICES:
        before, now = choice.name(settings) or choice.default, choice.name(content)
        if now in (None, before):
            continue
        section: Any = kept.pop(choice.section, None)
        own = dict(leaves(section)) if isinstance(section, dict) else {}
        own = {key: value for key, value in own.items() if (choice.section, *key) != choice.key}
        if own:
            left[choice] = LeftOut(choice, before, now, own, where)
        elif choice in left:
            left[choice] = replace(left[choice], now=now, where=where)
    return _merged(kept, content), left


def chosen_by_flags(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what flags choose, as a recipe says it."""
    content: dict[str, Any] = {}
    if kind := flag_value(LEARNER.flag("kind"), overrides):
        content["learner"] = {"kind": kind}
    if method := flag_value("--method", overrides):
        content["method"] = method
    return content


def leaves(settings: Mapping[str, Any], section: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield all settings with the sections they stand in."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(cast(dict[str, Any], value), (*section, key))
        else:
            yield (*section, key), value


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, sections merged; of other settings `own` wins."""
    sections = {
        key: _merged(base[key], value)
        for key, value in own.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **own, **sections}


def _defaults(choice: Choice, name: str) -> dict[Key, Any]:
    """Return the settings of what is chosen, as a recipe says them."""
    from vla_crl.algos.learners import find_learner
    from vla_crl.continual.known_methods import settings_class

    if choice is METHOD:
        own = settings_class(name, finished=False)
    else:
        own = unfinished(find_learner(name).config_class)
    return {key: _plain(value) for key, value in leaves(to_mapping(own()))}


def _plain(value: Any) -> Any:
    """Return a value as files have it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    return "None" if value is None else value


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
