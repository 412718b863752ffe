"""Which learning rules there are: by name, or anybody's own by "package.module:Class"."""

from typing import cast

from vla_crl.algos.learner import Learner, LearnerConfig
from vla_crl.catalog import load_attribute
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.hooks import require_hooks
from vla_crl.own_classes import all_names

LEARNERS = {
    "ppo": "vla_crl.algos.ppo:PPO",
    "grpo": "vla_crl.algos.grpo:GRPO",
    "gspo": "vla_crl.algos.gspo:GSPO",
    "reinforce": "vla_crl.algos.reinforce:REINFORCE",
    "sft": "vla_crl.algos.sft:SFT",
    "cloning": "vla_crl.algos.cloning:Cloning",
    "distillation": "vla_crl.algos.distillation:Distillation",
}
"""Known learners by name, as "module:Attribute", imported on use."""


def find_learner(name: str) -> type[Learner]:
    """Return a learner by its name in `LEARNERS`, or any other by "package.module:Attribute".

    Raises:
        ConfigError: There is no such learner, or its module fails.
    """
    if name not in LEARNERS and ":" not in name:
        raise unknown_name("learner", "learner", name, all_names(LEARNERS, Learner.__name__))
    found = load_attribute(LEARNERS.get(name, name), "learner", fits=_is_learner)
    return require_learner(found, name)


def require_learner(found: object, name: str) -> type[Learner]:
    """Return what was found, if it is a learner.

    Args:
        found: Whatever a name has led to.
        name: For errors.

    Raises:
        ConfigError: It is none, does not say what its settings are, or something that it may
            replace takes other arguments or is misspelt.
    """
    if not _is_learner(found):
        raise ConfigError(
            f"learner '{name}': is not a subclass of Learner that can be built; derive from "
            "vla_crl.algos.learner.Learner or one of the package's, and write terms(batch, "
            "evaluation)"
        )
    learner_class = cast(type[Learner], found)
    config_class = getattr(learner_class, "config_class", None)
    if not (
        isinstance(config_class, type)
        and issubclass(config_class, LearnerConfig)
        and "__dataclass_fields__" in vars(config_class)
    ):
        raise ConfigError(
            f"learner '{name}': config_class is {config_class!r}, expected a frozen dataclass "
            "that derives from LearnerConfig"
        )
    require_hooks(
        learner_class, Learner, f"learner '{name}'", "an update", not_hooks=("update", "loss")
    )
    return learner_class


def _is_learner(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Learner)
        and not getattr(value, "__abstractmethods__", None)
    )
