"""The hub: concurrent pushers, the clock that leaves no gap, and a schema made once."""

import threading
from pathlib import Path

import psycopg
import pytest

from keystore import Store
from keystore.db import open_store
from keystore.errors import (
    IncompleteStateError,
    SchemaVersionError,
    TargetError,
    TargetNotReadyError,
)
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.hub_admin import HubAdmin
from keystore.sync.postgres import PostgresHub
from keystore.tables import TRACKED
from tests.conftest import NewStore


def push(store: Store, url: str) -> Report:
    (report,) = targets.sync(store.file, url)
    return report


def test_a_database_without_a_hub_is_told_apart(store: Store, database_url: str) -> None:
    with pytest.raises(TargetNotReadyError, match="hub init"):
        push(store, database_url)


def test_a_foreign_schema_of_our_name_is_left_alone(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("CREATE SCHEMA keystore")
    with targets.hub_admin(database_url) as admin, pytest.raises(TargetNotReadyError):
        admin.init()


def test_a_newer_hub_is_refused(store: Store, hub_url: str) -> None:
    with psycopg.connect(hub_url) as conn:
        conn.execute("UPDATE keystore.hub_info SET schema_version = 99")
    with pytest.raises(SchemaVersionError):
        push(store, hub_url)


def test_two_inits_at_once_make_one_hub(database_url: str) -> None:
    hubs = [HubAdmin(database_url) for _ in range(4)]
    made: list[bool] = []
    threads = [threading.Thread(target=lambda h=hub: made.append(h.init())) for hub in hubs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]
    for hub in hubs:
        hub.close()


def test_the_hub_has_every_column(hub_url: str) -> None:
    with psycopg.connect(hub_url) as conn:
        for table in TRACKED:
            found = conn.execute(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = 'keystore' AND table_name = %s ORDER BY ordinal_position",
                (table.hub_name,),
            ).fetchall()
            wanted = ["store_id", *(column.name for column in table.columns), "changed_at_id"]
            assert [row[0] for row in found] == wanted


def test_many_origins_share_a_hub(hub_url: str, new_store: NewStore, tmp_path: Path) -> None:
    stores = [new_store(f"origin{number}.db") for number in range(3)]
    for number, made in enumerate(stores):
        made.add_plan("free")
        made.add_account(f"user{number}@example.org", plan="free")
        push(made, hub_url)
    with pytest.raises(TargetNotReadyError, match="3 origins"):
        targets.replicate(hub_url, tmp_path / "which.db")
    for number, made in enumerate(stores):
        path = tmp_path / f"replica{number}.db"
        targets.replicate(hub_url, path, origin_id=made.info.store_id)
        with open_store(path) as file:
            assert digest.digest_store(file) == digest.digest_store(made.file)


def test_two_pushers_of_one_store_take_turns(hub_url: str, store: Store) -> None:
    errors: list[Exception] = []

    def sync_often() -> None:
        try:
            with Store.open(store.file.path) as mine:
                for number in range(8):
                    mine.add_plan(f"{threading.get_ident()} {number}")
                    push(mine, hub_url)
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=sync_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert push(store, hub_url).pushed == 0
    assert_hub_equals(hub_url, store)


def test_a_puller_beside_many_pushers_misses_nothing(
    hub_url: str, new_store: NewStore, tmp_path: Path
) -> None:
    stores = [new_store(f"origin{number}.db") for number in range(2)]
    for made in stores:
        push(made, hub_url)
    paths = [tmp_path / f"replica{number}.db" for number in range(2)]
    for made, path in zip(stores, paths, strict=True):
        targets.replicate(hub_url, path, origin_id=made.info.store_id)

    def write(made: Store) -> None:
        with Store.open(made.file.path) as mine:
            for number in range(15):
                mine.add_plan(f"plan {number}")
                push(mine, hub_url)

    threads = [threading.Thread(target=write, args=(made,)) for made in stores]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for path in paths:
            with open_store(path) as file:
                targets.sync(file, hub_url)
    for made, path in zip(stores, paths, strict=True):
        with open_store(path) as file:
            targets.sync(file, hub_url)
            assert digest.digest_store(file) == digest.digest_store(made.file)


def test_a_hub_that_takes_no_writes_leaves_the_store_ready_to_try_again(
    hub_url: str, store: Store
) -> None:
    push(store, hub_url)
    store.issue_key("ada@example.org")
    name = hub_url.rpartition("/")[2]
    with psycopg.connect(hub_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # type: ignore[call-overload,unused-ignore]
        with pytest.raises(TargetError):
            push(store, hub_url)
        conn.execute("SET default_transaction_read_only = off")
        conn.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")  # type: ignore[call-overload,unused-ignore]
    assert push(store, hub_url).pushed == 1
    assert_hub_equals(hub_url, store)


def test_a_pull_is_one_snapshot_however_the_origin_goes_on(
    hub_url: str, store: Store, tmp_path: Path
) -> None:
    push(store, hub_url)
    reader = PostgresHub(hub_url)
    with reader.pull(None, None) as cut:
        store.add_plan("late")
        push(store, hub_url)
        rows = {page.table.name: len(page.rows) for page in cut.pages}
    assert rows == {"Plans": 1, "Accounts": 1, "APIKeyStatuses": 5}
    assert cut.as_of_change == 7
    reader.close()


def test_a_row_that_the_hub_cannot_take_is_named_and_nothing_is_pushed(
    hub_url: str, store: Store
) -> None:
    """Its page is taken while the next one is read, so the failure shows late."""
    push(store, hub_url)
    conn = store.file.conn
    conn.execute("PRAGMA ignore_check_constraints = ON")
    conn.execute("INSERT INTO Plans (name) VALUES ('a' || char(0))")
    store.issue_key("ada@example.org")
    with pytest.raises(TargetError, match=r"Plans 2 cannot be pushed: name"):
        push(store, hub_url)
    conn.execute("DELETE FROM Plans WHERE plan_id = 2")
    conn.execute("PRAGMA ignore_check_constraints = OFF")
    push(store, hub_url)
    assert_hub_equals(hub_url, store)


def assert_hub_equals(url: str, store: Store) -> None:
    hub = PostgresHub(url)
    with hub.pull(store.info.store_id, None) as cut:
        assert digest.digest_pages(cut.pages) == digest.digest_store(store.file)
    hub.close()


def test_a_failed_pull_leaves_the_replica_and_the_connection_usable(
    hub_url: str, store: Store, tmp_path: Path
) -> None:
    push(store, hub_url)
    path = tmp_path / "replica.db"
    targets.replicate(hub_url, path)
    store.add_plan("pro")
    push(store, hub_url)
    hub = PostgresHub(hub_url)
    with pytest.raises(ZeroDivisionError), hub.pull(None, None):
        raise ZeroDivisionError
    with open_store(path) as file:
        report = Report("")
        engine.pull(file, hub, hub_url, report)
        assert report.pulled == 1
    hub.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "UPDATE Plans SET created_at = '2026-99-99 00:00:00' WHERE plan_id = 3",
            "Plans 3 .*created_at",
        ),
        ("UPDATE Plans SET name = CAST(x'610062' AS TEXT) WHERE plan_id = 3", "Plans 3 .*NUL"),
        ("UPDATE Plans SET max_staleness_seconds = 'soon' WHERE plan_id = 3", "Plans 3 .*number"),
        ("UPDATE APIKeys SET account_id = 1.5", "APIKeys 1 .*number"),
    ],
)
def test_a_row_that_cannot_be_pushed_is_named_and_nothing_is_pushed(
    hub_url: str, store: Store, damage: str, said: str
) -> None:
    push(store, hub_url)
    store.issue_key("ada@example.org")
    for number in range(3):
        store.add_plan(f"plan {number}")
    store.file.conn.execute("PRAGMA ignore_check_constraints = ON")
    store.file.conn.execute("PRAGMA foreign_keys = OFF")
    store.file.conn.execute(damage)
    with pytest.raises(TargetError, match=said):
        push(store, hub_url)
    with psycopg.connect(hub_url) as conn:
        assert conn.execute("SELECT count(*) FROM keystore.plans").fetchone() == (1,)
    store.file.conn.execute("DELETE FROM Plans WHERE plan_id = 3")
    store.file.conn.execute("UPDATE APIKeys SET account_id = 1")
    store.file.conn.execute("PRAGMA ignore_check_constraints = OFF")
    push(store, hub_url)
    assert_hub_equals(hub_url, store)


def test_a_hub_that_lost_rows_is_noticed_and_the_last_good_state_stays(
    hub_url: str, store: Store, tmp_path: Path
) -> None:
    push(store, hub_url)
    path = tmp_path / "replica.db"
    targets.replicate(hub_url, path)
    with psycopg.connect(hub_url) as conn:
        conn.execute("DELETE FROM keystore.accounts")
        conn.execute("UPDATE keystore.stores SET tombstone_horizon = 1000")
    with pytest.raises(IncompleteStateError, match="1 Accounts"):
        targets.replicate(hub_url, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    store.add_plan("new")
    push(store, hub_url)
    with open_store(path) as file:
        before = digest.digest_store(file)
        with pytest.raises(IncompleteStateError):
            targets.sync(file, hub_url)
        assert digest.digest_store(file) == before
