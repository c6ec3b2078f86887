"""The fast way of a check is taken, and decides, counts and spends as the slow one does."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from keystore import Reason, Store, Validator, quotas
from keystore.edge import slow

ADA, BOB = "ada@example.org", "bob@example.org"
HERE, THERE, ELSEWHERE = "192.0.2.1", "192.0.2.2", "198.51.100.1"


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the path once in an hour, so that the slow way is taken only where it must be."""
    monkeypatch.setattr(slow, "LOOK_SECONDS", 3600.0)


@pytest.fixture
def token(store: Store) -> str:
    """A key with 1,000,000 units of a service."""
    store.add_service("tts")
    issued = store.issue_key(ADA)
    store.set_quota(issued.key.api_key, "tts", 1_000_000)
    return issued.token


def warm(validator: Validator, *checks: dict[str, Any]) -> int:
    """Make checks until they are remembered; return how many took the slow way."""
    for _ in range(3):
        for one in checks:
            assert validator.check(**one).allowed
    return validator.slow_checks


def logged(store: Store) -> dict[int | None, int]:
    rows = store.file.conn.execute("SELECT service_id, amount FROM UsageLog")
    units: Counter[int | None] = Counter()
    for service_id, amount in rows:
        units[service_id] += amount
    return dict(units)


def test_what_is_remembered_takes_the_fast_way(store: Store, token: str) -> None:
    store.add_plan("rated", rate_limit=1000, rate_window_seconds=1)
    store.add_account(BOB, plan="rated")
    bound = store.issue_key(ADA, networks=["192.0.2.0/24"]).token
    rated = store.issue_key(BOB).token
    checks: list[dict[str, Any]] = [
        {"token": token},
        {"token": token, "cost": 0},
        {"token": token, "cost": 5},
        {"token": token, "cost": slow.MAX_COST},
        {"token": token, "ip": HERE},
        {"token": token, "service": "tts"},
        {"token": token, "service": "tts", "cost": 3},
        {"token": bound, "ip": HERE},
        {"token": bound, "ip": THERE, "cost": 0},
        {"token": rated},
        {"token": rated, "cost": 0},
    ]
    with Validator(store.file.path) as validator:
        before = warm(validator, *checks)
        for one in checks:
            assert validator.check(**one).allowed
            assert validator.slow_checks == before, one


def test_the_fast_way_counts_each_unit_of_each_check(store: Store, token: str) -> None:
    bound = store.issue_key(ADA, networks=["192.0.2.0/24"]).token
    checks: list[dict[str, Any]] = [
        {"token": token},
        {"token": token, "cost": 0},
        {"token": token, "cost": 2},
        {"token": token, "service": "tts"},
        {"token": token, "service": "tts", "cost": 30},
        {"token": bound, "ip": HERE, "cost": 400},
        {"token": bound, "ip": HERE},
    ]
    with Validator(store.file.path) as validator:
        before = warm(validator, *checks)
        warm(validator, *checks)
        assert validator.slow_checks == before
        assert validator.pending == 6 * (len(checks) - 1)
    assert logged(store) == {None: 6 * (1 + 2 + 400 + 1), 1: 6 * 31}
    assert store.quotas(token)[0].left == 1_000_000 - 6 * 31


@pytest.mark.parametrize("costs", [(1,), (2,), (1, 3), (7, 1, 1)])
@pytest.mark.parametrize("is_rated", [False, True])
def test_the_fast_way_spends_no_unit_that_is_not_there(
    store: Store, token: str, costs: tuple[int, ...], is_rated: bool
) -> None:
    store.set_quota(token, "tts", 400)  # (a sixteenth is leased at once)
    if is_rated:
        store.add_plan("rated", rate_limit=10_000, rate_window_seconds=3600)
        store.change_account(ADA, plan="rated")
    spent = 0
    with Validator(store.file.path) as validator:
        for _ in range(410):
            for cost in costs:
                decision = validator.check(token, service="tts", cost=cost)
                spent += cost * decision.allowed
                assert decision.reason in {Reason.OK, Reason.QUOTA_EXCEEDED}
    assert 400 - min(costs) < spent <= 400
    assert logged(store) == {1: spent}


def test_with_a_cost_of_0_a_check_passes_for_as_long_as_a_unit_is_left(
    store: Store, token: str
) -> None:
    store.set_quota(token, "tts", 40)
    with Validator(store.file.path) as validator:
        for spent in range(1, 41):
            assert validator.check(token, service="tts").allowed
            for _ in range(2):
                asked = validator.check(token, service="tts", cost=0)
                assert asked.allowed is (spent < 40)


