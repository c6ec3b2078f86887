"""Quotas: what is there is spent to the last unit, and not one more."""

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from keystore import Reason, Store, Validator, clock, quotas
from keystore.quotas import LARGEST_LEASE, Consumed, deduct, period_of, renews_at, settle_own

ADA = "ada@example.org"


@pytest.fixture
def token(store: Store) -> str:
    """A key with 1,000 units of a service."""
    store.add_service("tts")
    issued = store.issue_key(ADA)
    store.set_quota(issued.key.api_key, "tts", 1_000)
    return issued.token


def allowed(validator: Validator, token: str, *, cost: int = 1) -> int:
    """Check until it is refused; return how often it was not."""
    count = 0
    while (decision := validator.check(token, service="tts", cost=cost)).allowed:
        count += 1
    assert decision.reason is Reason.QUOTA_EXCEEDED
    return count


@pytest.mark.parametrize("cost", [1, 7, 1000])
@pytest.mark.parametrize("max_pending", [1, 100, 10_000])
def test_a_quota_is_spent_to_the_last_unit(
    store: Store, token: str, cost: int, max_pending: int
) -> None:
    with Validator(store.file.path, max_pending=max_pending) as validator:
        assert allowed(validator, token, cost=cost) == 1000 // cost
        assert validator.check(token).allowed  # which asks for no service
    assert store.status().usage_total == 1000 // cost * cost + 1


def test_what_a_process_had_taken_and_not_spent_is_there_for_the_next(
    store: Store, token: str
) -> None:
    for _ in range(10):
        with Validator(store.file.path) as validator:
            assert validator.check(token, service="tts").allowed
    with Validator(store.file.path) as validator:
        decision = validator.check(token, service="tts", cost=0)
        assert decision.quota is not None
        assert (decision.quota.remaining, decision.quota.initial) == (990, 1000)
        assert allowed(validator, token) == 990


