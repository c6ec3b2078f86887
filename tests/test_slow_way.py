"""The slow way of a check: what it looks at, when, and what it says of what it does not know."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from keystore import Reason, Store, Validator, backup, changelog, tokens
from keystore.clock import seconds
from keystore.db import open_store
from keystore.edge import slow
from keystore.edge.usage import UsageBuffer
from keystore.errors import DiskFullError
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub

ADA = "ada@example.org"


class Clock:
    """The wall clock and the monotonic clock, in the hands of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = float(int(time.time()))
        self.ticks = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.ticks)

    def go(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time stands still, and the path is looked at once in an hour."""
    monkeypatch.setattr(slow, "LOOK_SECONDS", 3600.0)
    return Clock(monkeypatch)


@pytest.fixture
def token(store: Store) -> str:
    store.add_service("tts")
    return store.issue_key(ADA).token


@pytest.fixture
def replica(store: Store, token: str, tmp_path: Path) -> Path:
    hub = MemoryHub()
    engine.push(store.file, hub, "hub:", Report(""))
    engine.replicate(hub, "hub:", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db"


def test_a_check_flushes_what_has_waited_for_long_enough(
    store: Store, token: str, clock: Clock
) -> None:
    with Validator(store.file.path, max_seconds=8) as validator:
        for _ in range(3):
            assert validator.check(token).allowed
        clock.go(7.5)
        assert validator.check(token).allowed
        assert validator.pending == 4
        clock.go(0.5)
        assert validator.check(token).allowed
        assert validator.pending <= 1


@pytest.mark.parametrize(("max_pending", "slow_checks"), [(1, 5), (100, 2)])
def test_only_what_comes_again_and_may_wait_is_answered_without_a_look(
    store: Store, token: str, clock: Clock, max_pending: int, slow_checks: int
) -> None:
    with Validator(store.file.path, max_pending=max_pending) as validator:
        for _ in range(5):
            assert validator.check(token).allowed
        assert validator.slow_checks == slow_checks


def test_where_nothing_may_wait_no_check_passes_that_cannot_be_counted(
    store: Store, token: str, clock: Clock
) -> None:
    store.add_service("ocr")
    store.set_quota(token, "ocr", 1000)
    with Validator(store.file.path, max_pending=1) as validator:
        for _ in range(3):
            assert validator.check(token, service="ocr").allowed
        with store.file.write():
            for _ in range(2):
                assert validator.check(token).reason is Reason.UNAVAILABLE
                assert validator.check(token, service="ocr").reason is Reason.UNAVAILABLE
                assert validator.trouble
        assert validator.check(token, service="ocr").allowed
    assert store.quotas(token)[0].left == 996


def test_who_asks_for_a_flush_waits_for_a_lock_and_checks_do_not(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, has_begun = UsageBuffer.flush, threading.Event()

    def begin(self: UsageBuffer) -> int:
        has_begun.set()
        return flush(self)

    def hold() -> None:
        with open_store(store.file.path) as other, other.write():
            is_locked.set()
            assert has_begun.wait(10)
            time.sleep(5 * slow.IMPATIENT_SECONDS)

    is_locked = threading.Event()
    holder = threading.Thread(target=hold)
    with Validator(store.file.path, max_seconds=3600) as validator:
        assert validator.check(token).allowed
        holder.start()
        assert is_locked.wait(10)
        monkeypatch.setattr(UsageBuffer, "flush", begin)
        assert validator.flush() == 1
        holder.join()
        waits = validator._writer.conn.execute("PRAGMA busy_timeout").fetchone()
        assert waits == (slow.IMPATIENT_SECONDS * 1000,)


def test_units_whose_use_cannot_be_written_are_not_spent(
    store: Store, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DiskFullError("full")

    store.add_service("ocr")
    store.set_quota(token, "ocr", 1000)
    with Validator(store.file.path, max_pending=1) as validator:
        with monkeypatch.context() as patch:
            patch.setattr(UsageBuffer, "_write", fail)
            assert validator.check(token, service="ocr").reason is Reason.UNAVAILABLE
            assert validator.trouble == "full"
        assert validator.check(token, service="ocr").allowed
    assert store.quotas(token)[0].left == 999


def test_what_cannot_be_a_token_is_told_from_what_nobody_knows(store: Store, token: str) -> None:
    longest: Any = "x" * tokens.MAX_TOKEN_LENGTH
    secret = store.add_oauth_client(ADA, client_id="app").secret
    with Validator(store.file.path) as validator:
        for sent, reason in (
            (token[:-1] + ("a" if token[-1] != "a" else "b"), Reason.MALFORMED),
            ("", Reason.MALFORMED),
            (longest + "x", Reason.MALFORMED),
            (longest, Reason.UNKNOWN),
            ("x", Reason.UNKNOWN),
            ("\ud800", Reason.UNKNOWN),
        ):
            assert validator.check(sent).reason is reason
        for client_id, said, reason in (
            ("app", "", Reason.MALFORMED),
            ("", secret, Reason.MALFORMED),
            ("app", longest + "x", Reason.MALFORMED),
            (longest + "x", secret, Reason.MALFORMED),
            ("app", longest, Reason.UNKNOWN),
            ("x", "x", Reason.UNKNOWN),
            ("\ud800", "x", Reason.MALFORMED),
            ("a\udfff", "x", Reason.MALFORMED),
        ):
            assert validator.check_client(client_id, said).reason is reason


def test_a_quota_that_is_used_up_is_asked_for_once(store: Store, token: str, clock: Clock) -> None:
    store.set_quota(token, "tts", 2)
    with Validator(store.file.path) as validator:
        for _ in range(6):
            last = validator.check(token, service="tts")
        assert last.reason is Reason.QUOTA_EXCEEDED
        ran: list[str] = []
        for file in (validator._file, validator._writer):
            file.conn.set_trace_callback(ran.append)
        assert validator.check(token, service="tts").reason is Reason.QUOTA_EXCEEDED
        assert not [one for one in ran if one.startswith("BEGIN IMMEDIATE")]


def test_a_quota_that_is_removed_at_this_moment_is_none(
    store: Store, token: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_quota(token, "tts", 1000)
    with Validator(store.file.path) as validator:
        assert validator.check(token).allowed
        really = validator._leases.take

        def late(*given: Any, **options: Any) -> bool:
            store.file.conn.execute("DELETE FROM APIKeyServiceQuotas")
            return really(*given, **options)

        monkeypatch.setattr(validator._leases, "take", late)
        found = validator.check(token, service="tts")
        assert (found.allowed, found.reason) == (False, Reason.SERVICE)


def test_at_a_replica_an_age_is_a_second_old_at_most(
    replica: Path, token: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "LOOK_SECONDS", 0.001)
    with open_store(replica) as file:
        since = seconds(file.info().as_of_at or "")
    clock.go(10.0)
    with Validator(replica) as validator:
        for passed in (0.0, 0.25, 0.5, 0.5, 1.5, 2.5, 0.25):
            clock.go(passed)
            for _ in range(3):
                found = validator.check(token).freshness
                assert found is not None
                assert 0.0 <= clock.wall - since - found.age_seconds <= 1.0


def test_a_replica_that_has_nothing_yet_knows_nobody(replica: Path, token: str) -> None:
    with open_store(replica) as file:
        file.conn.execute("UPDATE StoreInfo SET as_of_change = NULL, as_of_at = NULL")
    with Validator(replica) as validator:
        for sent in (token, "another"):
            assert validator.check(sent).reason is Reason.NOT_SYNCED


def test_at_an_origin_an_answer_holds_until_something_is_changed(
    store: Store, token: str, clock: Clock
) -> None:
    with Validator(store.file.path, max_seconds=3600) as validator:
        for _ in range(3):
            assert validator.check(token).allowed
        for _ in range(3):
            clock.go(100.0)
            assert validator.check(token).allowed
        assert validator.slow_checks == 2
        store.revoke_key(token)
        assert validator.check(token).reason is Reason.REVOKED


def test_a_first_check_counts_as_much_as_may_be_for_its_key_and_account(
    store: Store, token: str
) -> None:
    store.set_quota(token, "tts", 1 << 41)
    with Validator(store.file.path) as validator:
        assert validator.check(token, service="tts", cost=slow.MAX_COST).allowed
        assert validator.check(token, cost=slow.MAX_COST).allowed
    rows = store.file.conn.execute(
        "SELECT principal_id, account_id, service_id, amount FROM UsageLog ORDER BY usage_id"
    )
    assert sorted(rows, key=str) == [(1, 1, 1, slow.MAX_COST), (1, 1, None, slow.MAX_COST)]


def test_who_is_closed_keeps_no_file_open(store: Store, token: str) -> None:
    validator = Validator(store.file.path)
    assert validator.check(token).allowed
    files = (validator._file, validator._writer)
    validator.close()
    for file in files:
        with pytest.raises(Exception, match="closed"):
            file.conn.execute("SELECT 1")


def test_no_quota_that_is_renewed_lets_a_revoked_key_pass(
    store: Store, token: str, clock: Clock
) -> None:
    store.set_quota(token, "tts", 5, renewal="monthly")
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = '2001-01-01 00:00:00'")
    store.revoke_key(token)
    with Validator(store.file.path) as validator:
        for service in (None, "tts"):
            assert validator.check(token, service=service).reason is Reason.REVOKED


def test_an_answer_says_as_of_which_change_of_its_origin_it_is(
    store: Store, token: str, clock: Clock
) -> None:
    with Validator(store.file.path) as validator:
        for name in ("one", "two", "three"):
            store.file.conn.execute("INSERT INTO Providers (name) VALUES (?)", (name,))
            for _ in range(3):
                found = validator.check(token).freshness
                assert found is not None
                assert found.as_of_change == changelog.head(store.file.conn)
                assert found.age_seconds == 0.0


def test_no_more_wait_than_may_be_lost_though_each_comes_for_the_first_time(
    store: Store, clock: Clock
) -> None:
    issued = [store.issue_key(ADA).token for _ in range(12)]
    with Validator(store.file.path, max_pending=5) as validator:
        assert validator.flush() == 0
        for one in issued:
            assert validator.check(one).allowed
            assert validator.pending < 5
        assert validator.flush() == 2
        assert validator.flush() == 0


def test_a_replica_answers_without_a_look_for_a_second(
    replica: Path, token: str, clock: Clock
) -> None:
    with Validator(replica, max_seconds=3600) as validator:
        for _ in range(4):
            assert validator.check(token).allowed
        clock.go(0.75)
        assert validator.check(token).allowed
        assert validator.slow_checks == 2


def take_its_place(other: Path, path: Path) -> None:
    """Put another store where one was, which whoever has it open still sees elsewhere."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").rename(f"{path}.away{suffix}")
    backup.restore(other, path)


