"""Classes of one's own in the folders of VLA_CRL_PATH, told of without running them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_crl.algos.learners import LEARNERS, find_learner
from vla_crl.continual.known_methods import METHODS, find_method
from vla_crl.errors import ConfigError
from vla_crl.models.heads.head import HEADS, find_head

OWN = """
from vla_crl.algos.grpo import GRPO
from vla_crl.continual.methods.ewc import EWC as Base
from vla_crl.models.heads import gaussian

raise RuntimeError("is run")

class Weighted(GRPO): ...
class WeightedMore(Weighted): ...
class Anchored(Base): ...
class Careful(gaussian.GaussianHead): ...
"""


@pytest.mark.parametrize(
    ("find", "names", "own", "wrong"),
    [
        (find_learner, LEARNERS, ["mine:Weighted", "mine:WeightedMore"], "Weighted"),
        (find_method, METHODS, ["mine:Anchored"], "Anchored"),
        (find_head, HEADS, ["mine:Careful"], "careful"),
    ],
)
def test_a_name_that_is_unknown_is_told_with_ones_own(
    own_folder: Path, find: Callable[[str], Any], names: dict[str, str], own: list[str], wrong: str
) -> None:
    (own_folder / "mine.py").write_text(OWN)
    with pytest.raises(ConfigError) as error:
        find(wrong)
    told = str(error.value)
    assert f"Did you mean '{own[0]}'?" in told
    assert told.endswith(f"Known: {', '.join(sorted([*names, *own]))}.")
