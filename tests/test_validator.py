"""The edge: never a stale allow, "not now" instead of a guess, and usage that is counted once."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from keystore import Reason, Store, Validator
from keystore.db import SCHEMA_VERSION, open_store, remove_files
from keystore.edge.decision import Entry, Freshness, decide
from keystore.errors import NotAKeystoreError, StoreNotFoundError
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.conftest import NewStore

ENTRY = Entry(
    principal=1,
    api_key="01890a5d-ac96-774b-bcce-b302099a8057",
    is_active=True,
    status="assigned",
    expires_at=None,
    networks=None,
    label=None,
    metadata=None,
    account_id=1,
    account="ada@example.org",
    account_is_active=True,
    plan="free",
    max_staleness_seconds=None,
    stale_action="deny",
    rate=None,
)
FRESH, OLD = Freshness(1, None, 0.0), Freshness(1, "2026-01-01 00:00:00", 61.0)


def changed(**values: object) -> Entry:
    return Entry(**(ENTRY._asdict() | values))


@pytest.mark.parametrize(
    ("entry", "freshness", "reason"),
    [
        (ENTRY, FRESH, Reason.OK),
        (changed(is_active=False, status="revoked"), FRESH, Reason.REVOKED),
        (changed(is_active=False, status="paused"), FRESH, Reason.SUSPENDED),
        (changed(networks=(ip_network("192.0.2.0/24"),)), FRESH, Reason.NETWORK),
        (changed(expires_at=100.0), FRESH, Reason.EXPIRED),
        (changed(expires_at=100.5), FRESH, Reason.OK),
        (changed(account_is_active=False), FRESH, Reason.ACCOUNT_INACTIVE),
        (changed(plan=None), FRESH, Reason.ACCOUNT_INACTIVE),
        (changed(max_staleness_seconds=60), OLD, Reason.STALE),
        (changed(max_staleness_seconds=61), OLD, Reason.OK),
        (changed(max_staleness_seconds=60, stale_action="allow"), OLD, Reason.OK),
        (changed(max_staleness_seconds=60, is_active=False, status="revoked"), OLD, Reason.REVOKED),
    ],
)
def test_the_rules(entry: Entry, freshness: Freshness, reason: Reason) -> None:
    decision = decide(entry, 100.0, freshness)
    assert decision.reason is reason
    assert decision.allowed == (reason is Reason.OK)


@pytest.mark.parametrize(
    ("networks", "ip", "allowed"),
    [
        ("192.0.2.0/24 2001:db8::/32", "192.0.2.7", True),
        ("192.0.2.0/24 2001:db8::/32", "2001:db8::1", True),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("192.0.2.0/24", "198.51.100.1", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24", None, False),
        ("192.0.2.0/24", "nonsense", False),
        (None, None, True),
    ],
)
def test_a_key_passes_from_its_networks_only(
    store: Store, networks: str | None, ip: str | None, allowed: bool
) -> None:
    token = store.issue_key("ada@example.org").token
    store.file.conn.execute("UPDATE APIKeys SET allowed_networks = ?", (networks,))
    with Validator(store.file.path) as validator:
        assert validator.check(token, ip=ip).allowed is allowed


def test_a_status_that_an_operator_adds_denies_until_it_says_otherwise(store: Store) -> None:
    token, conn = store.issue_key("ada@example.org").token, store.file.conn
    with Validator(store.file.path) as validator:
        conn.execute("INSERT INTO APIKeyStatuses (name) VALUES ('trial')")
        conn.execute("UPDATE APIKeys SET status = 'trial'")
        assert validator.check(token).reason is Reason.SUSPENDED
        conn.execute("UPDATE APIKeyStatuses SET allows_access = 1 WHERE name = 'trial'")
        assert validator.check(token).allowed
        conn.execute("UPDATE APIKeyStatuses SET is_active = 0 WHERE name = 'trial'")
        assert validator.check(token).reason is Reason.SUSPENDED


def sqlite_shell(path: Path, script: str) -> None:
    """Write from another process, with another SQLite library."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.executescript(sys.argv[2]); c.close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path), script], check=True)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        ("UPDATE APIKeys SET is_active = 0", Reason.REVOKED),
        ("UPDATE APIKeys SET expires_at = '2020-01-01 00:00:00'", Reason.EXPIRED),
        ("UPDATE APIKeys SET status = 'suspended'", Reason.SUSPENDED),
        ("UPDATE APIKeys SET allowed_networks = '192.0.2.0/24'", Reason.NETWORK),
        ("UPDATE Accounts SET is_active = 0", Reason.ACCOUNT_INACTIVE),
        ("DELETE FROM APIKeys", Reason.UNKNOWN),
        ("PRAGMA foreign_keys = ON; DELETE FROM Accounts", Reason.UNKNOWN),
        (
            "UPDATE APIKeys SET api_key_hash = substr(api_key_hash || api_key_hash, 2, 64)",
            Reason.UNKNOWN,
        ),
    ],
)
def test_a_commit_of_another_process_is_seen_by_the_very_next_check(
    store: Store, write: str, reason: Reason
) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path) as validator:
        assert validator.check(token).allowed
        sqlite_shell(store.file.path, write)
        assert validator.check(token).reason is reason


