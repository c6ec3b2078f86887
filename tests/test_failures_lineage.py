"""Who has seen what: hubs put back or made anew, origins restored, several targets.

A replica asks for what is later than its own change. Each test here has a way in which that alone
would leave it with a record that the origin has changed or deleted since: a key that is gone would
pass for ever.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keystore import Reason, Store, Validator
from keystore.backup import backup, restore
from keystore.db import open_store
from keystore.errors import ForkedStoreError, StaleTargetError
from keystore.sync import digest, engine, exchange, repository, targets
from keystore.sync.engine import Report
from keystore.sync.folder import Folder
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from tests.centre import Centre
from tests.failures import copy, pull, push

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def replica(centre: Centre, store: Store, tmp_path: Path) -> Path:
    push(store, centre.hub)
    engine.replicate(centre.hub, "", tmp_path / "replica.db", Report(""))
    return tmp_path / "replica.db"


def assert_equal(store: Store, *replicas: Path) -> None:
    for path in replicas:
        with open_store(path) as file:
            assert digest.digest_store(file) == digest.digest_store(store.file)


def set_label(store: Store, label: str) -> None:
    store.file.conn.execute("UPDATE APIKeys SET label = ?", (label,))


def test_what_was_deleted_before_a_hub_was_made_anew_leaves_the_replicas(
    centre: Centre, store: Store, tmp_path: Path
) -> None:
    lost, path = MemoryHub(), tmp_path / "replica.db"
    key = store.issue_key("ada@example.org").key.api_key
    push(store, lost)
    engine.replicate(lost, "", path, Report(""))
    store.delete_key(key)
    push(store, centre.hub)
    pull(path, centre.hub)
    assert_equal(store, path)


def test_what_a_target_never_had_is_deleted_from_a_replica_that_had_it_elsewhere(
    centre: Centre, replica: Path, store: Store
) -> None:
    other = MemoryHub()
    key = store.issue_key("ada@example.org").key.api_key
    push(store, other)
    pull(replica, other)
    store.delete_key(key)
    push(store, centre.hub)
    pull(replica, centre.hub)
    assert_equal(store, replica)


def test_a_row_that_came_back_to_what_a_target_has_reaches_a_replica_that_saw_the_detour(
    centre: Centre, replica: Path, store: Store
) -> None:
    other = MemoryHub()
    store.issue_key("ada@example.org", label="first")
    push(store, centre.hub)
    set_label(store, "detour")
    push(store, other)
    pull(replica, other)
    set_label(store, "first")
    push(store, centre.hub)
    pull(replica, centre.hub)
    assert_equal(store, replica)


def test_what_a_log_no_longer_names_leaves_the_replicas_too(
    centre: Centre, replica: Path, store: Store
) -> None:
    from keystore import changelog

    other = MemoryHub()
    key = store.issue_key("ada@example.org").key.api_key
    push(store, other)
    pull(replica, other)
    store.delete_key(key)
    with store.file.write() as conn:
        changelog.compact(conn, changelog.head(conn))
    store.add_plan("later")
    push(store, centre.hub)
    pull(replica, centre.hub)
    assert_equal(store, replica)


@pytest.mark.parametrize("change", ["delete", "undo"])
def test_a_hub_that_was_put_back_makes_no_replica_keep_what_it_forgot(
    centre: Centre, replica: Path, store: Store, change: str
) -> None:
    store.issue_key("ada@example.org", label="first")
    push(store, centre.hub)
    centre.keep()
    doomed = store.issue_key("ada@example.org").key.api_key
    set_label(store, "second")
    push(store, centre.hub)
    pull(replica, centre.hub)
    centre.put_back()
    with pytest.raises(ForkedStoreError, match="put back"):
        push(store, centre.hub)
    with pytest.raises(StaleTargetError):
        pull(replica, centre.hub)
    if change == "delete":
        store.delete_key(doomed)
    else:
        set_label(store, "first")
    push(store, centre.hub, reconcile=True)
    pull(replica, centre.hub)
    assert_equal(store, replica)
    assert push(store, centre.hub).pushed == 0


def test_a_hub_put_back_to_before_the_first_push_gets_everything(
    centre: Centre, store: Store, tmp_path: Path
) -> None:
    centre.keep()
    push(store, centre.hub)
    engine.replicate(centre.hub, "", tmp_path / "replica.db", Report(""))
    doomed = store.issue_key("ada@example.org").key.api_key
    push(store, centre.hub)
    pull(tmp_path / "replica.db", centre.hub)
    store.delete_key(doomed)
    centre.put_back()
    with pytest.raises(ForkedStoreError):
        push(store, centre.hub)
    push(store, centre.hub, reconcile=True)
    pull(tmp_path / "replica.db", centre.hub)
    assert_equal(store, tmp_path / "replica.db")


def test_hub_and_origin_put_back_together_take_a_replica_that_was_ahead_along(
    centre: Centre, replica: Path, store: Store
) -> None:
    """Both from one night's backup, so their tokens agree; only the replica knows of the day."""
    centre.keep()
    backup(store.file, replica.with_name("backup.db"))
    store.issue_key("ada@example.org", label="of the lost day")
    push(store, centre.hub)
    pull(replica, centre.hub)
    centre.put_back()
    restore(replica.with_name("backup.db"), replica.with_name("restored.db"))
    with Store.open(replica.with_name("restored.db")) as restored:
        restored.add_plan("one")
        restored.add_plan("two")
        push(restored, centre.hub)
        pull(replica, centre.hub)
        assert_equal(restored, replica)
        assert pull(replica, centre.hub).pulled == 0
        restored.add_plan("three")
        push(restored, centre.hub)
        assert pull(replica, centre.hub).pulled == 1


