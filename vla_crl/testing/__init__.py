"""Checkers of the contracts, for what you write yourself, and worlds to test with."""

from vla_crl.testing.check_head import check_head
from vla_crl.testing.check_learner import check_learner
from vla_crl.testing.check_method import check_method
from vla_crl.testing.check_policy import check_policy
from vla_crl.testing.check_suite import check_suite
from vla_crl.testing.fake_worlds import FakeSuite, fake_suite
from vla_crl.testing.limited import Limited

__all__ = [
    "FakeSuite",
    "Limited",
    "check_head",
    "check_learner",
    "check_method",
    "check_policy",
    "check_suite",
    "fake_suite",
]
