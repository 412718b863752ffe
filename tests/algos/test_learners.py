from pathlib import Path

import pytest

from vla_crl.algos.learner import LearnerConfig
from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.config import from_mapping, to_mapping
from vla_crl.continual.recipe import TrainConfig
from vla_crl.errors import ConfigError
from vla_crl.flags import override

OWN = '''
from dataclasses import dataclass
from vla_crl.algos.learner import Learner, LearnerConfig, Terms


@dataclass(frozen=True, kw_only=True)
class MineConfig(LearnerConfig):
    strength: float = 2.0
    """How strongly."""


class Mine(Learner):
    """Mine."""

    config_class = MineConfig

    def terms(self, batch, evaluation):
        return Terms(-self.config.strength * evaluation.density.log_prob().sum(dim=1))


class Unfinished(Learner):
    config_class = MineConfig


class WithoutSettings(Mine):
    config_class = dict


class Undecorated(Mine):
    class config_class(LearnerConfig): ...
'''


@pytest.mark.parametrize("name", LEARNERS)
def test_every_listed_learner_has_its_name_as_the_kind_of_its_settings(name: str):
    config_class = find_learner(name).config_class
    (kind,) = [f for f in config_class.__dataclass_fields__.values() if f.name == "kind"]
    assert kind.default == name


def test_a_recipe_chooses_a_learner_of_ones_own(own_folder: Path):
    (own_folder / "my_learners.py").write_text(OWN)
    recipe = {"suite": "s", "policy": "p", "episodes_per_task": 1}
    table = {"kind": "my_learners:Mine", "strength": 3.0, "learning_rate": 0.1}
    config = from_mapping(TrainConfig, recipe | {"learner": table}, "f")
    assert type(config.learner).__name__ == "MineConfig"
    assert from_mapping(TrainConfig, to_mapping(config), "f") == config
    flags = ["--learner.kind", "my_learners:Mine", "--learner.strength", "4"]
    chosen = override(from_mapping(TrainConfig, recipe, "f"), flags, "prog")
    assert to_mapping(chosen.learner)["strength"] == 4.0
    plain = override(config, ["--learner.kind", "grpo", "--learner.group-size", "4"], "prog")
    assert to_mapping(plain.learner)["group_size"] == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grop", "learner: unknown learner 'grop'. Did you mean 'grpo'"),
        ("my_learners:Mime", "learner: unknown name in my_learners 'Mime'. Did you mean 'Mine'"),
        ("my_learners:Unfinished", "'my_learners:Unfinished': is not a subclass of Learner that c"),
        ("my_learners:MineConfig", "'my_learners:MineConfig': is not a subclass of Learner that"),
        ("my_learners:WithoutSettings", "config_class is <class 'dict'>, expected a frozen datacl"),
        ("my_learners:Undecorated", "config_class is .*, expected a frozen dataclass that derives"),
        ("no_such:Learner", "learner: 'no_such:Learner': there is no module 'no_such'"),
    ],
)
def test_what_is_no_learner_is_told(own_folder: Path, name: str, message: str):
    (own_folder / "my_learners.py").write_text(OWN)
    with pytest.raises(ConfigError, match=message):
        find_learner(name)


def test_learners_have_the_settings_that_all_have():
    assert all(issubclass(find_learner(name).config_class, LearnerConfig) for name in LEARNERS)