def test_a_key_that_is_issued_later_is_known_at_once(store: Store) -> None:
    with Validator(store.file.path) as validator:
        assert validator.check("imported-token").reason is Reason.UNKNOWN
        token = store.issue_key("ada@example.org").token
        assert validator.check(token).allowed


def test_a_token_of_any_shape_is_found_by_its_hash(store: Store) -> None:
    from keystore.tokens import hash_token

    store.issue_key("ada@example.org")
    store.file.conn.execute("UPDATE APIKeys SET api_key_hash = ?", (hash_token("legacy token"),))
    with Validator(store.file.path) as validator:
        assert validator.check("legacy token").allowed


@pytest.mark.parametrize("token", ["", "x" * 513, "\ud800", "\0", "sk-miro-api-" + "é" * 55])
def test_nonsense_is_denied_and_raises_nothing(store: Store, token: str) -> None:
    with Validator(store.file.path) as validator:
        decision = validator.check(token)
    assert not decision.allowed
    assert decision.reason in {Reason.MALFORMED, Reason.UNKNOWN}


def test_a_mistyped_token_costs_no_look_up(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    mistyped = token[:-1] + ("a" if token[-1] != "a" else "b")
    with Validator(store.file.path) as validator:
        validator.check(token)
        seen: list[str] = []
        validator._file.conn.set_trace_callback(seen.append)
        assert validator.check(mistyped).reason is Reason.MALFORMED
        assert [statement for statement in seen if "SELECT" in statement] == []


def test_usage_is_counted_per_key_and_flushed_at_the_end(store: Store) -> None:
    one, two = (store.issue_key("ada@example.org").token for _ in range(2))
    with Validator(store.file.path) as validator:
        for _ in range(3):
            validator.check(one)
        validator.check(two, cost=7)
        validator.check(two, cost=0)
        validator.check("unknown")
        assert validator.pending == 4
    rows = store.file.conn.execute(
        "SELECT principal_type, principal_id, account_id, amount FROM UsageLog ORDER BY 2"
    ).fetchall()
    assert rows == [("api_key", 1, 1, 3), ("api_key", 2, 1, 7)]


@pytest.mark.parametrize("cost", [-1, 2**63])
def test_a_cost_that_could_not_be_counted_is_refused(store: Store, cost: int) -> None:
    with Validator(store.file.path) as validator, pytest.raises(ValueError, match="cost is"):
        validator.check("any", cost=cost)


def test_a_store_that_is_migrated_meanwhile_says_not_now(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path) as validator:
        assert validator.check(token).allowed
        store.file.conn.execute("PRAGMA user_version = 99")
        assert validator.check(token).reason is Reason.UNAVAILABLE
        store.file.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        assert validator.check(token).allowed


def test_a_clock_that_is_far_behind_the_origins_counts_as_stale(
    replica: tuple[Path, str],
) -> None:
    path, token = replica
    with Validator(path) as validator:
        for behind, age in ((30, 0), (3600, 3600)):
            age_by(path, -behind)
            fresh = validator.check(token).freshness
            assert fresh is not None
            assert age - 30 <= fresh.age_seconds < age + 30


def test_usage_is_flushed_when_so_many_checks_wait(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path, max_pending=3, max_seconds=3600) as validator:
        waiting = []
        for _ in range(7):
            validator.check(token)
            waiting.append(validator.pending)
    assert waiting == [1, 2, 0, 1, 2, 0, 1]


def test_usage_is_flushed_when_it_has_waited_long_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, now = store.issue_key("ada@example.org").token, 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Validator(store.file.path, max_seconds=5) as validator:
        validator.check(token)
        assert validator.flush_if_due() == 0
        now += 5.0
        assert validator.flush_if_due() == 1
        assert validator.flush_if_due() == 0


def test_a_locked_store_does_not_stop_checks_and_loses_no_usage(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    with (
        Validator(store.file.path, max_pending=2) as validator,
        open_store(store.file.path) as other,
    ):
        with other.write():
            assert all(validator.check(token).allowed for _ in range(10))
            assert validator.pending == 10
        assert validator.flush() == 10
    assert store.status().usage_total == 10


def test_unbuffered_usage_that_cannot_be_written_is_not_answered_with_yes(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    with (
        Validator(store.file.path, max_pending=1) as validator,
        open_store(store.file.path) as other,
    ):
        with other.write():
            assert validator.check(token).reason is Reason.UNAVAILABLE
        assert validator.check(token).allowed
    assert store.status().usage_total == 1


KILLED = """
import os, signal, sys
from keystore import Validator
validator = Validator(sys.argv[1], max_pending=int(sys.argv[3]), max_seconds=3600)
for number in range(int(sys.argv[4])):
    assert validator.check(sys.argv[2]).allowed
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("max_pending", "kept"), [(1, 25), (10, 20), (1000, 0)])
def test_a_kill_loses_at_most_the_stated_bound(store: Store, max_pending: int, kept: int) -> None:
    token = store.issue_key("ada@example.org").token
    arguments = [str(store.file.path), token, str(max_pending), "25"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert store.status().usage_total == kept


def test_threads_share_a_validator_and_every_check_is_counted(store: Store) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path, max_pending=50) as validator:
        threads = [
            threading.Thread(target=lambda: [validator.check(token) for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.status().usage_total == 800


# -- replicas ----------------------------------------------------------------------------------


@pytest.fixture
def replica(store: Store, tmp_path: Path) -> tuple[Path, str]:
    token = store.issue_key("ada@example.org").token
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db", token


def age_by(path: Path, seconds: int) -> None:
    with open_store(path) as file:
        file.conn.execute(
            "UPDATE StoreInfo SET as_of_at = datetime('now', ?)", (f"{-seconds:+} seconds",)
        )


def test_a_decision_says_how_fresh_it_is(replica: tuple[Path, str]) -> None:
    path, token = replica
    age_by(path, 600)
    with Validator(path) as validator:
        fresh = validator.check(token).freshness
    assert fresh is not None
    assert fresh.as_of_change == 8
    assert 600 <= fresh.age_seconds < 660


def test_past_the_plans_bound_the_answer_is_not_now(
    store: Store, replica: tuple[Path, str], tmp_path: Path
) -> None:
    path, token = replica
    store.file.conn.execute("UPDATE Plans SET max_staleness_seconds = 60")
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    with open_store(path) as file:
        engine.pull(file, hub, "memory:", Report(""))
    with Validator(path) as validator:
        assert validator.check(token).allowed
        age_by(path, 120)
        decision = validator.check(token)
        assert decision.reason is Reason.STALE
        assert decision.reason.is_not_now


def test_a_replica_that_never_synced_says_not_now(replica: tuple[Path, str]) -> None:
    path, token = replica
    with open_store(path) as file:
        file.conn.execute("UPDATE StoreInfo SET as_of_change = NULL, as_of_at = NULL")
    with Validator(path) as validator:
        assert validator.check(token).reason is Reason.NOT_SYNCED
        assert validator.freshness() is None


def test_a_damaged_file_says_not_now_and_neither_yes_nor_unknown(replica: tuple[Path, str]) -> None:
    path, token = replica
    with open_store(path) as file:
        (page,) = file.conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_APIKeys_2'"
        ).fetchone()
        (size,) = file.conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as raw:  # nobody has the file open
        raw.seek((page - 1) * size)
        raw.write(os.urandom(size))
    with Validator(path) as validator:
        for asked in (token, "any other token"):
            decision = validator.check(asked)
            assert decision.reason is Reason.UNAVAILABLE
            assert decision.reason.is_not_now


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the path with each check, not once in a millisecond."""
    monkeypatch.setattr("keystore.edge.slow.LOOK_SECONDS", 0.0)


def test_a_replica_that_is_made_anew_at_its_path_is_seen_by_the_next_look(
    store: Store, replica: tuple[Path, str], at_once: None
) -> None:
    path, token = replica
    hub = MemoryHub()
    with Validator(path, max_seconds=3600) as validator:
        assert validator.check(token).allowed
        remove_files(path)
        assert validator.check(token).reason is Reason.UNAVAILABLE
        store.revoke_key(token)
        other = store.issue_key("ada@example.org").token
        engine.push(store.file, hub, "memory:", Report(""))
        engine.replicate(hub, "memory:", path, Report(""))
        assert validator.check(token).reason is Reason.REVOKED
        assert validator.check(other).allowed
    with Store.open(path) as made_anew:
        assert made_anew.status().usage_total == 2


def test_a_file_that_is_replaced_before_the_first_check_is_seen(
    store: Store, replica: tuple[Path, str]
) -> None:
    path, token = replica
    hub = MemoryHub()
    with Validator(path) as validator:
        remove_files(path)
        store.revoke_key(token)
        engine.push(store.file, hub, "memory:", Report(""))
        engine.replicate(hub, "memory:", path, Report(""))
        assert validator.check(token).reason is Reason.REVOKED


def test_usage_is_not_written_to_a_file_of_another_origin(
    store: Store, replica: tuple[Path, str], new_store: NewStore, tmp_path: Path, at_once: None
) -> None:
    path, token = replica
    other = new_store("other.db")
    with Validator(path, max_seconds=3600) as validator:
        assert validator.check(token).allowed
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").rename(tmp_path / f"moved.db{suffix}")
        other.file.conn.execute("VACUUM INTO ?", (str(path),))
        assert validator.check(token).reason is Reason.UNKNOWN
    with Store.open(path) as now_there:
        assert now_there.status().usage_total == 0


def test_what_is_no_keystore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        Validator(tmp_path / "missing.db")
    other = tmp_path / "other.db"
    sqlite3.connect(other).close()
    with pytest.raises(NotAKeystoreError):
        Validator(other)
    other.write_text("not a database at all" * 100)
    with pytest.raises(NotAKeystoreError):
        Validator(other)
    with pytest.raises(NotAKeystoreError):
        Validator(tmp_path)
    remove_files(other)


def test_the_network_is_never_asked(replica: tuple[Path, str], new_store: NewStore) -> None:
    """A replica without a network answers as before: a check opens no socket at all."""
    path, token = replica
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('a socket was opened')\n"
        "socket.socket = refuse\n"
        "from keystore import Validator\n"
        "with Validator(sys.argv[1]) as v: print(v.check(sys.argv[2]).reason.value)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), token],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "ok"
