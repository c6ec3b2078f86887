"""Times: one spelling, read back as written, and nothing else is taken for one."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystore.clock import parse_utc, seconds, utc_text

MOMENTS = st.datetimes(datetime(1000, 1, 1), datetime(2999, 12, 31))  # noqa: DTZ001


@given(MOMENTS)
def test_a_time_is_read_back_as_it_was_written(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    text = utc_text(moment.timestamp())
    assert parse_utc(text) == moment
    assert seconds(text) == moment.timestamp()


@given(MOMENTS, MOMENTS)
def test_text_order_is_time_order(one: datetime, two: datetime) -> None:
    a, b = (moment.replace(tzinfo=UTC, microsecond=0) for moment in (one, two))
    assert (utc_text(a.timestamp()) < utc_text(b.timestamp())) == (a < b)


@pytest.mark.parametrize(
    "text",
    ["", "2026-11-20", "2026-11-20T12:00:00", "2026-11-20 12:00:00Z", "2026-W01-1 10:00:00",
     "2026-13-01 00:00:00", "20261120 1200000000", "yesterday, at sunset"],
)  # fmt: skip
def test_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a time of the form|month must be"):
        parse_utc(text)
