"""A restored origin goes on: by digests, with ids that nobody has seen, and replicas follow."""

from pathlib import Path

import pytest

from keystore import Store, Validator
from keystore.backup import backup, restore
from keystore.changelog import head
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import ForkedStoreError, WrongRoleError
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from tests.test_target_contract import Pair, target

__all__ = ["target"]


def reconcile(pair: Pair, store: Store) -> Report:
    report = Report(pair.name)
    engine.push(store.file, pair.sink, pair.name, report, reconcile=True)
    return report


@pytest.fixture
def restored(target: Pair, store: Store, tmp_path: Path) -> Path:
    """An origin that was put back to before its last two pushes; the replica has seen them."""
    kept = store.issue_key("ada@example.org", label="kept")
    target.push(store)
    backup(store.file, tmp_path / "backup.db")
    store.issue_key("ada@example.org", label="lost")
    store.add_plan("lost")
    store.revoke_key(kept.key.api_key)
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    store.add_plan("lost too")
    target.push(store)
    target.pull(tmp_path / "replica.db")
    restore(tmp_path / "backup.db", tmp_path / "restored.db")
    return tmp_path / "restored.db"


def test_a_restored_origin_is_stopped_and_told_how_to_go_on(target: Pair, restored: Path) -> None:
    with Store.open(restored) as store, pytest.raises(ForkedStoreError, match="--reconcile"):
        target.push(store)


def test_after_reconciling_target_and_replica_are_as_the_origin(
    target: Pair, store: Store, restored: Path, tmp_path: Path
) -> None:
    with Store.open(restored) as again:
        report = reconcile(target, again)
        if target.name.startswith("postgresql:"):  # the others compare when all is there
            assert report.reconciled == report.pushed
            assert report.pushed is not None
            assert 0 < report.pushed < 12
        target.pull(tmp_path / "replica.db")
        with open_store(tmp_path / "replica.db") as replica:
            assert digest.digest_store(replica) == digest.digest_store(again.file)
            assert [f for f in examine(replica) if f.severity == "error"] == []
        assert [f for f in examine(again.file) if f.severity == "error"] == []
        again.add_plan("new")
        assert target.push(again).pushed == 1
        target.pull(tmp_path / "replica.db")
        with open_store(tmp_path / "replica.db") as replica:
            assert digest.digest_store(replica) == digest.digest_store(again.file)
    with pytest.raises(ForkedStoreError):
        target.push(store)  # the other copy is the one that stands back now


def test_no_id_is_given_twice(target: Pair, store: Store, restored: Path) -> None:
    given = store.keys()[-1].api_key_id
    with Store.open(restored) as again:
        reconcile(target, again)
        assert again.issue_key("ada@example.org").key.api_key_id > given
        assert head(again.file.conn) > head(store.file.conn)


def test_reconciling_what_needs_none_is_an_ordinary_push(target: Pair, store: Store) -> None:
    target.push(store)
    store.add_plan("new")
    report = reconcile(target, store)
    assert (report.pushed, report.reconciled) == (1, None)


def test_a_replica_has_nothing_to_reconcile(store: Store, hub_url: str, tmp_path: Path) -> None:
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file, pytest.raises(WrongRoleError):
        targets.sync(file, hub_url, reconcile=True)


def test_a_key_revoked_only_in_the_lost_part_passes_again_where_the_origin_says_so(
    target: Pair, restored: Path, tmp_path: Path
) -> None:
    """The restored origin is the truth, in both directions; the operator has chosen it."""
    with Store.open(restored) as again:
        reconcile(target, again)
        token = again.issue_key("ada@example.org").token
        target.push(again)
    target.pull(tmp_path / "replica.db")
    with Validator(tmp_path / "replica.db") as validator:
        assert validator.check(token).allowed
