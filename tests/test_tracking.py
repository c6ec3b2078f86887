"""No lost change: whatever a SQLite client does, the pushed copy's digest equals the store's."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystore import Store, db
from keystore.changelog import Reader, head
from keystore.clock import parse_utc
from keystore.db import open_store, remove_files
from keystore.doctor import examine
from keystore.errors import DamagedStoreError
from keystore.sync import digest, engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import everything
from tests.conftest import NewStore

HASHES = [f"{number:064x}" for number in range(20)]
UUIDS = [f"00000000-0000-7000-8000-{number:012x}" for number in range(20)]
SETUP = f"""
INSERT INTO Plans (name) VALUES ('free'), ('pro'), ('max'), ('in use');
INSERT INTO Accounts (email, plan_id) VALUES ('a@x', 4), ('b@x', 4), ('c@x', 4);
INSERT INTO APIKeys (api_key, account_id, api_key_hash) VALUES
    ('{UUIDS[1]}', 1, '{HASHES[1]}'), ('{UUIDS[2]}', 2, '{HASHES[2]}'),
    ('{UUIDS[3]}', 3, '{HASHES[3]}');
INSERT INTO Services (name) VALUES ('translation'), ('ocr');
INSERT INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota)
    VALUES (1, 1, 5, 5), (1, 2, 5, 5), (2, 1, 5, 5);
INSERT INTO OAuthClients (client_id, account_id, client_secret_hash)
    VALUES ('client', 1, '{HASHES[4]}');
