"""How numbers are rounded where people read them."""

from decimal import ROUND_HALF_UP, Decimal


def rounded(number: float, digits: int = 0) -> str:
    """Write a number with so many decimals, halves away from zero: 12.5 as "13", 0.25 as "0.3".

    Formats of Python round halves to the even digit and see 28.4999... where a fraction says 28.5,
    so that pages which count the same episodes would differ.
    """
    exact = Decimal(repr(round(float(number), 9)))
    return str(exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def percentage(fraction: float, digits: int = 0) -> str:
    """Write a fraction in percent, without the sign: 0.125 as "13"."""
    return rounded(100 * fraction, digits)
