import dataclasses

import pytest

from vla_crl.catalog import list_suites
from vla_crl.errors import SpecError
from vla_crl.sim.suite import Suite, load_suite
from vla_crl.testing import check_suite


@pytest.mark.parametrize("name", list_suites())
def test_a_shipped_suite_is_ready(name: str):
    check_suite(load_suite(name), num_states=2)


def test_a_suite_that_its_expert_cannot_solve_is_refused():
    suite = load_suite("tabletop_object")
    hurried = Suite(suite.name, dataclasses.replace(suite.config, horizon=5), suite.model)
    with pytest.raises(SpecError, match="succeeds in 0 % of episodes, expected 95 %"):
        check_suite(hurried, num_states=1)
