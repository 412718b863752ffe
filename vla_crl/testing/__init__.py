"""Checkers of the contracts, for suites and policies of your own."""

from vla_crl.testing.check_policy import check_policy
from vla_crl.testing.check_suite import check_suite

__all__ = ["check_policy", "check_suite"]
