"""Money in nano-credits, a credit's 1e-9, as integers. Never a float.

A price is for 1,000 tokens: real price lists go down to 1.3e-10 for a single token, and 1,000 of
these are a whole number of nano-credits.
"""

import re
from decimal import Decimal, localcontext
from typing import NamedTuple

NANO = 1_000_000_000
"""Nano-credits in a credit."""
MAX_NANO = 2**62
"""No amount is larger, so that every sum of two fits into 64 bits."""

_PLAIN = re.compile(r"-?(\d+\.?\d*|\.\d+)", re.ASCII)
"""How people write amounts: of 1e3 and 1_000 nobody knows that they were meant."""


class Exact(NamedTuple):
    """An amount in nano-credits; ``is_rounded``: it was read from a number with more digits."""

    nano: int
    is_rounded: bool


def parse(text: str | int | Decimal, *, times: int = 1) -> Exact:
    """Read a number of credits, ``times`` as many, to the nearest nano-credit (half to even).

    Text is digits with at most one point.

    Raises:
        ValueError: it is no number, negative, or too large.
    """
    if isinstance(text, str) and not _PLAIN.fullmatch(text):
        msg = f"{text!r} is no number of credits"
        raise ValueError(msg)
    try:
        with localcontext() as context:
            context.prec = 60
            exact = Decimal(text) * times * NANO
            nano = exact.to_integral_value()
    except ArithmeticError:  # no number, or one with an exponent beyond reason
        msg = f"{text!r} is no number of credits"
        raise ValueError(msg) from None
    if not exact.is_finite() or not 0 <= nano <= MAX_NANO:
        msg = f"{text} is not between 0 and {MAX_NANO // NANO} credits"
        raise ValueError(msg)
    return Exact(int(nano), nano != exact)


def text(nano: int) -> str:
    """Write nano-credits as credits, with no digit too many: ``1.5``, ``0.000000001``, ``-2``."""
    sign, whole, part = "-" * (nano < 0), *divmod(abs(nano), NANO)
    return f"{sign}{whole}" + (f".{part:09}".rstrip("0") if part else "")


def cost(input_tokens: int, output_tokens: int, input_per_1k: int, output_per_1k: int) -> int:
    """Return what tokens cost, in nano-credits, rounded up once: a part of one is charged whole."""
    return -(-(input_tokens * input_per_1k + output_tokens * output_per_1k) // 1000)
