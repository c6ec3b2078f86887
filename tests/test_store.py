"""The admin side as a library: what it writes, and what it refuses before writing anything."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from keystore import KeystoreError, Store, tokens
from keystore.db import SCHEMA_VERSION, open_store
from keystore.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    SchemaVersionError,
    StoreExistsError,
    StoreNotFoundError,
    WrongRoleError,
)
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub


def test_a_token_is_kept_as_its_hash_only(store: Store) -> None:
    issued = store.issue_key("ada@example.org", label="laptop")
    secret = issued.token[-33:]
    assert issued.token not in repr(issued)
    store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    stored = b"".join(path.read_bytes() for path in store.file.path.parent.glob("origin.db*"))
    assert secret.encode() not in stored
    assert tokens.hash_token(issued.token).encode() in stored
    assert str(tokens.key_uuid(issued.token)) == issued.key.api_key


def test_uuids_are_of_version_7_and_in_the_order_of_time(store: Store) -> None:
    from uuid import UUID

    issued = [UUID(store.issue_key("ada@example.org").key.api_key) for _ in range(20)]
    assert {key.version for key in issued} == {7}
    assert issued == sorted(issued)


def test_expiry_is_stored_as_utc(store: Store) -> None:
    tokyo = datetime.fromisoformat("2031-01-01T09:00:00+09:00")
    for given in (tokyo, "2031-01-01", "2031-01-01T00:00:00Z", datetime(2031, 1, 1, tzinfo=UTC)):
        assert store.issue_key("ada@example.org", expires_at=given).key.expires_at == (
            "2031-01-01 00:00:00"
        )


def test_revoking_twice_changes_nothing_the_second_time(store: Store) -> None:
    issued = store.issue_key("ada@example.org")
    assert store.revoke_key(issued.token).is_active is False
    before = store.status().last_change
    assert store.revoke_key(issued.key.api_key.upper()).is_active is False
    assert store.status().last_change == before


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.add_plan("free"), AlreadyExistsError),
        (lambda s: s.add_plan("  "), InvalidInputError),
        (lambda s: s.add_plan("a\0b"), InvalidInputError),
        (lambda s: s.add_plan("a\x1b[2J"), InvalidInputError),
        (lambda s: s.add_plan("a\nb"), InvalidInputError),
        (lambda s: s.add_plan("gpj.\u202etxt"), InvalidInputError),
        (
            lambda s: s.issue_key("ada@example.org", expires_at="0001-01-01T00:00:00+14:00"),
            InvalidInputError,
        ),
        (lambda s: s.add_plan("\ud800"), InvalidInputError),
        (lambda s: s.add_plan("x", max_staleness_seconds=0), InvalidInputError),
        (lambda s: s.add_plan("x", max_staleness_seconds=2**63), InvalidInputError),
        (lambda s: s.add_plan("x", stale_action="maybe"), InvalidInputError),
        (lambda s: s.add_account("no address", plan="free"), InvalidInputError),
        (lambda s: s.add_account("b@example.org", plan="missing"), NotFoundError),
        (lambda s: s.add_account("ADA@example.org", plan="free"), AlreadyExistsError),
        (lambda s: s.issue_key("nobody@example.org"), NotFoundError),
        (lambda s: s.issue_key("ada@example.org", expires_at="soon"), InvalidInputError),
        (lambda s: s.issue_key("ada@example.org", expires_at="0001-01-01"), InvalidInputError),
        (lambda s: s.issue_key("ada@example.org", expires_at="2020-01-01"), InvalidInputError),
        (lambda s: s.issue_key("ada@example.org", label="x" * 201), InvalidInputError),
        (lambda s: s.revoke_key("unknown"), NotFoundError),
        (lambda s: s.keys(account="nobody@example.org"), NotFoundError),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    store: Store, call: object, error: type[KeystoreError]
) -> None:
    before = store.status()
    with pytest.raises(error) as caught:
        call(store)  # type: ignore[operator]
    assert store.status() == before
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_token_never_appears_in_an_error(store: Store) -> None:
    token = tokens.new_token(tokens.key_uuid(store.issue_key("ada@example.org").token) or None)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError) as caught:
        store.revoke_key(token)
    assert token not in str(caught.value)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(StoreExistsError):
        Store.create(path)
    assert path.read_text() == "precious"
    with pytest.raises(StoreNotFoundError):
        Store.create(tmp_path / "missing" / "store.db")
    with pytest.raises(InvalidInputError):
        Store.create(tmp_path / "new.db", token_prefix="no good")
    assert [item.name for item in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_leftover_journal_is_never_replayed_into_a_new_store(tmp_path: Path, suffix: str) -> None:
    left = tmp_path / f"store.db{suffix}"
    left.write_bytes(b"pages of another store")
    with pytest.raises(StoreExistsError, match=suffix):
        Store.create(tmp_path / "store.db")
    assert [item.name for item in tmp_path.iterdir()] == [left.name]


def test_a_failed_init_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("keystore.migrate.publish", fail)
    with pytest.raises(ZeroDivisionError):
        Store.create(tmp_path / "new.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, 99])
def test_another_schema_version_is_refused_and_left_alone(store: Store, version: int) -> None:
    path = store.file.path
    store.file.conn.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(SchemaVersionError):
        open_store(path)
    store.file.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def test_a_replica_is_not_administered(store: Store, tmp_path: Path) -> None:
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", tmp_path / "replica.db", Report(""))
    with Store.open(tmp_path / "replica.db") as replica:
        with pytest.raises(WrongRoleError) as caught:
            replica.add_plan("mine")
        assert store.info.store_id in str(caught.value)
        assert [plan.name for plan in replica.plans()] == ["free"]


def test_the_file_is_for_its_owner_only(store: Store) -> None:
    assert store.file.path.stat().st_mode & 0o777 == 0o600


def test_two_processes_wait_for_each_other(store: Store) -> None:
    with Store.open(store.file.path) as other:
        for number in range(10):
            store.add_plan(f"a{number}")
            other.add_plan(f"b{number}")
    assert len(store.plans()) == 21
