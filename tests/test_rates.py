"""Rates: what GCRA leaves is what a bucket that fills drop by drop would leave, to the check."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from mmap import mmap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystore import Reason, Store, Validator
from keystore.edge import rates as rates_module
from keystore.edge.decision import Rate, RateLimit
from keystore.edge.rates import LocalRates, Rates
from keystore.edge.shared_rates import SIZE, SharedRates, anonymous_file

NewRates = Callable[[], Rates]
NEAR = Fraction(1, 100_000)
"""Closer to a whole check than this, either answer is right: times are floats."""


@pytest.fixture(params=["local", "shared"])
def new_rates(request: pytest.FixtureRequest) -> Iterator[NewRates]:
    descriptors: list[int] = []

    def make() -> Rates:
        if request.param == "local":
            return LocalRates()
        descriptors.append(anonymous_file(SIZE))
        return SharedRates(descriptors[-1], mmap(descriptors[-1], SIZE))

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


class Bucket:
    """Holds so many checks, exactly."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.level = Fraction(rate.burst)

    @property
    def per_second(self) -> Fraction:
        return Fraction(self.rate.limit, self.rate.window_seconds)

    def go(self, seconds: Fraction) -> None:
        self.level = min(Fraction(self.rate.burst), self.level + seconds * self.per_second)

    def agrees(self, left: RateLimit, *, takes: bool) -> None:
        """Compare an answer with what is in the bucket, and take one if it says so."""
        passes = not left.retry_after
        if abs(self.level - 1) > NEAR:
            assert passes == (self.level > 1)
        if not passes:
            assert left.remaining == 0
            wait = (1 - self.level) / self.per_second
            assert left.retry_after == pytest.approx(float(wait), rel=1e-3, abs=1e-5)
        elif takes:
            self.level -= 1
        if passes:
            whole = round(self.level)
            if abs(self.level - whole) > NEAR:
                assert left.remaining == int(self.level)
            else:
                assert left.remaining in {whole, whole - 1}
        missing = (self.rate.burst - self.level) / self.per_second
        assert left.reset_seconds == pytest.approx(float(missing), rel=1e-3, abs=1e-3)


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "take", "look"]), st.integers(0, 3000)), max_size=60
)


@given(limit=st.integers(1, 500), window=st.integers(1, 90), burst=st.integers(1, 40), steps=STEPS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_that_of_a_bucket(
    new_rates: NewRates, limit: int, window: int, burst: int, steps: list[tuple[str, int]]
) -> None:
    rate = Rate(limit, window, burst)
    rates, bucket, now = new_rates(), Bucket(rate), Fraction(1_000_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(now))
        for kind, milliseconds in steps:
            passed = Fraction(milliseconds, 1000)
            now += passed
            bucket.go(passed)
            left = (rates.take if kind == "take" else rates.look)(7, rate)
            bucket.agrees(left, takes=kind == "take")


def test_no_check_of_a_burst_is_lost_to_rounding(new_rates: NewRates) -> None:
    for limit, window, burst in (
        (3, 1, 3),
        (7, 60, 7),
        (1000, 60, 1000),
        (3, 10, 1000),
        (1, 86400, 1),
    ):
        rates, rate = new_rates(), Rate(limit, window, burst)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: 12345.678)
            left = [rates.take(1, rate) for _ in range(burst + 1)]
        assert [item.remaining for item in left[:-1]] == list(range(burst))[::-1]
        assert left[-1].retry_after > 0


def test_many_threads_take_no_more_than_there_is(new_rates: NewRates) -> None:
    rates, rate = new_rates(), Rate(1, 86_400, 500)

    def work(_: int) -> int:
        return sum(not rates.take(3, rate).retry_after for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 500


def test_keys_do_not_share_a_rate_and_forgotten_keys_begin_anew(new_rates: NewRates) -> None:
    rates, rate = new_rates(), Rate(1, 3600, 1)
    rates.clear("first")
    assert [rates.take(key, rate).retry_after > 0 for key in (1, 2, 1, 2)] == [0, 0, 1, 1]
    rates.clear("second")
    assert not rates.take(1, rate).retry_after


def test_keys_whose_burst_is_whole_are_dropped_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates_module, "MOST_KEYS", 100)
    rates, now = LocalRates(), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    slow, fast = Rate(1, 3600, 1), Rate(1, 1, 1)
    for key in range(50):
        rates.take(key, slow)
    for key in range(1000, 6000):
        now += 0.1
        rates.take(key, fast)
        assert len(rates._times) <= 201
    assert all(rates.take(key, slow).retry_after for key in range(50))


def test_many_keys_that_are_kept_are_seldom_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates_module, "MOST_KEYS", 100)
    rates, looks = LocalRates(), 0
    drop_whole = rates._drop_whole

    def look(now: float) -> None:
        nonlocal looks
        looks += 1
        drop_whole(now)

    monkeypatch.setattr(rates, "_drop_whole", look)
    for key in range(1000):
        rates.take(key, Rate(1, 3600, 1))
    assert looks < 10  # twice as many keys, one look more


@pytest.fixture
def rated(store: Store) -> str:
    """The token of a key that may pass 5 times at once, and then once in an hour."""
    store.add_plan("rated", rate_limit=1, rate_window_seconds=3600, rate_burst=5)
    store.add_account("bob@example.org", plan="rated")
    return store.issue_key("bob@example.org").token


def test_a_check_that_only_asks_takes_nothing_and_one_that_is_refused_counts_nothing(
    store: Store, rated: str
) -> None:
    with Validator(store.file.path) as validator:
        for left in range(5, 0, -1):
            for _ in range(3):
                asked = validator.check(rated, cost=0).rate
                assert asked is not None
                assert asked.remaining == left
            assert validator.check(rated, cost=7).allowed
        for cost in (1, 0, 3):
            decision = validator.check(rated, cost=cost)
            assert decision.reason is Reason.RATE_LIMITED
            assert decision.rate is not None
            assert 3590 < decision.rate.retry_after <= 3600
    assert store.status().usage_total == 35


def test_a_refused_check_takes_nothing_of_the_rate(store: Store, rated: str) -> None:
    with Validator(store.file.path) as validator:
        for _ in range(20):
            assert validator.check(rated, service="none").reason is Reason.SERVICE
        assert [validator.check(rated).allowed for _ in range(6)] == [True] * 5 + [False]


def test_eight_threads_never_pass_more_than_the_burst(store: Store, rated: str) -> None:
    start = threading.Barrier(8)

    def work(_: int) -> int:
        start.wait()
        return sum(validator.check(rated).allowed for _ in range(50))

    with Validator(store.file.path) as validator, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 5
    assert store.status().usage_total == 5


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_is_set_changes_nothing(
    store: Store, rated: str, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    really = time.time
    with Validator(store.file.path) as validator:
        assert all(validator.check(rated).allowed for _ in range(3))
        monkeypatch.setattr(time, "time", lambda: really() + step)
        assert [validator.check(rated).allowed for _ in range(4)] == [True, True, False, False]


def test_a_rate_that_changes_is_kept_from_the_next_check_on(store: Store, rated: str) -> None:
    with Validator(store.file.path) as validator:
        assert [validator.check(rated).allowed for _ in range(6)] == [True] * 5 + [False]
        store.change_plan("rated", rate_burst=7)
        assert [validator.check(rated).allowed for _ in range(3)] == [True, True, False]
        store.change_plan("rated", rate_limit=0)
        assert all(validator.check(rated).allowed for _ in range(20))
