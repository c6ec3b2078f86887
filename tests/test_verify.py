"""Verify and repair: the same digests on both sides, every difference named, only that shipped."""

from pathlib import Path

import psycopg
import pytest

from keystore import Store, changelog
from keystore.backup import backup
from keystore.db import StoreFile, open_store
from keystore.errors import StaleTargetError, TargetNotReadyError
from keystore.sync import digest, engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.verify import Difference, verify
from tests.test_target_contract import Pair, target

__all__ = ["target"]


def corrupt(path: Path, statement: str) -> None:
    """Change a replica behind its triggers, as a bad disk would."""
    with open_store(path) as file:
        file.conn.executescript(
            f"UPDATE StoreInfo SET replaying = 1; {statement}; UPDATE StoreInfo SET replaying = 0"
        )


def test_a_synced_store_and_its_replica_differ_in_nothing(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    store.issue_key("ada@example.org", label="naïve ☂", expires_at="2031-01-01")
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    assert verify(store.file, target.source, "").differences == []
    with open_store(tmp_path / "replica.db") as replica:
        done = verify(replica, target.source, "")
    assert done.differences == []
    assert done.buckets == 4


def test_what_was_written_since_the_last_push_is_no_difference(target: Pair, store: Store) -> None:
    doomed = store.issue_key("ada@example.org")
    target.push(store)
    store.issue_key("ada@example.org")
    store.delete_key(doomed.key.api_key)
    assert verify(store.file, target.source, "").differences == []


def test_a_replica_that_differs_is_repaired_from_the_target(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    for _ in range(3):
        store.issue_key("ada@example.org")
    target.push(store)
    target.replicate(path)
    corrupt(
        path,
        "DELETE FROM APIKeys WHERE api_key_id = 1;"
        "UPDATE APIKeys SET label = 'other' WHERE api_key_id = 2;"
        "INSERT INTO Plans (plan_id, name) VALUES (7, 'made up')",
    )
    with open_store(path) as replica:
        found = verify(replica, target.source, "")
        assert found.differences == [
            Difference("APIKeys", 1, "only there"),
            Difference("APIKeys", 2, "differs"),
            Difference("Plans", 7, "only here"),
        ]
        assert found.repaired == 0
        assert verify(replica, target.source, "", repair=True).repaired == 3
        assert verify(replica, target.source, "").differences == []
        assert digest.digest_store(replica) == digest.digest_store(store.file)


def test_a_hub_that_differs_is_repaired_from_the_origin(store: Store, hub_url: str) -> None:
    issued = [store.issue_key("ada@example.org") for _ in range(3)]
    hub = PostgresHub(hub_url)
    engine.push(store.file, hub, "hub:", Report(""))
    with psycopg.connect(hub_url) as conn:
        conn.execute("DELETE FROM keystore.api_keys WHERE api_key_id = 2")
        conn.execute("UPDATE keystore.plans SET name = 'stolen'")
        conn.execute("UPDATE keystore.accounts SET account_id = 9")
    found = verify(store.file, hub, "", repair=True)
    assert {(item.table, item.record_id, item.kind) for item in found.differences} == {
        ("Plans", 1, "differs"),
        ("Accounts", 1, "only here"),
        ("Accounts", 9, "only there"),
        ("APIKeys", 2, "only here"),
    }
    report = Report("")
    engine.push(store.file, hub, "hub:", report)
    assert report.pushed == 4
    assert verify(store.file, hub, "").differences == []
    assert issued
    hub.close()


def test_the_hub_digests_every_kind_of_value_as_we_do(store: Store, hub_url: str) -> None:
    store.add_service("maps")
    store.issue_key(
        "ada@example.org",
        label="backslash\\ ☂ 'quote\"",
        expires_at="2031-12-31T23:59:59",
        networks=["10.0.0.0/8", "2001:db8::/32"],
        metadata={"größe": [1, None, True]},
        quotas={"maps": 5},
    )
    store.add_plan("staleness", max_staleness_seconds=60)
    store.file.conn.execute("UPDATE APIKeys SET label = label || char(9) || char(10) || '\\N'")
    hub = PostgresHub(hub_url)
    engine.push(store.file, hub, "hub:", Report(""))
    with hub.pull(store.info.store_id, None) as cut:
        assert cut.digests() == digest.digest_store(store.file)
    hub.close()


def test_a_replica_ahead_of_the_target_is_not_compared(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    corrupt(tmp_path / "replica.db", "UPDATE StoreInfo SET as_of_change = 1000")
    with open_store(tmp_path / "replica.db") as replica, pytest.raises(StaleTargetError):
        verify(replica, target.source, "", repair=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_replica_that_another_process_syncs_meanwhile_is_not_put_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    hub, path = MemoryHub(), tmp_path / "replica.db"
    key = store.issue_key("ada@example.org").key.api_key
    engine.push(store.file, hub, "hub:", Report(""))
    engine.replicate(hub, "hub:", path, Report(""))
    corrupt(path, "UPDATE Plans SET name = 'other'")

    def overtake(file: StoreFile) -> digest.Buckets:
        early = digest_store(file)
        store.revoke_key(key)
        engine.push(store.file, hub, "hub:", Report(""))
        with open_store(path) as other:
            engine.pull(other, hub, "hub:", Report(""))
        return early if moment == "after" else digest_store(file)

    digest_store = digest.digest_store
    with open_store(path) as replica:
        with monkeypatch.context() as patch, pytest.raises(TargetNotReadyError):
            patch.setattr(digest, "digest_store", overtake)
            verify(replica, hub, "", repair=True)
        assert replica.info().as_of_change == changelog.head(store.file.conn)
        statuses = replica.conn.execute("SELECT status FROM APIKeys").fetchall()
    assert statuses == [("revoked",)]


def test_a_replica_of_another_count_of_the_origin_is_synced_before_it_is_compared(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    """Or the repair would note that what it has is of that count."""
    path, twin = tmp_path / "replica.db", tmp_path / "twin.db"
    hub = PostgresHub(hub_url)
    engine.push(store.file, hub, "hub:", Report(""))
    backup(store.file, twin)
    store.add_plan("lost")
    engine.push(store.file, hub, "hub:", Report(""))
    engine.replicate(hub, "hub:", path, Report(""))
    with open_store(twin) as restored:
        engine.push(restored, hub, "hub:", Report(""), reconcile=True)
    with open_store(path) as replica:
        with pytest.raises(TargetNotReadyError):
            verify(replica, hub, "", repair=True)
        engine.pull(replica, hub, "hub:", Report(""))
        assert verify(replica, hub, "").differences == []
    hub.close()