@pytest.mark.parametrize("way", ["restored", "copied"])
def test_an_origin_put_back_reconciles_with_every_target_and_replicas_ahead_converge(
    centre: Centre, replica: Path, store: Store, tmp_path: Path, way: str
) -> None:
    files, keys, other = tmp_path / "files", tmp_path / "keys", MemoryHub()
    root = repository.create(Folder(files), keys).read_bytes()
    targets.sync(store.file, str(files), keys=keys)
    targets.replicate(str(files), tmp_path / "by-files.db", root=root)
    push(store, other)
    if way == "restored":
        backup(store.file, tmp_path / "backup.db")
        restore(tmp_path / "backup.db", tmp_path / "again.db")
    else:
        copy(store.file.path, "again.db")
    # The lost part, of which each target has seen another piece, and the replica the most.
    lost = store.issue_key("ada@example.org")
    push(store, centre.hub)
    store.add_plan("lost")
    push(store, other)
    store.add_service("lost")
    targets.sync(store.file, str(files), keys=keys)
    pull(replica, other)
    with open_store(tmp_path / "by-files.db") as file:
        targets.sync(file, str(files))
    with Store.open(tmp_path / "again.db") as again:
        mine = again.issue_key("ada@example.org")
        again.add_plan("mine")
        assert mine.key.api_key != lost.key.api_key
        attempts: list[Callable[[], object]] = [
            lambda: push(again, centre.hub),
            lambda: push(again, other),
            lambda: targets.sync(again.file, str(files), keys=keys),
        ]
        for attempt in attempts:
            with pytest.raises(ForkedStoreError):
                attempt()
        push(again, centre.hub, reconcile=True)
        push(again, other, reconcile=True)
        targets.sync(again.file, str(files), keys=keys, reconcile=True)
        again.issue_key("ada@example.org")
        push(again, centre.hub)
        push(again, other)
        targets.sync(again.file, str(files), keys=keys)
        pull(replica, centre.hub)
        with open_store(tmp_path / "by-files.db") as file:
            targets.sync(file, str(files))
        assert_equal(again, replica, tmp_path / "by-files.db")
        for hub in (centre.hub, other):
            with hub.pull(again.info.store_id, None) as cut:
                assert cut.digests() == digest.digest_store(again.file)
        # 1 was given twice, before anybody could know; afterwards an id is of one key only
        ids = {change.record_id for change in again.changes() if change.table_name == "APIKeys"}
        assert ids == {1, 2}
    with pytest.raises(ForkedStoreError):
        push(store, centre.hub)


def test_a_hub_put_back_and_revoking_again_in_another_order_hides_no_revocation(
    centre: Centre, replica: Path, store: Store
) -> None:
    """The second revocation of the lost part becomes the second one again; the first is new."""
    first, second, third = (store.issue_key("ada@example.org") for _ in range(3))
    push(store, centre.hub)
    centre.keep()
    for issued in (first, second):
        centre.revoke(issued.key.api_key)
    receive(replica, centre.hub)
    centre.put_back()
    for issued in (third, second):
        centre.revoke(issued.key.api_key)
    assert receive(replica, centre.hub).revocations == 2
    pull(replica, centre.hub)
    with Validator(replica) as validator:
        for issued in (first, second, third):
            assert validator.check(issued.token).reason is Reason.REVOKED
    assert receive(replica, centre.hub).revocations == 0


def receive(path: Path, hub: MemoryHub | PostgresHub) -> Report:
    report = Report("")
    with open_store(path) as file:
        exchange.receive_revocations(file, hub, "", report)
    return report
