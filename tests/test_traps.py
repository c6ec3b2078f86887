"""SQLite's traps that the other files do not show: each was reproduced, each has its way out."""

from pathlib import Path

import pytest
from sqlite_utils import Database

from keystore import Store, db
from keystore.doctor import examine
from keystore.errors import DamagedStoreError
from keystore.repair import mend
from keystore.sync import digest, engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import everything


def test_a_table_rebuild_that_drops_the_triggers_is_noticed_before_the_next_push(
    store: Store, healthy: list[Path]
) -> None:
    """Trap 5: sqlite-utils' transform() rebuilds a table; its triggers are gone without a word."""
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    other = db.connect(store.file.path)
    Database(other, recursive_triggers=False).table("Services").transform(rename={"name": "name"})
    other.close()
    store.file.conn.execute("INSERT INTO Services (name) VALUES ('unseen')")
    assert {"altered_table", "missing_trigger"} <= {item.id for item in examine(store.file)}
    with pytest.raises(DamagedStoreError, match="trg_services"):
        engine.push(store.file, hub, "memory:", Report(""))
    mend(store.file)
    engine.push(store.file, hub, "memory:", Report(""))
    assert digest.digest_pages(everything(hub, None)) == digest.digest_store(store.file)
    healthy.clear()  # the table itself stays altered; the doctor says so


def test_a_foreign_key_pragma_inside_a_transaction_does_nothing_and_ours_are_on(
    store: Store,
) -> None:
    """Trap 4: so a connection of ours cannot be talked into leaving orphans."""
    with store.file.write() as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(db.Error, match="FOREIGN KEY"):
        store.file.conn.execute("DELETE FROM Plans")


def test_the_id_of_a_purged_row_is_never_given_to_another(store: Store) -> None:
    """Trap 6: without AUTOINCREMENT the next row would get it."""
    first = store.issue_key("ada@example.org").key.api_key_id
    store.file.conn.execute("DELETE FROM APIKeys")
    assert store.issue_key("ada@example.org").key.api_key_id == first + 1


def test_a_write_waits_for_another_writer_and_never_fails_with_a_stale_snapshot(
    store: Store,
) -> None:
    """Trap 7: a transaction that reads first and then writes fails at once, unless IMMEDIATE."""
    with Store.open(store.file.path) as other:
        deferred = db.connect(store.file.path)
        deferred.execute("BEGIN")
        deferred.execute("SELECT count(*) FROM Plans").fetchone()
        other.add_plan("in between")
        with pytest.raises(db.Error, match="locked"):
            deferred.execute("INSERT INTO Plans (name) VALUES ('too late')")
        deferred.close()
        with store.file.write() as conn:  # what keystore does instead
            conn.execute("SELECT count(*) FROM Plans").fetchone()
            conn.execute("INSERT INTO Plans (name) VALUES ('in time')")


def test_the_schema_is_readable_and_writable_when_functions_are_not_trusted(store: Store) -> None:
    """Trap 15, and json_valid() in a CHECK: untrusted schemas run innocuous functions only."""
    store.file.conn.execute("PRAGMA trusted_schema = OFF")
    token = store.issue_key("ada@example.org", metadata={"a": 1}).token
    store.set_key_status(token, "suspended")
    store.delete_key(token)