def test_units_that_are_leased_from_a_file_are_not_spent_in_one_that_takes_its_place(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_service("tts")
    token, path = store.issue_key(ADA, quotas={"tts": 1_000}).token, store.file.path
    backup.backup(store.file, tmp_path / "copy.db")
    store.close()
    monkeypatch.setattr(slow, "LOOK_SECONDS", 0.0)
    with Validator(path, max_seconds=3600) as validator:
        assert all(validator.check(token, service="tts").allowed for _ in range(5))
        take_its_place(tmp_path / "copy.db", path)
        passed = [validator.check(token, service="tts").allowed for _ in range(1_100)]
        assert passed.count(True) == 1_000


def test_a_rate_that_is_used_up_binds_no_key_of_another_origin(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first key has the same internal id."""
    tokens = []
    for place in (store, Store.create(tmp_path / "other.db")):
        place.add_plan("slow", rate_limit=1, rate_window_seconds=3600)
        place.add_account("bob@example.org", plan="slow")
        tokens.append(place.issue_key("bob@example.org").token)
        if place is not store:
            backup.backup(place.file, tmp_path / "copy.db")
        place.close()
    monkeypatch.setattr(slow, "LOOK_SECONDS", 0.0)
    with Validator(store.file.path, max_seconds=3600) as validator:
        assert [validator.check(tokens[0]).allowed for _ in range(3)] == [True, False, False]
        take_its_place(tmp_path / "copy.db", store.file.path)
        assert [validator.check(tokens[1]).allowed for _ in range(3)] == [True, False, False]
