"""Migrations: fresh = migrated, nothing is lost, and two processes may try at once."""

import lzma
import multiprocessing
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from keystore import KeystoreError, Reason, Store, Validator, tokens
from keystore.changelog import head
from keystore.db import SCHEMA_VERSION, connect, open_store, versions
from keystore.doctor import examine
from keystore.errors import DamagedStoreError, SchemaVersionError
from keystore.migrate import expected_schema, schema_of, upgrade
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.hub_connection import HUB_SCHEMA_VERSION
from keystore.sync.memory import MemoryHub
from tests.conftest import NewStore

FIXTURES = Path(__file__).parent / "fixtures"
OLD_STORES = sorted(FIXTURES.glob("store-v*.db.xz"))
TOKENS = [tokens.build(UUID(f"01890a5d-ac96-774b-bcce-b302099a80{n:02x}"), n) for n in (1, 2, 3)]


def unpack(name: str, folder: Path) -> Path:
    path = folder / name.removesuffix(".xz")
    path.write_bytes(lzma.decompress((FIXTURES / name).read_bytes()))
    path.chmod(0o600)
    return path


def version_of(path: Path) -> int:
    conn = connect(path)
    try:
        return versions(conn)[1]
    finally:
        conn.close()


@pytest.fixture(params=[path.name for path in OLD_STORES])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of each released schema version."""
    return unpack(request.param, tmp_path)


def test_every_older_version_has_a_fixture() -> None:
    assert [path.name for path in OLD_STORES] == [
        f"store-v{version}.db.xz" for version in range(1, SCHEMA_VERSION)
    ]


def test_an_older_store_is_refused_until_it_is_migrated(old: Path) -> None:
    with pytest.raises(SchemaVersionError) as caught:
        open_store(old)
    assert f"`keystore migrate --db {old}`" in str(caught.value)
    assert upgrade(old)[1] == SCHEMA_VERSION
    assert upgrade(old) == (SCHEMA_VERSION, SCHEMA_VERSION)


def test_a_migrated_store_equals_a_fresh_one(old: Path) -> None:
    upgrade(old)
    with open_store(old) as file:
        assert schema_of(file.conn) == expected_schema(is_replica=False)
        assert examine(file) == []


def test_a_migration_keeps_every_row_and_every_key_works_as_before(old: Path) -> None:
    upgrade(old)
    with Validator(old) as validator:
        assert [validator.check(token, cost=0).reason for token in TOKENS] == [
            Reason.OK,
            Reason.OK,
            Reason.REVOKED,
        ]
    with Store.open(old) as store:
        found = store.keys()
        assert [key.status for key in found] == ["assigned", "assigned", "revoked"]
        assert store.status().usage_total == 7
        assert [plan.name for plan in store.plans()] == ["free", "pro"]
        # ids go on where they were, also for a key that was deleted in the old version
        issued = store.issue_key("ada@example.org")
        assert issued.key.api_key_id == 4


def test_a_migrated_store_ships_what_is_new_with_its_next_push(old: Path) -> None:
    hub = MemoryHub()
    upgrade(old)
    with open_store(old) as file:
        engine.push(file, hub, "memory:", Report(""))
        engine.replicate(hub, "memory:", old.with_name("replica.db"), Report(""))
        with open_store(old.with_name("replica.db")) as replica:
            assert digest.digest_store(replica) == digest.digest_store(file)


def test_a_migrated_replica_stays_read_only_and_goes_on(old: Path, tmp_path: Path) -> None:
    path = unpack("replica-v1.db.xz", tmp_path)
    upgrade(path)
    upgrade(old)
    hub = MemoryHub()
    with open_store(old) as origin, open_store(path) as replica:
        assert schema_of(replica.conn) == expected_schema(is_replica=True)
        engine.push(origin, hub, "memory:", Report(""))
        engine.pull(replica, hub, "memory:", Report(""))
        assert digest.digest_store(replica) == digest.digest_store(origin)
        with pytest.raises(Exception, match="read-only replica"):
            replica.conn.execute("DELETE FROM Services; ")
            replica.conn.execute("INSERT INTO Services (name) VALUES ('x')")


def test_changes_that_the_old_triggers_missed_are_pushed_after_the_migration(
    old: Path, new_store: NewStore
) -> None:
    hub = MemoryHub()
    conn = connect(old)
    head_before = head(conn)
    conn.executescript(
        "DROP TRIGGER trg_apikeys_delete; DELETE FROM APIKeys WHERE api_key_id = 2;"
        "DROP TRIGGER trg_plans_update; UPDATE Plans SET name = 'unseen' WHERE plan_id = 1"
    )
    conn.close()
    upgrade(old)
    with open_store(old) as file:
        # whoever has acknowledged anything of the old log gets everything
        assert head(file.conn) == file.info().log_horizon > head_before
        engine.push(file, hub, "memory:", Report(""))


def test_what_is_not_ours_is_kept_or_refused(old: Path) -> None:
    conn = connect(old)
    conn.executescript(
        "CREATE TABLE Mine (x); CREATE INDEX mine_by_label ON APIKeys (label);"
        "CREATE TRIGGER mine_too AFTER INSERT ON APIKeys BEGIN INSERT INTO Mine VALUES (1); END;"
        "ALTER TABLE Accounts ADD COLUMN owner"
    )
    with pytest.raises(DamagedStoreError, match="owner"):
        upgrade(old)
    conn.execute("ALTER TABLE Accounts DROP COLUMN owner")
    conn.close()
    upgrade(old)
    with open_store(old) as file:
        assert {("index", "mine_by_label"), ("trigger", "mine_too")} <= schema_of(file.conn).keys()


def test_a_migration_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, was = old.read_bytes(), version_of(old)
    read = __import__("keystore.sql", fromlist=["read"]).read

    def broken(name: str) -> str:
        return str(read(name)) + ("\nINSERT INTO Nowhere VALUES (1);" if name == "triggers" else "")

    with monkeypatch.context() as patch, pytest.raises(KeystoreError):
        patch.setattr("keystore.sql.read", broken)
        upgrade(old)
    conn = connect(old)
    assert versions(conn)[1] == was
    assert conn.execute("SELECT count(*) FROM APIKeys").fetchone() == (3,)
    conn.close()
    assert old.read_bytes()[:16] == before[:16]
    assert upgrade(old) == (was, SCHEMA_VERSION)


def _upgrade(path: str) -> tuple[int, int]:
    return upgrade(path)


def distrusts(path: Path) -> int:
    conn = connect(path)
    try:
        (count,) = conn.execute("SELECT count(*) FROM ChangeLog WHERE record_id = 0").fetchone()
        return int(count)
    finally:
        conn.close()


def test_two_processes_that_migrate_at_once_do_it_once(old: Path) -> None:
    was, distrusted = version_of(old), distrusts(old)
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        results = pool.map(_upgrade, [str(old)] * 3)
    assert sorted(results) == [(was, SCHEMA_VERSION)] + [(SCHEMA_VERSION, SCHEMA_VERSION)] * 2
    with open_store(old) as file:
        assert examine(file) == []
    assert distrusts(old) == distrusted + 1


def test_a_store_with_orphans_is_migrated_with_them(old: Path) -> None:
    conn = connect(old)
    conn.execute("DELETE FROM Accounts WHERE account_id = 2")
    conn.close()
    upgrade(old)
    with open_store(old) as file:
        assert file.conn.execute("SELECT count(*) FROM APIKeys").fetchone() == (3,)
        assert {item.id for item in examine(file)} == {"orphans"}


# -- the hub -----------------------------------------------------------------------------------


def columns(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as conn:
        return (
            conn.execute(
                "SELECT table_name, column_name, data_type, is_nullable, column_default"
                " FROM information_schema.columns WHERE table_schema = 'keystore' ORDER BY 1, 2"
            ).fetchall()
            + conn.execute(
                "SELECT indexname, indexdef FROM pg_indexes"
                " WHERE schemaname = 'keystore' ORDER BY 1"
            ).fetchall()
            + conn.execute(
                "SELECT tablename, policyname, cmd, qual, with_check FROM pg_policies"
                " WHERE schemaname = 'keystore' ORDER BY 1, 2"
            ).fetchall()
            + conn.execute(
                "SELECT relname, relrowsecurity, relacl::TEXT FROM pg_class"
                " WHERE relnamespace = 'keystore'::regnamespace ORDER BY 1"
            ).fetchall()
            + conn.execute(
                "SELECT pg_get_functiondef(pg_proc.oid), proacl::TEXT, nspacl::TEXT"
                " FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace"
                " WHERE nspname = 'keystore' ORDER BY 1"
            ).fetchall()
        )


def old_hub(url: str, version: int = 1) -> None:
    with psycopg.connect(url) as conn:
        conn.execute((FIXTURES / f"hub-v{version}.sql").read_bytes())


@pytest.mark.parametrize("version", range(1, HUB_SCHEMA_VERSION))
def test_a_migrated_hub_equals_a_fresh_one(database_url: str, version: int) -> None:
    with targets.hub_admin(database_url) as admin:
        admin.init()
        fresh = columns(database_url)
        with psycopg.connect(database_url) as conn:
            conn.execute("DROP SCHEMA keystore CASCADE")
        old_hub(database_url, version)
        assert admin.migrate() == (version, HUB_SCHEMA_VERSION)
        assert admin.migrate() == (HUB_SCHEMA_VERSION, HUB_SCHEMA_VERSION)
        assert columns(database_url) == fresh


def test_an_older_hub_is_refused_until_it_is_migrated(
    database_url: str, new_store: NewStore
) -> None:
    old_hub(database_url)
    store = new_store()
    with pytest.raises(SchemaVersionError, match="keystore hub migrate"):
        targets.sync(store.file, database_url)
    with targets.hub_admin(database_url) as admin:
        admin.migrate()
    targets.sync(store.file, database_url)