def test_threads_spend_exactly_what_there_is(store: Store, token: str) -> None:
    counts: list[int] = []
    with Validator(store.file.path) as validator:
        threads = [
            threading.Thread(target=lambda: counts.append(allowed(validator, token)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(counts) == 1000


def _spend(path: Path, token: str, counts: "multiprocessing.Queue[int]") -> None:
    with Validator(path) as validator:
        count = 0
        while (answer := validator.check(token, service="tts")).reason is not Reason.QUOTA_EXCEEDED:
            count += answer.allowed  # (a lock that is held for too long is "not now")
    counts.put(count)


def test_processes_spend_exactly_what_there_is(store: Store, token: str) -> None:
    store.set_quota(store.keys()[0].api_key, "tts", 100_000)
    spawn = multiprocessing.get_context("spawn")
    counts = spawn.Queue()
    processes = [
        spawn.Process(target=_spend, args=(store.file.path, token, counts)) for _ in range(8)
    ]
    for process in processes:
        process.start()
    spent = sum(counts.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert spent == 100_000
    assert store.status().usage_total == 100_000


def _hang(path: Path, token: str, ready: "multiprocessing.Queue[int]") -> None:
    validator = Validator(path)
    ready.put(sum(validator.check(token, service="tts").allowed for _ in range(10)))
    signal.pause()


def test_what_a_killed_process_had_taken_counts_as_spent(store: Store, token: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Queue()
    process = spawn.Process(target=_hang, args=(store.file.path, token, ready))
    process.start()
    assert ready.get(timeout=30) == 10
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with Validator(store.file.path) as validator:
        left = allowed(validator, token)
    assert 1000 - LARGEST_LEASE // 8 < left <= 990
    store.set_quota(store.keys()[0].api_key, "tts", 50)
    with Validator(store.file.path) as validator:
        assert allowed(validator, token) == 50


def test_no_amount_that_was_logged_stops_a_check(store: Store, token: str) -> None:
    store.file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, service_id, amount, occurred_at)"
        " VALUES ('api_key', 1, 1, ?, datetime('now', '+1 minute'))",
        [(2**63 - 1,)] * 3,
    )
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts").reason is Reason.QUOTA_EXCEEDED
    assert [quota.left for quota in store.quotas(token)] == [0]
    store.log_usage("api_key", 1, service="tts")


def test_a_quota_that_moves_to_a_successor_is_not_spent_twice(store: Store, token: str) -> None:
    with Validator(store.file.path) as one:
        spent = sum(one.check(token, service="tts").allowed for _ in range(50))
        new = store.rotate_key(token).token
        with Validator(store.file.path) as two:
            spent += allowed(two, new)
        spent += allowed(one, new)
    assert spent == 1000


@pytest.mark.parametrize("cost", [1, 100])
def test_what_could_not_be_written_was_not_spent(store: Store, token: str, cost: int) -> None:
    with Validator(store.file.path, max_pending=1) as validator:
        store.file.conn.execute(
            "CREATE TRIGGER full BEFORE INSERT ON UsageLog BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        for _ in range(5):
            assert validator.check(token, service="tts", cost=cost).reason is Reason.UNAVAILABLE
        store.file.conn.execute("DROP TRIGGER full")
        assert allowed(validator, token) == 1000


def settle(store: Store, at: float | None = None) -> None:
    with store.file.write() as conn:
        now = time.time() if at is None else at
        quotas.settle_own(conn, store.info.store_id, now, is_whole=True)


def test_a_rotated_key_that_gets_a_quota_again_spends_its_own(store: Store, token: str) -> None:
    new = store.rotate_key(token, overlap=timedelta(hours=1)).token
    store.set_quota(token, "tts", 10)
    spent = 0
    for _ in range(3):
        with Validator(store.file.path) as validator:
            spent += allowed(validator, token)
        settle(store)
    assert spent == 10
    assert [quota.left for quota in store.quotas(new)] == [1000]


def test_a_second_rotation_of_a_key_leaves_the_quota_with_its_first_successor(
    store: Store, token: str
) -> None:
    heir = store.rotate_key(token).key
    store.set_key_status(token, "assigned")
    store.rotate_key(token)
    with store.file.write() as conn:  # what an edge has used before, and tells now
        hour = clock.utc_text(time.time() + 3600)
        deduct(conn, [Consumed(1, 1, hour, 10)], time.time())
    assert [quota.remaining_quota for quota in store.quotas(heir.api_key)] == [990]


@pytest.mark.parametrize("is_service", [False, True])
def test_a_key_whose_last_quota_was_removed_is_not_exhausted(
    store: Store, token: str, *, is_service: bool
) -> None:
    with Validator(store.file.path) as validator:
        assert allowed(validator, token) == 1000
    settle(store)
    assert store.key(token).status == "exhausted"
    if is_service:
        store.file.conn.execute("DELETE FROM Services")
        assert quotas.is_own_due(store.file.conn, store.info.store_id, time.time())
        settle(store)
    else:
        store.remove_quota(token, "tts")
    assert store.key(token).status == "assigned"
    assert [event.status for event in store.history(token)][:2] == ["assigned", "exhausted"]
    with Validator(store.file.path) as validator:
        assert validator.check(token).allowed


def test_what_was_spent_before_a_quota_is_set_anew_is_not_of_the_new_one(
    store: Store, token: str
) -> None:
    with Validator(store.file.path) as validator:
        for _ in range(50):
            assert validator.check(token, service="tts").allowed
        store.set_quota(token, "tts", 500)
        assert validator.flush() == 50
        settle(store)
        assert allowed(validator, token) == 500


@pytest.mark.parametrize("ahead", [1, 40])
@pytest.mark.parametrize("is_logged", [False, True])
def test_a_period_that_begins_later_than_the_clock_says_is_spent_once(
    store: Store, token: str, ahead: int, *, is_logged: bool
) -> None:
    store.set_quota(token, "tts", 20, renewal="daily")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET remaining_quota = 1")
    settle(store, time.time() + ahead * 86_400)  # by a clock that is put right afterwards
    spent = 0
    for _ in range(3):
        if is_logged and not spent:
            spent += store.log_usage("api_key", store.key(token).api_key, 5, service="tts").amount
            settle(store)
        with Validator(store.file.path) as validator:
            spent += allowed(validator, token)
        settle(store)
    assert spent == 20


def test_usage_of_any_size_keeps_no_check_from_an_answer(store: Store, token: str) -> None:
    store.file.conn.executescript(
        "INSERT INTO UsageLog (principal_type, principal_id, service_id, amount)"
        " SELECT 'api_key', 1, 1, 9223372036854775807 FROM APIKeyStatuses"
    )
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts").reason is Reason.QUOTA_EXCEEDED
    store.log_usage("api_key", store.key(token).api_key, 1 << 40, service="tts")
    (total,) = store.usage_report(key=store.key(token).api_key)
    assert total.amount == (2**63 - 1) * (total.rows - 1) + (1 << 40)


def test_a_raised_quota_is_there_with_the_next_check(store: Store, token: str) -> None:
    key = store.keys()[0].api_key
    with Validator(store.file.path) as validator:
        assert allowed(validator, token) == 1000
        store.set_quota(key, "tts", 5)
        assert allowed(validator, token) == 5


def test_a_quota_that_renews_is_there_again_without_a_word_from_the_origin(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_quota(store.keys()[0].api_key, "tts", 40, renewal="daily")
    # (the origin has deducted 10, and says nothing of the days that follow)
    store.file.conn.execute(
        "UPDATE APIKeyServiceQuotas SET remaining_quota = 30, renewed_at = '2026-11-20 00:00:00'"
    )
    now = [1795176000.0]  # 2026-11-20 12:00:00
    monkeypatch.setattr("time.time", lambda: now[0])
    with Validator(store.file.path) as validator:
        assert allowed(validator, token) == 30
        decision = validator.check(token, service="tts")
        assert decision.quota is not None
        assert decision.quota.renews_at == 1795219200.0
        now[0] = 1795219200.0
        assert allowed(validator, token) == 40
        now[0] += 86_400 * 3 + 5
        assert store.quotas(token)[0].left == 40
        assert allowed(validator, token) == 40


def test_what_was_used_in_a_period_that_is_over_is_taken_off_no_other(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_quota(token, "tts", 100, renewal="daily")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = '2026-11-18 00:00:00'")
    store.file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, service_id, amount, occurred_at)"
        " VALUES ('api_key', 1, 1, ?, ?)",
        [(7, "2026-11-19 23:59:59"), (2, "2026-11-20 00:00:00")],
    )
    now = 1795176000.0  # 2026-11-20 12:00:00
    monkeypatch.setattr("time.time", lambda: now)
    assert store.quotas(token)[0].left == 98
    with Validator(store.file.path) as validator:
        decision = validator.check(token, service="tts", cost=0)
        assert decision.quota is not None
        assert decision.quota.remaining == 98
    with store.file.write() as conn:
        settle_own(conn, store.file.info().store_id, now)
    assert store.quotas(token)[0].remaining_quota == 98
    with store.file.write() as conn:
        hours = (("2026-11-19 23:00:00", 7), ("2026-11-20 00:00:00", 2))
        deduct(conn, [Consumed(1, 1, hour, units) for hour, units in hours], now)
    assert store.quotas(token)[0].remaining_quota == 96


def test_what_is_left_of_a_lease_goes_back_to_no_later_period(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_quota(token, "tts", 1000, renewal="daily")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = '2025-11-20 00:00:00'")
    now = [1763640000.0]  # 2025-11-20 12:00:00
    monkeypatch.setattr("time.time", lambda: now[0])
    with Validator(store.file.path) as early:
        assert early.check(token, service="tts").allowed
        now[0] += 86_400
        with Validator(store.file.path) as late:
            assert late.check(token, service="tts").allowed
            left = store.quotas(token)[0].left
            assert left < 999  # the rest of its lease, too
            early.close()
            assert store.quotas(token)[0].left == left
    assert store.quotas(token)[0].left == 999
    # and what was spent of it is told of the period that it was taken in
    rows = store.file.conn.execute("SELECT occurred_at FROM UsageLog ORDER BY usage_id")
    assert rows.fetchone() == ("2025-11-20 23:59:59",)


def test_a_lease_ends_with_its_period_and_with_its_quota(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_quota(token, "tts", 1000, renewal="daily")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = '2026-11-20 00:00:00'")
    now = [1795176000.0]  # 2026-11-20 12:00:00
    monkeypatch.setattr("time.time", lambda: now[0])
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts").allowed
        now[0] += 86_400
        assert allowed(validator, token) == 1000
        now[0] += 86_400
        assert validator.check(token, service="tts").allowed
        store.set_quota(token, "tts", 5)
        assert allowed(validator, token) == 5


def test_a_key_is_exhausted_by_nothing_less_than_all_its_quotas(store: Store, token: str) -> None:
    store.add_service("ocr")
    store.set_quota(token, "ocr", 1)
    store.set_quota(token, "tts", 0)
    assert store.key(token).status == "assigned"
    store.set_quota(token, "ocr", 0)
    assert store.key(token).status == "exhausted"


def test_an_exhausted_key_passes_by_itself_when_a_quota_renews_that_has_something(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_service("ocr")
    key = store.keys()[0].api_key
    now = [1795176000.0]  # 2026-11-20 12:00:00
    monkeypatch.setattr("time.time", lambda: now[0])
    with Validator(store.file.path) as validator:
        for units, reason in ((0, Reason.QUOTA_EXCEEDED), (5, Reason.OK)):
            store.set_quota(key, "tts", 0)
            store.set_quota(key, "ocr", units, renewal="monthly")
            store.file.conn.execute(
                "UPDATE APIKeyServiceQuotas SET remaining_quota = 0,"
                " renewed_at = '2026-11-20 10:00:00'"
            )
            store.set_key_status(key, "exhausted")
            now[0] = 1795176000.0
            assert validator.check(token).reason is Reason.QUOTA_EXCEEDED
            now[0] += 11 * 86_400
            assert validator.check(token).reason is reason


def test_a_rate_that_is_used_up_spends_nothing_of_the_quota(store: Store, token: str) -> None:
    store.change_plan("free", rate_limit=3, rate_window_seconds=3600)
    with Validator(store.file.path) as validator:
        reasons = [validator.check(token, service="tts").reason for _ in range(5)]
        assert reasons == [Reason.OK] * 3 + [Reason.RATE_LIMITED] * 2
    with Validator(store.file.path) as validator:
        decision = validator.check(token, service="tts", cost=0)
        assert decision.quota is not None
        assert decision.quota.remaining == 997


def test_periods_are_the_calendars() -> None:
    noon = 1795176000.0  # Friday, 2026-11-20
    assert period_of("daily", noon, "2026-01-01 00:00:00") == "2026-11-20 00:00:00"
    assert period_of("monthly", noon, "2026-01-01 00:00:00") == "2026-11-01 00:00:00"
    assert period_of("daily", noon, "2026-11-20 11:00:00") == "2026-11-20 11:00:00"
    assert period_of("never", noon, "2026-01-01 00:00:00") == "2026-01-01 00:00:00"
    assert renews_at("daily", noon) == noon + 43_200
    assert renews_at("monthly", noon) == noon + 43_200 + 10 * 86_400
    assert renews_at("never", noon) is None
