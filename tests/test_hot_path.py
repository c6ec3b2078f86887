"""The hot path: what a check costs, what it may remember, and what it must not get wrong by it."""

import asyncio
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keystore import Reason, Store, Validator, edge, tokens
from keystore.db import connect, open_store
from keystore.edge import cache as cache_module
from keystore.edge import commits, slow
from keystore.edge.cache import TokenCache
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub

ADA = "ada@example.org"


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the path once in an hour, so that only what a check itself needs is done."""
    monkeypatch.setattr(slow, "LOOK_SECONDS", 3600.0)


@pytest.fixture
def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_map", lambda _: None)


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

    def at(self, text: str) -> None:
        """Go on to a time in UTC."""
        from keystore import clock

        self.go(clock.seconds(text) - self.wall)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def traced(validator: Validator) -> list[str]:
    """Every statement that the validator runs from now on, on either of its connections."""
    ran: list[str] = []
    for file in (validator._file, validator._writer):
        file.conn.set_trace_callback(ran.append)
    return ran


def elsewhere(path: Path, script: str) -> None:
    """Write from another process."""
    program = (
        "import sys; from pathlib import Path; from keystore import db;"
        "c = db.connect(Path(sys.argv[1])); c.executescript(sys.argv[2]); c.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path), script], check=True)


# -- what a check costs ------------------------------------------------------------------------


def test_a_hit_runs_no_sql_whatever_it_depends_on(store: Store, seldom: None) -> None:
    store.add_plan("fast", rate_limit=1000, rate_window_seconds=1)
    store.add_account("bob@example.org", plan="fast")
    store.add_service("chat")
    plain = store.issue_key(ADA)
    bound = store.issue_key(ADA, networks=["192.0.2.0/24"])
    rated = store.issue_key("bob@example.org")
    for issued in (plain, rated):
        store.set_quota(issued.key.api_key, "chat", 10**9)
    checks: list[dict[str, Any]] = [
        {"token": plain.token},
        {"token": plain.token, "cost": 0},
        {"token": plain.token, "cost": 5},
        {"token": plain.token, "service": "chat"},
        {"token": plain.token, "ip": "192.0.2.1"},
        {"token": bound.token, "ip": "192.0.2.1"},
        {"token": bound.token, "ip": "192.0.2.2", "cost": 2},
        {"token": rated.token},
        {"token": rated.token, "cost": 0},
        {"token": rated.token, "service": "chat", "cost": 3},
    ]
    with Validator(store.file.path) as validator:
        for _ in range(2):  # (to take a lease is a commit, which the next check looks at)
            assert all(validator.check(**arguments).allowed for arguments in checks)
        ran = traced(validator)
        for _ in range(3):
            assert all(validator.check(**arguments).allowed for arguments in checks)
        assert ran == []


@pytest.mark.parametrize(
    "status", ["revoked", "suspended", "quota_exceeded", "expired", "network", "service"]
)
def test_a_denial_that_is_remembered_runs_no_sql(store: Store, seldom: None, status: str) -> None:
    issued = store.issue_key(ADA, networks=["192.0.2.0/24"] if status == "network" else [])
    if status == "revoked":
        store.revoke_key(issued.token)
    elif status == "suspended":
        store.set_key_status(issued.token, "suspended")
    elif status == "quota_exceeded":
        store.set_key_status(issued.token, "exhausted")
    elif status == "expired":
        store.file.conn.execute("UPDATE APIKeys SET expires_at = '2020-01-01 00:00:00'")
    service = "chat" if status == "service" else None
    with Validator(store.file.path) as validator:
        assert validator.check(issued.token, service=service).reason == status
        ran = traced(validator)
        assert validator.check(issued.token, service=service).reason == status
        assert ran == []


def test_an_unknown_token_costs_one_look_up_by_an_index(store: Store, seldom: None) -> None:
    store.issue_key(ADA)
    well_formed = tokens.new_token(uuid.uuid4())
    with Validator(store.file.path) as validator:
        validator.check("warm")
        for unknown in ("imported-token", "x", "\ud800", well_formed):
            ran = traced(validator)
            assert validator.check(unknown).reason is Reason.UNKNOWN
            assert len(ran) == 1, ran
            plan = validator._file.conn.execute("EXPLAIN QUERY PLAN " + ran[0]).fetchall()
            assert not [step for *_, step in plan if step.startswith("SCAN")], plan


def test_nonsense_costs_no_look_up(store: Store, seldom: None) -> None:
    token = store.issue_key(ADA).token
    nonsense = [
        "",
        "x" * 513,
        *(
            token[:at] + ("a" if token[at] != "a" else "b") + token[at + 1 :]
            for at in range(12, len(token))
        ),
        token[:12] + "é" * (len(token) - 12),
    ]
    with Validator(store.file.path) as validator:
        validator.check("warm")
        ran = traced(validator)
        assert {validator.check(item).reason for item in nonsense} == {Reason.MALFORMED}
        assert ran == []


def test_a_commit_that_names_one_key_costs_one_look_up(store: Store) -> None:
    issued = [store.issue_key(ADA) for _ in range(5)]
    with Validator(store.file.path) as validator:
        for item in issued:
            assert validator.check(item.token).allowed
        elsewhere(
            store.file.path,
            f"UPDATE APIKeys SET label = 'x' WHERE api_key = '{issued[0].key.api_key}'",
        )
        ran = traced(validator)
        assert all(validator.check(item.token).allowed for item in issued)
        assert len([text for text in ran if "FROM APIKeys AS k" in text]) == 1


@pytest.mark.parametrize(
    "commit",
    [
        """INSERT INTO UsageSettlements (replica_id, usage_id)
           VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', 1)""",
        "INSERT INTO PlanServiceQuotas (plan_id, service_id, initial_quota) VALUES (1, 1, 1)",
        "INSERT INTO Providers (name) VALUES ('openai')",
        """INSERT INTO Providers (name) VALUES ('openai');
           INSERT INTO Models (provider_id, name) VALUES (1, 'gpt');
           INSERT INTO ModelPricing
               (model_id, input_nano_per_1k, output_nano_per_1k, effective_from)
           VALUES (1, 1, 1, '2026-01-01 00:00:00')""",
    ],
    ids=["UsageSettlements", "PlanServiceQuotas", "Providers", "Models and ModelPricing"],
)
def test_a_commit_of_what_no_check_depends_on_costs_no_look_up(store: Store, commit: str) -> None:
    store.add_service("chat")
    issued = [store.issue_key(ADA, quotas={"chat": 10**9}) for _ in range(5)]
    with Validator(store.file.path) as validator:
        for item in issued:
            assert validator.check(item.token, service="chat").allowed
        elsewhere(store.file.path, commit)
        ran = traced(validator)
        assert all(validator.check(item.token, service="chat").allowed for item in issued)
        assert [text for text in ran if "FROM APIKey" in text] == []


