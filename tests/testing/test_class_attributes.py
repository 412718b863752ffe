"""What all objects of a class share is seen to change, whatever it is made of."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vla_crl.testing.class_attributes import changed_attribute, class_attributes


class Holder:
    def __init__(self) -> None:
        self.inner = [np.zeros(2)]


def make_shared() -> type:
    class Base:
        table: Any = {"a": [1, {"b": torch.zeros(2)}]}  # noqa: RUF012
        undefined = float("nan")
        half = torch.full((2,), torch.nan, dtype=torch.bfloat16)

    class Shared(Base):
        draws = torch.Generator()
        rng = np.random.default_rng(0)
        names: Any = {"x"}  # noqa: RUF012
        last: Any = deque([1], maxlen=3)  # noqa: RUF012
        net = torch.nn.Linear(1, 1)
        held = Holder()
        count = 0

        def function(self) -> None: ...

        @property
        def known(self) -> int:
            return 3

    return Shared


CHANGES: dict[str, Callable[[Any], object]] = {
    "Base.table": lambda own: own.table["a"][1]["b"].add_(1.0),
    "Base.half": lambda own: own.half.zero_(),
    "Shared.draws": lambda own: torch.rand(1, generator=own.draws),
    "Shared.rng": lambda own: own.rng.random(),
    "Shared.names": lambda own: own.names.add("y"),
    "Shared.last": lambda own: own.last.append(2),
    "Shared.net": lambda own: torch.nn.init.zeros_(own.net.weight),
    "Shared.held": lambda own: own.held.inner[0].fill(1.0),
    "Shared.count": lambda own: setattr(own, "count", 1),
    "Shared.added": lambda own: setattr(own, "added", []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_nothing_else(name: str):
    shared = make_shared()
    before = class_attributes([shared])
    assert changed_attribute(before, class_attributes([shared])) is None
    CHANGES[name](shared)
    assert changed_attribute(before, class_attributes([shared])) == name
