"""Compaction of the hub: forgets what everybody knows, and whoever does not gets everything."""

import json
import threading
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from keystore import Store
from keystore.cli import main
from keystore.db import open_store
from keystore.errors import TargetUnavailableError
from keystore.sync import digest, exchange, hub_compact, hub_connection, targets
from keystore.sync.hub_compact import Compaction
from keystore.sync.postgres import PostgresHub
from tests.conftest import NewStore

DAY = 86400


def compact(url: str, lease: float = 30 * DAY) -> list[Compaction]:
    with targets.hub_admin(url) as admin:
        return list(hub_compact.compact(admin, lease))


def tombstones(url: str) -> int:
    with psycopg.connect(url) as conn:
        return len(conn.execute("SELECT FROM keystore.tombstones").fetchall())


def silent_for(url: str, path: Path, days: int) -> None:
    with open_store(path) as file, psycopg.connect(url) as conn:
        conn.execute(
            "UPDATE keystore.replicas SET last_seen_at = now() - make_interval(days => %s)"
            " WHERE store_id = %s",
            (days, file.info().store_id),
        )


def pushed_deletions(store: Store, url: str, count: int = 3) -> None:
    """Push keys, then push that they are gone."""
    issued = [store.issue_key("ada@example.org") for _ in range(count)]
    targets.sync(store.file, url)
    for each in issued:
        store.delete_key(each.key.api_key)
    targets.sync(store.file, url)


def pull(path: Path, url: str) -> list[int] | None:
    """Sync a replica; return the deletions that it was told, ``None`` if it got everything."""
    with open_store(path) as file:
        hub = PostgresHub(url)
        with hub.pull(file.info().origin_id, file.info().as_of_change) as cut:
            deleted = [record_id for page in cut.pages for record_id in page.deleted]
            is_whole = cut.is_everything
        hub.close()
        targets.sync(file, url)
    return None if is_whole else deleted


def same(path: Path, store: Store) -> bool:
    with open_store(path) as file:
        return digest.digest_store(file) == digest.digest_store(store.file)


def id_of(path: Path) -> str:
    with open_store(path) as file:
        return file.info().store_id


@pytest.fixture
def replica(store: Store, hub_url: str, tmp_path: Path) -> Path:
    """A replica of keys that are deleted after it was made."""
    for _ in range(4):
        store.issue_key("ada@example.org")
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, tmp_path / "replica.db")
    return tmp_path / "replica.db"


def delete_all(store: Store, url: str) -> None:
    store.file.conn.execute("DELETE FROM APIKeys")
    targets.sync(store.file, url)


def test_what_every_replica_has_seen_is_forgotten(
    store: Store, hub_url: str, replica: Path
) -> None:
    delete_all(store, hub_url)
    before = tombstones(hub_url)
    pull(replica, hub_url)
    (done,) = compact(hub_url)
    assert (done.removed, done.kept) == (before - 1, 1)  # the highest id of the keys is kept
    assert (done.removed, done.held_by) == (3, [])
    with open_store(replica) as file:
        assert done.horizon == file.info().as_of_change
    assert compact(hub_url) == [Compaction(store.info.store_id, 0, done.kept, done.horizon, [])]
    store.add_plan("later")
    targets.sync(store.file, hub_url)
    assert pull(replica, hub_url) == []
    assert same(replica, store)


def test_a_replica_at_the_horizon_gets_exactly_the_deletions(
    store: Store, hub_url: str, replica: Path, tmp_path: Path
) -> None:
    ahead = tmp_path / "ahead.db"
    pushed_deletions(store, hub_url)
    pull(replica, hub_url)  # this one stays here
    delete_all(store, hub_url)
    targets.replicate(hub_url, ahead)
    (done,) = compact(hub_url)
    with open_store(replica) as file:
        assert done.horizon == file.info().as_of_change
    assert done.held_by == [id_of(replica)]
    assert done.removed > 0
    assert pull(replica, hub_url) == [1, 2, 3, 4]
    assert same(replica, store)


def test_a_silent_replica_loses_its_hold_and_gets_everything_when_it_returns(
    store: Store, hub_url: str, replica: Path
) -> None:
    delete_all(store, hub_url)
    silent_for(hub_url, replica, 29)
    (held,) = compact(hub_url)
    assert (held.removed, held.held_by) == (0, [id_of(replica)])
    silent_for(hub_url, replica, 31)
    (done,) = compact(hub_url)
    assert (done.removed, done.held_by) == (3, [])
    assert done.horizon > held.horizon
    assert pull(replica, hub_url) is None
    assert same(replica, store)
    store.add_plan("later")
    targets.sync(store.file, hub_url)
    assert pull(replica, hub_url) == []