# -- what may be remembered --------------------------------------------------------------------


def test_unknown_tokens_are_not_remembered_however_many(store: Store, seldom: None) -> None:
    token = store.issue_key(ADA).token
    count = int(os.environ.get("KEYSTORE_UNKNOWN", "10000"))
    with Validator(store.file.path) as validator:
        assert all(validator.check(token).allowed for _ in range(2))
        for number in range(1000):
            validator.check(f"unknown-{number}", service=f"service-{number}", ip=f"ip-{number}")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            validator.check(f"unknown-{number}", service=f"service-{number}", ip=f"ip-{number}")
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 100_000
        assert len(validator._cache) == len(validator._answers) == 1


def sizes(cache: TokenCache) -> dict[str, int]:
    return {name: len(value) for name, value in vars(cache).items() if isinstance(value, dict)}


def test_more_keys_than_fit_are_answered_and_not_all_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CACHE_SIZE", 100)
    store.add_service("chat")
    issued = [store.issue_key(ADA, networks=["192.0.2.0/24"]) for _ in range(400)]
    for item in issued:
        store.set_quota(item.key.api_key, "chat", 10**9)
    with Validator(store.file.path) as validator:
        for _ in range(3):
            for item in issued:
                assert validator.check(item.token, service="chat", ip="192.0.2.1").allowed
                assert max(sizes(validator._cache).values()) <= 100, sizes(validator._cache)
        # what was forgotten is still told of
        store.file.conn.execute("UPDATE APIKeys SET status = 'revoked'")
        assert not any(
            validator.check(item.token, service="chat", ip="192.0.2.1").allowed for item in issued
        )


