"""Amounts: exact to the nano-credit, bounded, and read back as they were written."""

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystore import pricing
from keystore.pricing import Exact


@pytest.mark.parametrize(
    ("given", "times", "exact"),
    [
        ("1.5", 1, Exact(1_500_000_000, is_rounded=False)),
        (".000000001", 1, Exact(1, is_rounded=False)),
        ("0.00000000013", 1000, Exact(130, is_rounded=False)),
        ("0.0000000015", 1, Exact(2, is_rounded=True)),
        ("0.0000000025", 1, Exact(2, is_rounded=True)),
        ("-0", 1, Exact(0, is_rounded=False)),
        (7, 2, Exact(14_000_000_000, is_rounded=False)),
        (Decimal("1e-9"), 1, Exact(1, is_rounded=False)),
        ("4611686018.427387904", 1, Exact(2**62, is_rounded=False)),
        ("4611686018.4273879041", 1, Exact(2**62, is_rounded=True)),
        ("0." + "0" * 20 + "1", 1, Exact(0, is_rounded=True)),
        ("1." + "0" * 45 + "1", 1, Exact(pricing.NANO, is_rounded=True)),
    ],
)
def test_an_amount_is_read_to_the_nano_credit(
    given: str | int | Decimal, times: int, exact: Exact
) -> None:
    with decimal.localcontext() as context:
        context.prec = 3  # what the program around us has set is not asked
        assert pricing.parse(given, times=times) == exact


@pytest.mark.parametrize(
    "given",
    [
        *("", "x", "1e3", "1_000", "1.2.3", "+1", " 1", "٣", "NaN", "."),
        *("-1", "-0.000000001", -1, "4611686018.427387905", 2**62),
        *(Decimal("NaN"), Decimal("Infinity"), Decimal("sNaN"), Decimal("1e999999999")),
    ],
)
def test_what_is_no_amount_is_refused(given: str | int | Decimal) -> None:
    with pytest.raises(ValueError, match="credits"):
        pricing.parse(given)


@pytest.mark.parametrize(
    ("nano", "written"),
    [
        (1_500_000_000, "1.5"),
        (1, "0.000000001"),
        (-2_000_000_000, "-2"),
        (0, "0"),
        (-1, "-0.000000001"),
        (10_000_000_000, "10"),
    ],
)
def test_an_amount_is_written_with_no_digit_too_many(nano: int, written: str) -> None:
    assert pricing.text(nano) == written


@given(st.integers(0, pricing.MAX_NANO))
def test_an_amount_is_read_back_as_it_was_written(nano: int) -> None:
    assert pricing.parse(pricing.text(nano)) == Exact(nano, is_rounded=False)


@given(*[st.integers(0, 10**9)] * 4)
def test_a_part_of_a_nano_credit_is_charged_whole(a: int, b: int, c: int, d: int) -> None:
    exact = Fraction(a * c + b * d, 1000)
    assert 0 <= pricing.cost(a, b, c, d) - exact < 1


def test_a_credit_is_1e9_nano_credits_and_no_amount_is_above_2_to_the_62() -> None:
    assert (pricing.NANO, pricing.MAX_NANO) == (10**9, 2**62)