@pytest.mark.parametrize("check", [{}, {"service": "tts"}])
def test_one_unit_of_what_is_remembered_waits_for_no_other_thread(
    store: Store, token: str, check: dict[str, Any]
) -> None:
    with Validator(store.file.path) as validator:
        warm(validator, {"token": token, **check})
        with ThreadPoolExecutor(1) as pool, validator._lock:
            assert pool.submit(validator.check, token, **check).result(timeout=5).allowed


def test_without_a_service_the_fast_way_spends_nothing(store: Store, token: str) -> None:
    with Validator(store.file.path) as validator:
        warm(validator, {"token": token}, {"token": token, "service": "tts"})
        for cost in (1, 5):
            decision = validator.check(token, cost=cost)
            assert (decision.allowed, decision.quota) == (True, None)
    assert store.quotas(token)[0].left == 1_000_000 - 3


def test_what_is_remembered_for_one_service_or_address_is_not_for_another(
    store: Store, token: str
) -> None:
    store.add_service("ocr")
    bound = store.issue_key(ADA, networks=["192.0.2.0/24"]).token
    with Validator(store.file.path) as validator:
        warm(validator, {"token": token, "service": "tts"}, {"token": bound, "ip": HERE})
        assert validator.check(token, service="ocr").reason is Reason.SERVICE
        assert validator.check(token, service="none").reason is Reason.SERVICE
        for cost in (0, 1, 2):
            assert validator.check(bound, ip=THERE, cost=cost).allowed
            assert validator.check(bound, ip=ELSEWHERE, cost=cost).reason is Reason.NETWORK
            assert validator.check(bound, cost=cost).reason is Reason.NETWORK


def test_a_client_that_is_remembered_takes_the_fast_way_and_counts_one_unit(store: Store) -> None:
    secret = store.add_oauth_client(ADA, client_id="app").secret
    with Validator(store.file.path) as validator:
        for _ in range(3):
            assert validator.check_client("app", secret).allowed
        before = validator.slow_checks
        for _ in range(4):
            assert validator.check_client("app", secret).allowed
        assert validator.check_client("app", secret, cost=10).allowed
        assert validator.slow_checks == before
        assert validator.cached == 1
    assert logged(store) == {None: 17}


@pytest.mark.parametrize("cost", [-1, slow.MAX_COST + 1])
def test_a_cost_that_could_not_be_counted_is_refused_on_the_fast_way_too(
    store: Store, token: str, cost: int
) -> None:
    with Validator(store.file.path) as validator:
        warm(validator, {"token": token, "service": "tts"}, {"token": token})
        for service in (None, "tts"):
            with pytest.raises(ValueError, match="cost"):
                validator.check(token, cost=cost, service=service)
        assert validator.pending == 6


def test_what_is_no_text_passes_nowhere_and_raises_nothing(store: Store, token: str) -> None:
    client = store.add_oauth_client(ADA, client_id="app")
    sent: list[Any] = [None, b"bytes", 7, ["x"], "\ud800"]
    no_text: Any = ["tts"]
    with Validator(store.file.path) as validator:
        for one in sent:
            warm(validator, {"token": token})
            assert not validator.check(one).allowed
            assert not validator.check_client(one, "x").allowed
            assert not validator.check_client("app", one).allowed
        for _ in range(2):
            warm(validator, {"token": token})
            assert not validator.check(token, service=no_text).allowed
        for _ in range(3):
            assert validator.check_client("app", client.secret).allowed
        assert not validator.check_client("app", client.secret, service=no_text).allowed
        assert validator.check(token).allowed


@pytest.mark.parametrize("check", [{}, {"cost": 2}, {"service": "tts"}, {"ip": HERE}])
def test_no_more_wait_than_may_be_lost_whichever_way_they_came(
    store: Store, token: str, check: dict[str, Any]
) -> None:
    with Validator(store.file.path, max_pending=5) as validator:
        for _ in range(23):
            assert validator.check(token, **check).allowed
            assert validator.pending < 5
    assert sum(logged(store).values()) == 23 * check.get("cost", 1)