def test_endless_addresses_of_one_key_are_not_all_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MOST_ADDRESSES", 10)
    token = store.issue_key(ADA, networks=["2001:db8::/32"]).token
    with Validator(store.file.path) as validator:
        for number in range(100):
            assert validator.check(token, ip=f"2001:db8::{number:x}").allowed
            assert validator.check(token, ip=f"2001:db9::{number:x}").reason is Reason.NETWORK
        (answer,) = validator._answers.values()
        assert answer.addresses is not None
        assert len(answer.addresses) <= 10


def between_look_and_read(
    validator: Validator, monkeypatch: pytest.MonkeyPatch, name: str, commit: Callable[[], object]
) -> None:
    """Have something committed right after the next check has looked for commits."""
    read = getattr(validator._cache, name)
    waiting = [commit]

    def committed_just_before(*arguments: Any) -> Any:
        if waiting:
            waiting.pop()()
        return read(*arguments)

    monkeypatch.setattr(validator._cache, name, committed_just_before)


def test_a_token_that_was_replaced_while_its_successor_is_looked_up_passes_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.issue_key(ADA).token
    digest = tokens.hash_token("the successor")

    def replace() -> None:
        store.file.conn.execute("UPDATE APIKeys SET api_key_hash = ?", (digest,))

    with Validator(store.file.path) as validator:
        assert validator.check(token).allowed
        between_look_and_read(validator, monkeypatch, "read", replace)
        assert validator.check("the successor").allowed
        for _ in range(3):
            assert validator.check(token).reason is Reason.UNKNOWN
            assert validator.check("the successor").allowed


def test_a_quota_that_moves_while_its_new_key_is_looked_up_is_no_longer_the_old_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_service("chat")
    old, new = (store.issue_key(ADA) for _ in range(2))
    store.set_quota(old.key.api_key, "chat", 10**9)

    def move() -> None:
        store.file.conn.execute("UPDATE APIKeyServiceQuotas SET api_key_id = 2")

    with Validator(store.file.path) as validator:
        assert validator.check(old.token, service="chat").allowed
        between_look_and_read(validator, monkeypatch, "services", move)
        assert validator.check(new.token, service="chat").allowed
        for _ in range(3):
            assert validator.check(old.token, service="chat").reason is Reason.SERVICE
            assert validator.check(new.token, service="chat").allowed


# -- what it must not get wrong ----------------------------------------------------------------


def test_a_decision_says_who_it_is_about(store: Store) -> None:
    store.add_plan("fast", rate_limit=10, rate_window_seconds=60, rate_burst=3)
    store.add_account("bob@example.org", plan="fast")
    issued = store.issue_key(
        "bob@example.org", label="laptop", metadata={"team": "a"}, expires_at="2031-01-01"
    )
    with Validator(store.file.path) as validator:
        for remaining in (2, 1, 0):  # the slow way first, then the fast one
            decision = validator.check(issued.token)
            assert decision.allowed
            assert decision.label == "laptop"
            assert decision.metadata == '{"team": "a"}'
            assert decision.expires_at == 1924992000.0
            assert (decision.account, decision.plan) == ("bob@example.org", "fast")
            assert decision.api_key == issued.key.api_key
            assert decision.rate is not None
            assert decision.rate.rate == (10, 60, 3)
            assert decision.rate.remaining == remaining
        denied = validator.check(issued.token)
        assert denied.reason is Reason.RATE_LIMITED
        assert denied.label == "laptop"
        assert denied.as_dict()["rate"]["rate"] == {"limit": 10, "window_seconds": 60, "burst": 3}
        assert validator.pending == 3


