"""Compaction: whoever is live gets every change, whoever was silent gets everything."""

from datetime import timedelta
from pathlib import Path

import pytest

from keystore import Store
from keystore.changelog import Reader
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import CompactedLogError
from keystore.sync import digest, engine
from keystore.sync.compact import compact
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import everything
from tests.failures import push


def assert_equal(store: Store, hub: MemoryHub) -> None:
    assert digest.digest_pages(everything(hub, None)) == digest.digest_store(store.file)


def rename_often(store: Store, times: int) -> None:
    for number in range(times):
        store.file.conn.execute("UPDATE Plans SET name = ?", (f"plan {number}",))


def test_what_every_target_has_goes_and_the_latest_of_the_rest_stays(store: Store) -> None:
    near, far = MemoryHub(), MemoryHub()
    push(store, near, "near:")
    push(store, far, "far:")
    rename_often(store, 50)
    push(store, near, "near:")
    rename_often(store, 50)
    done = compact(store.file)
    assert (done.removed, done.kept, done.horizon, done.held_by) == (106, 1, 7, "far:")
    assert push(store, far, "far:").pushed == 1
    assert push(store, near, "near:").pushed == 1
    assert_equal(store, near)
    assert_equal(store, far)
    assert examine(store.file) == []


def test_a_target_that_was_silent_past_its_lease_gets_everything_when_it_returns(
    store: Store,
) -> None:
    hub = MemoryHub()
    push(store, hub)
    doomed = store.issue_key("ada@example.org")
    push(store, hub)
    store.delete_key(doomed.key.api_key)
    store.file.conn.execute("UPDATE SyncTargets SET synced_at = datetime('now', '-31 days')")
    done = compact(store.file)
    assert (done.kept, done.held_by, done.released) == (0, None, ["hub:"])
    assert push(store, hub).pushed == 8
    assert_equal(store, hub)
    assert push(store, hub).pushed == 0


def test_a_lease_is_the_operators_to_choose(store: Store) -> None:
    hub = MemoryHub()
    push(store, hub)
    rename_often(store, 3)
    store.file.conn.execute("UPDATE SyncTargets SET synced_at = datetime('now', '-2 days')")
    assert compact(store.file, lease=timedelta(days=3)).held_by == "hub:"
    assert compact(store.file, lease=timedelta(days=1)).released == ["hub:"]


def test_changes_go_on_after_everything_was_removed(store: Store) -> None:
    hub = MemoryHub()
    push(store, hub)
    assert compact(store.file).kept == 0
    store.add_plan("new")
    assert push(store, hub).pushed == 1
    assert_equal(store, hub)
    assert examine(store.file) == []


def test_a_log_row_that_somebody_removes_is_still_found(store: Store) -> None:
    compact(store.file)
    rename_often(store, 3)
    store.file.conn.executescript(
        "UPDATE StoreInfo SET replaying = 1;"
        "DELETE FROM ChangeLog WHERE change_id = (SELECT max(change_id) - 1 FROM ChangeLog);"
        "UPDATE StoreInfo SET replaying = 0"
    )
    assert [item.id for item in examine(store.file)] == ["log_gap"]
    compact(store.file)  # the teardown looks at this store, too


def test_a_reader_that_is_overtaken_by_a_compaction_stops(store: Store) -> None:
    for number in range(5):
        store.add_plan(f"plan {number}")
    pages = iter(Reader(store.file, 7, page_size=2))
    next(pages)
    with Store.open(store.file.path) as other:
        other.add_plan("meanwhile")
        for number in range(5):
            other.add_plan(f"meanwhile {number}")
        compact(other.file)
    with pytest.raises(CompactedLogError):
        list(pages)


def test_a_replica_compacts_its_own_log(store: Store, tmp_path: Path) -> None:
    hub = MemoryHub()
    push(store, hub)
    engine.replicate(hub, "hub:", tmp_path / "replica.db", Report(""))
    with open_store(tmp_path / "replica.db") as replica:
        rename_often(store, 3)
        push(store, hub)
        engine.pull(replica, hub, "hub:", Report(""))
        assert compact(replica).kept == 0
        store.add_plan("new")
        push(store, hub)
        engine.pull(replica, hub, "hub:", Report(""))
        assert digest.digest_store(replica) == digest.digest_store(store.file)
        assert examine(replica) == []


def test_a_silent_target_that_lacks_nothing_is_not_said_to_need_everything(store: Store) -> None:
    hub = MemoryHub()
    push(store, hub)
    store.file.conn.execute("UPDATE SyncTargets SET synced_at = datetime('now', '-31 days')")
    assert compact(store.file).released == []
    store.add_plan("new")
    assert push(store, hub).pushed == 1