def test_a_refused_check_counts_nothing_and_gives_its_units_back(store: Store) -> None:
    store.add_plan("rated", rate_limit=1, rate_window_seconds=3600, rate_burst=20)
    store.add_account(BOB, plan="rated")
    store.add_service("tts")
    token = store.issue_key(BOB).token
    store.set_quota(token, "tts", 1000)
    with Validator(store.file.path) as validator:
        reasons = [validator.check(token, service="tts", cost=3).reason for _ in range(30)]
        assert reasons == [Reason.OK] * 20 + [Reason.RATE_LIMITED] * 10
        assert validator.check(token).reason is Reason.RATE_LIMITED
        asked = validator.check(token, cost=0)
        assert asked.reason is Reason.RATE_LIMITED
    assert logged(store) == {1: 60}
    assert store.quotas(token)[0].left == 940


def test_only_what_may_wait_leaves_the_event_loop(store: Store, token: str) -> None:
    client = store.add_oauth_client(ADA, client_id="app")
    with Validator(store.file.path, max_pending=100) as validator:
        threads: list[bool] = []

        for name in ("check", "check_client"):
            real = getattr(validator, name)

            def noting(*given: Any, _real: Any = real, **options: Any) -> Any:
                threads.append(threading.current_thread() is threading.main_thread())
                return _real(*given, **options)

            setattr(validator, name, noting)

        async def run() -> None:
            for _ in range(4):
                assert (await validator.check_async(token)).allowed
                found = await validator.check_client_async("app", client.secret)
                assert found.allowed
            unknown = await validator.check_async("another")
            assert unknown.reason is Reason.UNKNOWN

        asyncio.run(run())
        assert threads[:2] == [False, False]
        assert threads[-3:] == [True, True, False]
    assert sum(logged(store).values()) == 8


def test_units_of_a_quota_are_taken_from_the_file_beside_the_event_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_service("tts")
    token = store.issue_key(ADA, quotas={"tts": 40}).token  # (so few that leases are small)
    in_the_loop: list[bool] = []
    real = quotas.lease

    def noting(*given: Any) -> Any:
        in_the_loop.append(threading.current_thread() is threading.main_thread())
        return real(*given)

    monkeypatch.setattr(quotas, "lease", noting)

    async def run() -> list[Reason]:
        return [(await validator.check_async(token, service="tts")).reason for _ in range(41)]

    with Validator(store.file.path) as validator:
        assert asyncio.run(run()) == [Reason.OK] * 40 + [Reason.QUOTA_EXCEEDED]
    assert len(in_the_loop) > 5
    assert not any(in_the_loop)


def test_units_that_are_at_hand_are_spent_in_the_event_loop(store: Store, token: str) -> None:
    with Validator(store.file.path) as validator:
        warm(validator, {"token": token})
        assert not validator._may_wait(token)
        assert validator._may_wait(token, "tts")
        warm(validator, {"token": token, "service": "tts"})
        held = validator._leases._leases[1].held
        assert held > 0
        asked = {0: False, 1: False, held: False, held + 1: True}
        for cost, may_wait in asked.items():
            assert validator._may_wait(token, "tts", cost) is may_wait
        assert validator.check(token, service="tts", cost=held).allowed
        assert [validator._may_wait(token, "tts", cost) for cost in (0, 1)] == [True, True]


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, in the hands of a test."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_who_would_fill_the_buffer_or_flush_what_is_due_leaves_the_event_loop(
    store: Store, token: str, ticks: list[float]
) -> None:
    with Validator(store.file.path, max_pending=5, max_seconds=8) as validator:
        for pending in range(1, 5):
            assert validator.check(token).allowed
            assert validator.pending == pending
            assert validator._may_wait(token) is (pending == 4)
        validator.flush()
        assert validator.check(token).allowed
        for now, is_due in ((1007.5, False), (1008.0, True)):
            ticks[0] = now
            assert validator._may_wait(token) is is_due


def test_a_timer_flushes_what_is_due_and_nothing_before(
    store: Store, token: str, ticks: list[float]
) -> None:
    with Validator(store.file.path, max_seconds=8) as validator:
        assert validator.flush_if_due() == 0
        for _ in range(2):
            assert validator.check(token).allowed
        ticks[0] += 7.5
        assert (validator.flush_if_due(), validator.pending) == (0, 2)
        ticks[0] += 0.5
        assert (validator.flush_if_due(), validator.pending) == (2, 0)
        assert validator.flush_if_due() == 0
        assert logged(store) == {None: 2}