def test_one_that_is_behind_the_horizon_already_holds_nothing(
    store: Store, hub_url: str, replica: Path
) -> None:
    delete_all(store, hub_url)
    compact(hub_url, 0)
    with open_store(replica) as file:
        hub = PostgresHub(hub_url)
        exchange.check_in(file, hub)
        hub.close()
    pushed_deletions(store, hub_url)
    (done,) = compact(hub_url)
    assert done.held_by == []
    assert done.removed > 0
    assert pull(replica, hub_url) is None
    assert same(replica, store)


def test_a_replica_that_never_checked_in_is_right_as_well(
    store: Store, hub_url: str, replica: Path
) -> None:
    with psycopg.connect(hub_url) as conn:
        conn.execute("DELETE FROM keystore.replicas")
    delete_all(store, hub_url)
    (done,) = compact(hub_url)
    assert done.removed == 3
    assert pull(replica, hub_url) is None
    assert same(replica, store)


def test_a_replica_whose_clock_at_the_hub_is_in_the_future_does_not_hold_for_ever(
    store: Store, hub_url: str, replica: Path
) -> None:
    delete_all(store, hub_url)
    silent_for(hub_url, replica, -1000)
    (done,) = compact(hub_url)
    assert done.held_by == []
    pull(replica, hub_url)
    assert same(replica, store)


def test_ids_that_were_given_away_are_known_after_a_compaction(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    targets.sync(store.file, hub_url)
    store.file.conn.execute("VACUUM INTO ?", (str(copy),))
    pushed_deletions(store, hub_url)
    assert compact(hub_url)[0].removed > 0
    with Store.open(copy) as twin:
        targets.sync(twin.file, hub_url, reconcile=True)
        twin.issue_key("ada@example.org")
        ids = twin.file.conn.execute("SELECT api_key_id FROM APIKeys").fetchall()
    assert ids == [(4,)]


def test_each_origin_is_compacted_by_its_own_replicas(
    store: Store, hub_url: str, replica: Path, new_store: NewStore
) -> None:
    delete_all(store, hub_url)
    other = new_store("other.db")
    other.add_plan("free")
    other.add_account("ada@example.org", plan="free")
    pushed_deletions(other, hub_url)
    first, second = compact(hub_url)
    assert (first.origin_id, first.held_by) == (store.info.store_id, [id_of(replica)])
    assert (second.origin_id, second.held_by) == (other.info.store_id, [])
    assert (first.removed, second.removed) == (0, 2)


def test_pushes_pulls_and_compactions_at_once_lose_nothing(
    store: Store, hub_url: str, replica: Path
) -> None:
    errors: list[Exception] = []
    done = threading.Event()

    def keep_compacting() -> None:
        try:
            while not done.is_set():
                compact(hub_url)
                compact(hub_url, 0)
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            errors.append(error)

    thread = threading.Thread(target=keep_compacting)
    thread.start()
    try:
        for _ in range(8):
            pushed_deletions(store, hub_url, 2)
            with open_store(replica) as file:
                targets.sync(file, hub_url)
            assert same(replica, store)
    finally:
        done.set()
        thread.join()
    assert errors == []


def test_a_push_that_is_under_way_keeps_only_its_own_origin_from_its_turn(
    store: Store, hub_url: str, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_store("other.db")
    for each in (store, other):
        targets.sync(each.file, hub_url)
    impatient = {"give_up_in_time": "SET LOCAL lock_timeout = '50ms'"}
    monkeypatch.setattr(hub_connection, "_Q", {**hub_connection._Q, **impatient})
    lock = "SELECT FROM keystore.stores WHERE store_id = %s FOR UPDATE"
    seen = []
    with psycopg.connect(hub_url) as busy:
        busy.execute(lock, (store.info.store_id,))
        with (
            targets.hub_admin(hub_url) as admin,
            pytest.raises(TargetUnavailableError, match="another push"),
        ):
            for item in hub_compact.compact(admin, DAY):
                seen.append(item.origin_id)  # noqa: PERF401
    assert seen == [other.info.store_id]


def test_the_command_says_what_it_did_and_who_holds_back(
    store: Store, hub_url: str, replica: Path
) -> None:
    delete_all(store, hub_url)
    run = CliRunner().invoke
    said = run(main, ["hub", "compact", hub_url]).stdout
    assert f"held back by {id_of(replica)}." in said
    (done,) = json.loads(run(main, ["hub", "compact", hub_url, "--lease", "0", "--json"]).stdout)
    assert (done["removed"], done["kept"], done["held_by"]) == (3, 1, [])
    assert run(main, ["hub", "compact", hub_url, "--lease", "soon"]).exit_code == 2
    assert run(main, ["hub", "compact", hub_url, "--lease=-5"]).exit_code == 1
