from decimal import Decimal

import pytest

from vla_crl.rounding import percentage, rounded


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (12.5, 0, "13"),  # to the even digit it would be 12
        (13.5, 0, "14"),
        (-12.5, 0, "-13"),
        (0.25, 1, "0.3"),
        (100 * 0.285, 0, "29"),  # 28.499999999999996 in binary
        (1.005 * 100, 0, "101"),  # 100.49999999999999 in binary
        (99.4, 0, "99"),
        (1e-13, 1, "0.0"),
    ],
)
def test_halves_are_rounded_away_from_zero(number: float, digits: int, text: str) -> None:
    assert rounded(number, digits) == text


def test_every_part_of_two_hundred_rounds_as_its_fraction_does() -> None:
    for successes in range(201):
        halves = Decimal(successes) / 2  # percent, exactly
        assert percentage(successes / 200) == str(int(halves + Decimal("0.5")))
