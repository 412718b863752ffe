"""The extras of a simulation, and what is said where one is missing."""

from types import SimpleNamespace
from typing import Any

import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.simulation import (
    Filmed,
    Grounded,
    MujocoScenes,
    Resumable,
    Simulation,
    require,
)

EXTRAS = (Grounded, Filmed, MujocoScenes, Resumable)


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.__name__)
def test_the_native_worlds_have_every_extra(new_sim, extra):
    sim = new_sim(1)
    assert isinstance(sim, Simulation)
    assert require(sim, extra, "looked at") is sim


def test_a_missing_extra_names_suite_backend_and_members(suite: Suite):
    sim: Any = SimpleNamespace(suite=suite, get_states=dict)
    with pytest.raises(
        ConfigError,
        match="suite 'tabletop_object' cannot be resumed: its backend 'native' lacks set_states "
        r"\(Resumable of",
    ):
        require(sim, Resumable, "resumed")