"""

Client = Callable[[Path, str], None]


def shell(path: Path, script: str) -> None:
    """The plain sqlite3 shell, as an operator would use it."""
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("the sqlite3 shell is not installed")
    subprocess.run([program, "-bail", str(path)], input=script, text=True, check=True, timeout=60)


def bare(path: Path, script: str) -> None:
    """A bare connection with SQLite's defaults.

    Of the same SQLite library as the store's: two libraries in one process drop each other's
    file locks and corrupt the file (the shell, in a process of its own, is another library).
    """
    conn = db.connect(path)
    try:
        conn.executescript(script)
    finally:
        conn.close()


WRITES = {
    "insert": "INSERT INTO Plans (name) VALUES ('new');",
    "update": "UPDATE Accounts SET is_active = 0 WHERE account_id = 2;",
    "delete": "DELETE FROM APIKeys WHERE api_key_id = 2;",
    "delete a plan": "DELETE FROM Plans WHERE plan_id = 3;",
    "update or replace an address": (
        "UPDATE OR REPLACE Accounts SET email = 'B@x' WHERE account_id = 1;"
    ),
    "replace by name": "INSERT OR REPLACE INTO Plans (name) VALUES ('pro');",
    "replace by id": "REPLACE INTO Plans (plan_id, name) VALUES (2, 'other');",
    "replace by uuid and by hash, two victims": (
        "INSERT OR REPLACE INTO APIKeys (api_key, account_id, api_key_hash)"
        f" VALUES ('{UUIDS[1]}', 2, '{HASHES[2]}');"
    ),
    "replace by case-insensitive address": (
        "INSERT OR REPLACE INTO Accounts (email, plan_id) VALUES ('A@X', 4);"
    ),
    "update or replace": "UPDATE OR REPLACE Plans SET name = 'pro' WHERE name = 'free';",
    "update or replace a hash": (
        f"UPDATE OR REPLACE APIKeys SET api_key_hash = '{HASHES[1]}' WHERE api_key_id = 2;"
    ),
    "rows that stay when OR FAIL stops half way": (
        "UPDATE OR FAIL APIKeys SET is_active = 0, api_key_hash = CASE api_key_id WHEN 3 THEN"
        " (SELECT api_key_hash FROM APIKeys WHERE api_key_id = 1) ELSE api_key_hash END;"
    ),
    "junk in the log itself": (
        "INSERT INTO ChangeLog (table_name, record_id, operation) VALUES"
        " ('Plans', 'abc', 'UPDATE'), ('Plans', 1.5, ''), ('Plans', x'00', 'x'),"
        " ('Nonsense', 1, 'UPDATE');"
    ),
    "insert or ignore": "INSERT OR IGNORE INTO Plans (name) VALUES ('pro'), ('fresh');",
    "upsert": (
        "INSERT INTO Plans (name) VALUES ('pro')"
        " ON CONFLICT (name) DO UPDATE SET stale_action = 'allow';"
    ),
    "delete all": "DELETE FROM APIKeys;",
    "cascade": "DELETE FROM Accounts WHERE account_id = 1;",
    "replace a service by name": "REPLACE INTO Services (name) VALUES ('ocr');",
    "update or replace a service": (
        "UPDATE OR REPLACE Services SET name = 'ocr' WHERE name = 'translation';"
    ),
    "delete a service": "DELETE FROM Services WHERE name = 'ocr';",
    "a new status": "INSERT INTO APIKeyStatuses (name) VALUES ('paused');",
    "replace a status": (
        "REPLACE INTO APIKeyStatuses (name, description) VALUES ('suspended', 'again');"
    ),
    "update or replace a status": (
        "UPDATE OR REPLACE APIKeyStatuses SET name = 'exhausted' WHERE name = 'suspended';"
    ),
    "delete a status": "DELETE FROM APIKeyStatuses WHERE name = 'suspended';",
    "a status of a key": "UPDATE APIKeys SET status = 'suspended' WHERE api_key_id = 1;",
    "replace a quota": (
        "REPLACE INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota)"
        " VALUES (1, 1, 9, 9);"
    ),
    "update or replace a quota": (
        "UPDATE OR REPLACE APIKeyServiceQuotas SET service_id = 2 WHERE quota_id = 1;"
    ),
    "delete quotas": "DELETE FROM APIKeyServiceQuotas;",
    "a client": f"INSERT INTO OAuthClients (client_id, account_id, client_secret_hash)"
    f" VALUES ('new', 1, '{HASHES[5]}');",
    "replace a client": f"REPLACE INTO OAuthClients (client_id, account_id, client_secret_hash)"
    f" VALUES ('client', 2, '{HASHES[6]}');",
    "update a client": "UPDATE OAuthClients SET is_active = 0;",
    "delete clients": "DELETE FROM OAuthClients;",
    "savepoint rolled back": (
        "BEGIN; SAVEPOINT s; DELETE FROM APIKeys; ROLLBACK TO s;"
        " UPDATE Plans SET name = 'kept' WHERE plan_id = 3; COMMIT;"
    ),
    "delete and insert again": (
        "DELETE FROM Plans WHERE plan_id = 3; INSERT INTO Plans (plan_id, name) VALUES (3, 'back');"
    ),
}


def assert_pushed_copy_is_equal(path: Path, hub: MemoryHub) -> None:
    with open_store(path) as file:
        engine.push(file, hub, "memory:", Report(""))
        assert digest.digest_pages(everything(hub, None)) == digest.digest_store(file)


@pytest.mark.parametrize("client", [shell, bare], ids=["shell", "bare"])
@pytest.mark.parametrize("foreign_keys", ["ON", "OFF"])
@pytest.mark.parametrize("recursive_triggers", ["ON", "OFF"])
@pytest.mark.parametrize("write", WRITES, ids=lambda name: name.replace(" ", "-"))
def test_no_write_of_any_client_is_lost(
    new_store: NewStore,
    healthy: list[Path],
    client: Client,
    foreign_keys: str,
    recursive_triggers: str,
    write: str,
) -> None:
    store, hub = new_store(), MemoryHub()
    path = store.file.path
    client(path, SETUP)
    assert_pushed_copy_is_equal(path, hub)
    script = (
        f"PRAGMA foreign_keys = {foreign_keys}; PRAGMA recursive_triggers = {recursive_triggers};"
        f" PRAGMA trusted_schema = OFF; {WRITES[write]}"
    )
    if "OR FAIL" in script:
        with pytest.raises((db.Error, subprocess.CalledProcessError)):
            client(path, script)
    else:
        client(path, script)
    assert_pushed_copy_is_equal(path, hub)
    healthy.clear()  # with foreign keys off, some of these leave the orphans that they ask for


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE Plans SET plan_id = 9 WHERE plan_id = 3",
        "UPDATE Plans SET rowid = 9 WHERE plan_id = 3",
        "UPDATE OR REPLACE Plans SET _rowid_ = 2 WHERE plan_id = 3",
        "UPDATE OR IGNORE Accounts SET account_id = 9 WHERE account_id = 3",
        "UPDATE APIKeys SET oid = 9 WHERE api_key_id = 3",
        f"UPDATE APIKeys SET api_key = '{UUIDS[9]}' WHERE api_key_id = 3",
        "UPDATE Services SET rowid = 9 WHERE service_id = 1",
        "UPDATE APIKeyStatuses SET status_id = 99 WHERE status_id = 1",
        "UPDATE APIKeyServiceQuotas SET rowid = 9 WHERE quota_id = 1",
        "UPDATE OAuthClients SET client_id = 'other'",
        "UPDATE OR REPLACE OAuthClients SET oid = 7",
    ],
)
def test_ids_and_uuids_never_change(new_store: NewStore, write: str) -> None:
    path = new_store().file.path
    bare(path, SETUP)
    with pytest.raises(db.Error, match="never change"):
        bare(path, write)


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO Plans (name) VALUES ('a' || char(0) || 'b')",
        "INSERT INTO Plans (plan_id, name) VALUES (-1, 'negative')",
        "INSERT INTO Plans (name) VALUES (x'00')",
        "INSERT INTO Plans (name, created_at) VALUES ('x', 'yesterday')",
        "INSERT INTO Plans (name, created_at) VALUES ('x', '-0001-01-01 00:00:00')",
        "INSERT INTO Plans (name, created_at) VALUES ('x', '2023-02-30 00:00:00')",
        "UPDATE APIKeys SET expires_at = '2027-02-20 24:00:00'",
        f"UPDATE APIKeys SET api_key_hash = '{HASHES[9]}' || char(0) || 'x' WHERE api_key_id = 1",
        (
            "INSERT INTO APIKeys (api_key, account_id, api_key_hash)"
            f" VALUES ('------------------------------------', 1, '{HASHES[9]}')"
        ),
        (
            "INSERT INTO APIKeys (api_key, account_id, api_key_hash)"
            f" VALUES ('0000000--0000-7000-8000-000000000009', 1, '{HASHES[9]}')"
        ),
        (
            "INSERT INTO APIKeys (api_key, account_id, api_key_hash)"
            f" VALUES ('{UUIDS[9]}' || char(0), 1, '{HASHES[9]}')"
        ),
        (
            "INSERT INTO UsageLog (usage_id, principal_type, principal_id, amount)"
            " VALUES (-3, 'session', 1, 1)"
        ),
        "INSERT INTO Accounts (email, plan_id) VALUES ('d@x', 'free')",
        "UPDATE APIKeys SET expires_at = '2027-01-01T00:00:00Z'",
        "UPDATE APIKeys SET expires_at = 1800000000",
        "UPDATE APIKeys SET is_active = 2",
        "UPDATE APIKeys SET api_key_hash = 'plain text'",
    ],
)
def test_values_that_no_hub_could_hold_are_refused_at_once(new_store: NewStore, write: str) -> None:
    path = new_store().file.path
    bare(path, SETUP)
    with pytest.raises(db.Error, match="constraint failed"):
        bare(path, write)


@pytest.mark.parametrize("library", ["shell", "bare"])
def test_every_day_of_the_calendar_is_accepted(new_store: NewStore, library: str) -> None:
    """The CHECK on times must not refuse a real one, in an old SQLite or a new one."""
    path = new_store().file.path
    days = (
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO Plans (name, created_at)"
        " SELECT i, datetime(-30000000000 + i * 3100003, 'unixepoch') FROM n;"
    )
    (shell if library == "shell" else bare)(path, days)
    with open_store(path) as file:
        assert file.conn.execute("SELECT count(*) FROM Plans").fetchone() == (20001,)
        for (text,) in file.conn.execute("SELECT created_at FROM Plans"):
            parse_utc(text)


def test_text_that_is_not_utf8_is_named_with_its_row(store: Store) -> None:
    shell(store.file.path, "UPDATE Accounts SET email = CAST(x'61ff62' AS TEXT);")
    with pytest.raises(DamagedStoreError, match="Accounts 1 holds text that is not UTF-8"):
        engine.push(store.file, MemoryHub(), "memory:", Report(""))
    shell(store.file.path, "UPDATE Accounts SET email = 'ada@example.org';")


@pytest.mark.parametrize("write", ["DELETE FROM ChangeLog", "UPDATE ChangeLog SET record_id = 9"])
def test_the_log_is_append_only(store: Store, write: str) -> None:
    with pytest.raises(db.Error, match="append-only"):
        bare(store.file.path, write)


def test_a_store_with_a_trigger_missing_is_not_pushed(store: Store, healthy: list[Path]) -> None:
    store.file.conn.execute("DROP TRIGGER trg_accounts_update")
    with pytest.raises(DamagedStoreError, match="trg_accounts_update"):
        engine.push(store.file, MemoryHub(), "memory:", Report(""))
    healthy.clear()


def test_writes_made_with_the_shell_appear_at_the_hub_after_the_next_sync(
    store: Store, hub_url: str
) -> None:
    import psycopg

    from keystore.sync import targets

    targets.sync(store.file, hub_url)
    shell(store.file.path, "UPDATE Accounts SET email = 'shell@example.org';")
    targets.sync(store.file)
    with psycopg.connect(hub_url) as conn:
        found = conn.execute("SELECT email FROM keystore.accounts").fetchall()
    assert found == [("shell@example.org",)]


def test_a_replica_refuses_writes_of_any_client(store: Store, tmp_path: Path) -> None:
    hub, path = MemoryHub(), tmp_path / "replica.db"
    store.issue_key("ada@example.org")
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", path, Report(""))
    for write in (
        "INSERT INTO Plans (name) VALUES ('mine')",
        "UPDATE APIKeys SET is_active = 1",
        "DELETE FROM Accounts",
        "REPLACE INTO Plans (plan_id, name) VALUES (1, 'mine')",
    ):
        with pytest.raises(db.Error, match="write at its origin"):
            bare(path, write)
    bare(
        path, "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('session', 1, 1)"
    )


statements = st.lists(
    st.one_of(
        st.builds("INSERT OR REPLACE INTO Plans (name) VALUES ('p{}');".format, st.integers(0, 5)),
        st.builds(
            "INSERT OR {} INTO Accounts (email, plan_id) VALUES ('{}@x', {});".format,
            st.sampled_from(["REPLACE", "IGNORE"]),
            st.integers(0, 5),
            st.integers(1, 6),
        ),
        st.builds(
            "INSERT OR REPLACE INTO APIKeys (api_key, account_id, api_key_hash)"
            " VALUES ('{}', {}, '{}');".format,
            st.sampled_from(UUIDS[:6]),
            st.integers(1, 6),
            st.sampled_from(HASHES[:6]),
        ),
        st.builds(
            "UPDATE OR REPLACE APIKeys SET api_key_hash = '{}' WHERE api_key_id = {};".format,
            st.sampled_from(HASHES[:6]),
            st.integers(1, 9),
        ),
        st.builds(
            "UPDATE OR REPLACE Plans SET name = 'p{}' WHERE plan_id = {};".format,
            st.integers(0, 5),
            st.integers(1, 9),
        ),
        st.builds("DELETE FROM Accounts WHERE account_id = {};".format, st.integers(1, 9)),
        st.builds("DELETE FROM Plans WHERE plan_id = {};".format, st.integers(1, 9)),
        st.builds(
            "UPDATE OR FAIL APIKeys SET api_key_hash = '{}', is_active = 0;".format,
            st.sampled_from(HASHES[:6]),
        ),
        st.sampled_from(["SAVEPOINT s;", "ROLLBACK;", "BEGIN;", "COMMIT;", "push"]),
    ),
    max_size=40,
)


@given(statements, st.booleans(), st.booleans(), st.integers(1, 3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_history_of_writes_and_pushes_converges(
    tmp_path: Path, history: list[str], foreign_keys: bool, recursive: bool, page_size: int
) -> None:
    path, hub = tmp_path / "history.db", MemoryHub()
    remove_files(path)
    with Store.create(path) as store:
        conn = db.connect(path)
        conn.execute(f"PRAGMA foreign_keys = {foreign_keys}")
        conn.execute(f"PRAGMA recursive_triggers = {recursive}")
        for statement in history:
            if statement == "push":
                # A push reads what is committed; a writer may be in the middle of something.
                if not conn.in_transaction:
                    engine.push(store.file, hub, "memory:", Report(""))
                continue
            try:
                conn.execute(statement)
            except db.Error:
                continue  # refused: nothing has changed
        conn.close()
        engine.push(store.file, hub, "memory:", Report(""))
        wanted = digest.digest_store(store.file)
        assert digest.digest_pages(everything(hub, None)) == wanted
        # and page by page, however small the pages are, the reader tells the same story
        assert digest.digest_pages(Reader(store.file, None, page_size=page_size)) == wanted
        if head(store.file.conn):
            assert digest.digest_pages(Reader(store.file, 0, page_size=page_size)) == wanted
        found = [item for item in examine(store.file) if item.severity == "error"]
        assert [item for item in found if item.id != "orphans" or foreign_keys] == []