@pytest.mark.parametrize("is_mapped", [True, False], ids=["WAL-index", "data_version"])
def test_the_very_next_check_knows_which_services_a_key_may_use(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    if not is_mapped:
        monkeypatch.setattr(commits, "_map", lambda _: None)
    store.add_service("chat")
    token, path = store.issue_key(ADA).token, store.file.path
    give = """INSERT INTO APIKeyServiceQuotas
        (api_key_id, service_id, initial_quota, remaining_quota)
        VALUES (1, 1, 1000000000, 1000000000)"""
    with Validator(path) as validator:

        def reason(service: str | None = "chat") -> Reason:
            twice = {validator.check(token, service=service).reason for _ in range(2)}
            assert len(twice) == 1
            return twice.pop()

        assert reason(None) is Reason.OK
        assert reason() is Reason.SERVICE
        elsewhere(path, give)
        assert reason() is Reason.OK
        assert reason("images") is Reason.SERVICE
        elsewhere(path, "UPDATE Services SET is_active = 0")
        assert reason() is Reason.SERVICE
        assert reason(None) is Reason.OK
        elsewhere(path, "UPDATE Services SET is_active = 1, name = 'images'")
        assert (reason(), reason("images")) == (Reason.SERVICE, Reason.OK)
        elsewhere(path, "DELETE FROM APIKeyServiceQuotas")
        assert reason("images") is Reason.SERVICE
        elsewhere(path, give)
        assert reason("images") is Reason.OK
        elsewhere(path, "PRAGMA foreign_keys = ON; DELETE FROM Services")
        assert reason("images") is Reason.SERVICE


@pytest.mark.parametrize(
    ("networks", "ip", "is_allowed"),
    [
        (["192.0.2.0/24"], "192.0.2.255", True),
        (["192.0.2.0/24"], "192.0.3.0", False),
        (["192.0.2.0/24"], "::ffff:192.0.2.1", True),
        (["192.0.2.0/24"], "::ffff:c000:201", True),
        (["192.0.2.0/24"], "::ffff:192.0.3.1", False),
        (["192.0.2.0/24"], "::192.0.2.1", False),
        (["2001:db8::/32"], "2001:DB8:0::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["2001:db8::/32", "192.0.2.1/32"], "192.0.2.1", True),
        (["192.0.2.0/24"], None, False),
        (["192.0.2.0/24"], "", False),
        (["192.0.2.0/24"], "192.0.2.1, 10.0.0.1", False),
        (["192.0.2.0/24"], "192.0.2.01", False),
        (["192.0.2.0/24"], "3221225985", False),
    ],
)
def test_addresses_are_told_apart_on_the_fast_way_as_on_the_slow_one(
    store: Store, seldom: None, networks: list[str], ip: str | None, is_allowed: bool
) -> None:
    token = store.issue_key(ADA, networks=networks).token
    inside = networks[0].partition("/")[0]
    with Validator(store.file.path) as validator:
        for _ in range(3):
            assert validator.check(token, ip=ip).allowed is is_allowed
            assert validator.check(token, ip=inside).allowed


def test_a_key_expires_to_the_second_on_the_fast_way(
    store: Store, seldom: None, clock: Clock
) -> None:
    token = store.issue_key(ADA, expires_at="2031-01-01 00:00:00").token
    clock.at("2030-12-31 23:59:59")
    with Validator(store.file.path) as validator:
        for _ in range(3):
            assert validator.check(token).allowed
        ran = traced(validator)
        clock.go(0.75)
        assert validator.check(token).allowed
        assert ran == []
        clock.go(0.25)
        assert validator.check(token).reason is Reason.EXPIRED
        clock.go(-0.25)  # at an origin the clock is right, whichever way it is set
        assert validator.check(token).allowed


@pytest.fixture
def replica(store: Store, tmp_path: Path) -> tuple[Path, str]:
    """A replica whose plan allows data of a minute, and a token."""
    store.change_plan("free", max_staleness_seconds=60)
    token = store.issue_key(ADA).token
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db", token


def as_of(path: Path, **values: str | int | None) -> None:
    with open_store(path) as file:
        for column, value in values.items():
            file.conn.execute(f"UPDATE StoreInfo SET {column} = ?", (value,))


def test_the_staleness_bound_is_kept_on_the_fast_way(
    replica: tuple[Path, str], clock: Clock
) -> None:
    path, token = replica
    as_of(path, as_of_at="2031-01-01 00:00:00")
    clock.at("2031-01-01 00:00:58")
    with Validator(path) as validator:
        reasons: list[Reason] = []
        for _ in range(16):
            thrice = {validator.check(token).reason for _ in range(3)}
            assert len(thrice) == 1
            reasons += thrice
            clock.go(0.25)
        # at 60 seconds the data are as old as they may be
        assert reasons[:8] == [Reason.OK] * 8
        assert reasons[9:] == [Reason.STALE] * 7


def test_the_end_of_signatures_is_seen_on_the_fast_way(
    replica: tuple[Path, str], clock: Clock
) -> None:
    path, token = replica
    clock.at("2031-01-01 00:00:00")
    as_of(
        path,
        as_of_at="2031-01-01 00:00:00",
        valid_until="2031-01-01 00:00:02",
        max_offline_seconds=3,
    )
    with Validator(path) as validator:
        seen: list[tuple[bool, bool, bool]] = []
        for _ in range(28):
            thrice = set()
            for _ in range(3):
                decision = validator.check(token)
                assert decision.freshness is not None
                limit = decision.freshness.limit
                assert limit is not None
                thrice.add((decision.allowed, limit.is_in_grace, limit.is_over))
            assert len(thrice) == 1
            seen += thrice
            clock.go(0.25)
    assert seen[:9] == [(True, False, False)] * 9
    assert seen[9:21] == [(True, True, False)] * 12
    assert seen[21:] == [(False, False, True)] * 7


def test_a_clock_that_is_set_back_revives_nothing_at_a_replica(
    replica: tuple[Path, str], seldom: None, clock: Clock
) -> None:
    path, token = replica
    with open_store(path) as file, file.write() as conn:
        conn.execute("UPDATE StoreInfo SET replaying = 1")
        conn.execute("UPDATE APIKeys SET expires_at = '2031-01-01 00:00:30'")
        conn.execute("UPDATE StoreInfo SET replaying = 0, as_of_at = '2031-01-01 00:00:00'")
    clock.at("2031-01-01 00:00:29")
    with Validator(path) as validator:
        assert validator.check(token).allowed
        clock.go(0.5)
        assert validator.check(token).allowed
        clock.wall -= 20.0
        assert validator.check(token).allowed
        clock.go(0.25)
        assert validator.check(token).allowed
        clock.go(0.25)
        assert validator.check(token).reason is Reason.EXPIRED
        assert validator.check(token).reason is Reason.EXPIRED


def test_eight_threads_and_commits_meanwhile_count_every_check(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_service("chat")
    issued = [store.issue_key(ADA) for _ in range(4)]
    for item in issued:
        store.set_quota(item.key.api_key, "chat", 10**9)
    stop = threading.Event()
    other = open_store(store.file.path)

    def commit() -> None:
        number = 0
        # (a writer that never pauses would keep the lock from those who need a lease)
        while not stop.wait(0.001):
            number += 1
            with other.write() as conn:
                conn.execute(
                    "UPDATE APIKeys SET label = ? WHERE api_key_id = ?", (str(number), number % 4)
                )

    def work(number: int) -> int:
        units = 0
        for turn in range(1500):
            item = issued[(number + turn) % 4]
            cost = (1, 1, 1, 3, 0)[turn % 5]
            service = "chat" if turn % 3 else None
            decision = validator.check(item.token, service=service, cost=cost)
            assert decision.allowed, decision
            assert decision.api_key == item.key.api_key
            units += cost
        return units

    with other, Validator(store.file.path, max_pending=100) as validator:
        committer = threading.Thread(target=commit)
        committer.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                units = sum(pool.map(work, range(8)))
        finally:
            stop.set()
            committer.join()
    assert store.status().usage_total == units == 8 * 1500 * 6 // 5


def test_checks_of_an_event_loop_answer_as_others_do(store: Store) -> None:
    store.add_service("chat")
    issued = store.issue_key(ADA, networks=["192.0.2.0/24"])
    store.set_quota(issued.key.api_key, "chat", 10**9)
    plain = store.issue_key(ADA).token

    async def run() -> None:
        many = await asyncio.gather(*(validator.check_async(plain) for _ in range(20)))
        assert all(decision.allowed for decision in many)
        assert not validator._may_wait(plain)
        assert (await validator.check_async(plain, service="chat")).reason is Reason.SERVICE
        inside = await validator.check_async(issued.token, service="chat", cost=5, ip="192.0.2.1")
        assert inside.allowed
        assert (await validator.check_async(issued.token)).reason is Reason.NETWORK
        assert (await validator.check_async("unknown")).reason is Reason.UNKNOWN
        with pytest.raises(ValueError, match="cost is"):
            await validator.check_async(plain, cost=-1)
        store.revoke_key(plain)
        assert (await validator.check_async(plain)).reason is Reason.REVOKED

    with Validator(store.file.path) as validator:
        asyncio.run(run())
    assert store.status().usage_total == 25


# -- where the WAL-index cannot be looked at ---------------------------------------------------


def revoked_elsewhere_is_seen(path: Path, token: str, *, is_mapped: bool) -> None:
    with Validator(path) as validator:
        assert bool(validator._commits.header) is is_mapped
        for _ in range(3):
            assert validator.check(token).allowed
        elsewhere(path, "UPDATE APIKeys SET status = 'revoked'")
        assert validator.check(token).reason is Reason.REVOKED
        elsewhere(path, "UPDATE APIKeys SET status = 'assigned'")
        assert validator.check(token).allowed


def test_a_store_without_a_wal_is_watched_too(store: Store) -> None:
    token, path = store.issue_key(ADA).token, store.file.path
    store.close()
    conn = connect(path)
    assert conn.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    conn.close()
    revoked_elsewhere_is_seen(path, token, is_mapped=False)
    with Validator(path) as validator:  # and when somebody turns the WAL on meanwhile
        assert validator.check(token).allowed
        elsewhere(path, "PRAGMA journal_mode = WAL; UPDATE APIKeys SET status = 'revoked'")
        assert validator.check(token).reason is Reason.REVOKED


def test_a_wal_index_of_another_version_is_not_relied_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_VERSION", (3_007_001).to_bytes(4, "little"))
    revoked_elsewhere_is_seen(store.file.path, store.issue_key(ADA).token, is_mapped=False)


def test_a_wal_index_that_cannot_be_opened_is_not_relied_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: Any, *arguments: Any, **others: Any) -> int:
        if str(path).endswith("-shm"):
            raise PermissionError(13, "Permission denied", path)
        return really(path, *arguments, **others)

    token = store.issue_key(ADA).token
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        patch.setattr(commits, "_mapped", {})
        revoked_elsewhere_is_seen(store.file.path, token, is_mapped=False)
    revoked_elsewhere_is_seen(store.file.path, token, is_mapped=True)


def test_two_who_map_one_wal_index_at_once_leave_sqlites_locks_on_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(f"{store.file.path}-shm")
    really = os.open
    monkeypatch.setattr(commits, "_mapped", {})

    def late(*arguments: Any) -> int:
        monkeypatch.setattr(os, "open", really)
        assert commits._map(str(path)) is not None  # another thread is faster
        return really(*arguments)

    monkeypatch.setattr(os, "open", late)
    with Validator(store.file.path):
        # Byte 128 is locked by whoever has the database open.
        program = (
            "import fcntl, sys;"
            "fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)"
        )
        denied = subprocess.run(
            [sys.executable, "-c", program, str(path)], check=False, capture_output=True
        )
    assert b"BlockingIOError" in denied.stderr


@pytest.mark.parametrize("is_mapped", [True, False], ids=["WAL-index", "data_version"])
def test_a_transaction_of_this_process_counts_when_it_commits_and_not_before(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    if not is_mapped:
        monkeypatch.setattr(edge.commits, "_map", lambda _: None)
    token, conn = store.issue_key(ADA).token, store.file.conn
    with Validator(store.file.path) as validator:
        for end, reason in (("ROLLBACK", Reason.OK), ("COMMIT", Reason.REVOKED)):
            conn.execute("BEGIN IMMEDIATE")
            assert validator.check(token).allowed
            conn.execute("UPDATE APIKeys SET status = 'revoked'")
            for _ in range(3):
                assert validator.check(token).allowed
            conn.execute(end)
            assert validator.check(token).reason is reason
        # a reader that stays in an old snapshot keeps nobody from seeing what is new
        conn.execute("BEGIN")
        conn.execute("SELECT count(*) FROM APIKeys").fetchall()
        elsewhere(store.file.path, "UPDATE APIKeys SET status = 'assigned'")
        assert validator.check(token).allowed
        conn.execute("ROLLBACK")
        assert validator.check(token).allowed
