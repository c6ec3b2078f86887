"""A repository of one account's or one service's rows: nothing else is in its bytes, ever."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from keystore import Store, Validator
from keystore.db import connect, open_store
from keystore.doctor import examine
from keystore.errors import DamagedStoreError, UnsupportedTargetError
from keystore.scope import ScopedReader
from keystore.sync import segments, targets
from keystore.sync.repository_format import Scope
from keystore.tables import TRACKED
from tests.repositories import Shelf, digest_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MARK = "zzforeign"
HEX = "deadbeef"
OTHERS = """
INSERT INTO Plans (name) VALUES ('zzforeign plan');
INSERT INTO Services (name) VALUES ('zzforeign service');
INSERT INTO APIKeyStatuses (name, description, allows_access)
VALUES ('zzforeign status', 'zzforeign description', 1);
WITH RECURSIVE N (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM N WHERE n < 200)
INSERT INTO Accounts (email, plan_id)
SELECT 'zzforeign' || n || '@example.org', (SELECT max(plan_id) FROM Plans) FROM N;
WITH RECURSIVE N (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM N WHERE n < 2000)
INSERT INTO APIKeys (api_key, account_id, api_key_hash, label, status, status_reason, metadata)
SELECT printf('deadbeef-0000-7000-8000-%012x', n), 2 + n % 200, printf('deadbeef%056x', n),
    'zzforeign label', 'zzforeign status', 'zzforeign reason', '{"zzforeign": 1}'
FROM N;
UPDATE APIKeys SET status = 'assigned', status_reason = 'zzforeign again'
WHERE api_key_id % 3 = 0 AND label IS 'zzforeign label';
INSERT INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota)
SELECT api_key_id, (SELECT max(service_id) FROM Services), 5, 5 FROM APIKeys
WHERE label = 'zzforeign label';
INSERT INTO OAuthClients (client_id, account_id, client_secret_hash)
SELECT 'zzforeign' || account_id, account_id, printf('deadbeef%056x', account_id) FROM Accounts
WHERE email LIKE 'zzforeign%';
INSERT INTO UsageLog (principal_type, principal_id, amount, request_id)
VALUES ('api_key', 1, 7, 'zzforeign request');
INSERT INTO Revocations (api_key, reason, revoked_at)
VALUES ('deadbeef-0000-7000-8000-000000000001', 'zzforeign', '2026-01-01 00:00:00');
"""


def unpacked(data: bytes) -> bytes:
    """Decompress, whatever length was signed."""
    with zstd.ZstdFile(BytesIO(data)) as file:
        return bytes(file.read())


class Scoped:
    """An origin with one account and one service that are published, among many others."""

    def __init__(self, store: Store, folder: Path, kind: str) -> None:
        store.add_service("maps")
        self.token = store.issue_key("ada@example.org", label="ours").token
        store.set_quota(self.token, "maps", 100)
        store.file.conn.executescript(OTHERS)
        self.store, self.kind = store, kind
        name = "ada@example.org" if kind == "account" else "maps"
        self.scope = Scope(kind=kind, record_id=1, name=name)  # type: ignore[arg-type]
        self.shelf = Shelf(store, folder, scope=self.scope)
        self.allowed: set[tuple[str, int]] = set()
        self.publish()
        self.replica = self.shelf.replicate()

    def publish(self) -> int:
        """Publish; note what was in the scope."""
        reader = ScopedReader(self.store.file, self.scope.kind, self.scope.record_id)
        self.rows = {(page.table.name, row[0]) for page in reader for row in page.rows}
        self.allowed |= {(table, int(record_id or 0)) for table, record_id in self.rows}
        return self.shelf.publish().pushed or 0

    def pull(self) -> None:
        self.shelf.pull(self.replica)

    def sql(self, text: str, *values: object) -> None:
        self.store.file.conn.execute(text, values)

    def check(self, token: str) -> bool:
        with Validator(self.replica) as validator:
            return validator.check(token).allowed

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Yield all bytes that were ever written: nothing is removed within a day."""
        for path in self.shelf.folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                yield path.name, data
                if path.suffix == ".zst":
                    yield path.name, unpacked(data)

    def records(self) -> set[tuple[str, int]]:
        """Return all records that are in the bytes."""
        found: set[tuple[str, int]] = set()
        for path in (self.shelf.folder / "targets").iterdir():
            data = unpacked(path.read_bytes())
            if ".changes" in path.name:
                for page in segments.read(BytesIO(path.read_bytes()), len(data)):
                    found |= {(page.table.name, int(row[0] or 0)) for row in page.rows}
                    found |= {(page.table.name, record_id) for record_id in page.deleted}
            else:
                place = self.shelf.base / "look.sqlite"
                place.write_bytes(data)
                conn = connect(place)
                for table in TRACKED:
                    rows = conn.execute(f"SELECT {table.id} FROM {table.name}")
                    found |= {(table.name, record_id) for (record_id,) in rows}
                conn.close()
        return found

    def assert_nothing_else(self, *foreign: str) -> None:
        for name, data in self.everything():
            for mark in (MARK, HEX, *foreign):
                assert mark.encode() not in data.lower(), name
        assert self.records() <= self.allowed

    def assert_whole(self) -> None:
        """The replica holds the scope's rows, and verifies."""
        self.pull()
        with open_store(self.replica) as file:
            assert [item for item in examine(file) if item.severity != "info"] == []
            with file.read() as conn:
                held = {
                    (table.name, row[0])
                    for table in TRACKED
                    for row in conn.execute(f"SELECT {table.id} FROM {table.name}")
                }
            assert held == self.rows
            assert targets.verify(file, str(self.shelf.folder)).differences == []
        assert digest_of(self.shelf.replicate()) == digest_of(self.replica)


@pytest.fixture(params=["account", "service"])
def scoped(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Scoped:
    return Scoped(store, tmp_path, request.param)


def test_nothing_else_is_in_the_bytes_through_changes_merges_and_new_snapshots(
    scoped: Scoped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FAN_OUT", 2)
    monkeypatch.setattr(segments, "room", lambda _: 3000)
    snapshots = set()
    for number in range(12):
        scoped.store.issue_key("ada@example.org", label=f"key {number}")
        scoped.sql("UPDATE APIKeys SET label = 'zzforeign ' || ? WHERE label LIKE 'zz%'", number)
        scoped.sql("UPDATE Plans SET max_staleness_seconds = ?", number + 1000)
        key = scoped.store.issue_key("zzforeign7@example.org", label="zzforeign new")
        scoped.store.revoke_key(key.token, reason="zzforeign lost")
        for one in scoped.store.keys(account="ada@example.org")[:3]:
            scoped.store.set_quota(one.api_key, "maps", number)
        scoped.publish()
        scoped.assert_whole()
        snapshots.add(scoped.shelf.state().snapshot.hashes["sha256"])
    assert len(snapshots) > 1
    assert any(one.info.level for one in scoped.shelf.state().changes)
    scoped.assert_nothing_else()
    assert scoped.check(scoped.token)


def test_a_validator_allows_exactly_the_keys_of_the_scope(scoped: Scoped) -> None:
    mine = scoped.store.issue_key("ada@example.org")
    scoped.store.set_quota(mine.token, "maps", 5)
    theirs = [scoped.store.issue_key(f"zzforeign{number}@example.org") for number in (1, 2)]
    scoped.publish()
    scoped.pull()
    assert [scoped.check(issued.token) for issued in (mine, *theirs)] == [True, False, False]
    assert scoped.check(scoped.token)


def test_a_key_that_leaves_the_account_leaves_the_repository(store: Store, tmp_path: Path) -> None:
    scoped = Scoped(store, tmp_path, "account")
    scoped.sql("UPDATE APIKeys SET account_id = 2, label = 'zzforeign now' WHERE label = 'ours'")
    assert scoped.publish() > 0
    scoped.assert_whole()
    assert not scoped.check(scoped.token)
    scoped.assert_nothing_else()
    scoped.sql("UPDATE APIKeys SET account_id = 1, label = 'ours' WHERE label = 'zzforeign now'")
    scoped.publish()
    scoped.assert_whole()
    assert scoped.check(scoped.token)
    scoped.assert_nothing_else()


def test_a_new_snapshot_holds_nothing_of_what_has_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoped = Scoped(store, tmp_path, "account")
    left = scoped.store.issue_key("ada@example.org", label="leaves soon")
    scoped.publish()
    scoped.sql("UPDATE APIKeys SET account_id = 2 WHERE label = 'leaves soon'")
    monkeypatch.setattr(segments, "room", lambda _: 0)
    scoped.publish()
    target = scoped.shelf.state().snapshot
    path = scoped.shelf.folder / f"targets/{target.hashes['sha256']}.{target.path}"
    data = unpacked(path.read_bytes())
    for text in ("leaves soon", left.key.api_key):
        assert text.encode() not in data
    assert scoped.shelf.state().changes == ()


def test_a_key_enters_and_leaves_with_its_quota(store: Store, tmp_path: Path) -> None:
    scoped = Scoped(store, tmp_path, "service")
    token = scoped.store.issue_key("ada@example.org", label="other").token
    scoped.publish()
    scoped.pull()
    assert not scoped.check(token)
    scoped.store.set_quota(token, "maps", 5)
    scoped.publish()
    scoped.assert_whole()
    assert scoped.check(token)
    scoped.sql("DELETE FROM APIKeyServiceQuotas WHERE initial_quota = 5 AND service_id = 1")
    scoped.publish()
    scoped.assert_whole()
    assert not scoped.check(token)
    assert scoped.check(scoped.token)
    scoped.assert_nothing_else()


def test_plans_and_statuses_come_with_who_uses_them(scoped: Scoped) -> None:
    scoped.store.add_plan("pro")
    scoped.store.add_status("paused", description="paused for now")
    scoped.publish()
    assert not any(b"pro" in data or b"paused" in data for _, data in _segments(scoped))
    scoped.store.change_account("ada@example.org", plan="pro")
    scoped.store.set_key_status(scoped.token, "paused")
    scoped.publish()
    scoped.assert_whole()
    assert not scoped.check(scoped.token)
    scoped.store.set_key_status(scoped.token, "assigned")
    scoped.publish()
    scoped.assert_whole()
    assert scoped.check(scoped.token)
    with Store.open(scoped.replica) as replica:
        assert [plan.name for plan in replica.plans()] == ["pro"]
        assert [status.name for status in replica.statuses()] == ["assigned"]
    scoped.assert_nothing_else()


def _segments(scoped: Scoped) -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in scoped.everything() if ".changes" in name]


def test_an_account_that_is_renamed_keeps_its_repository(store: Store, tmp_path: Path) -> None:
    scoped = Scoped(store, tmp_path, "account")
    scoped.sql("UPDATE Accounts SET email = 'lovelace@example.org' WHERE account_id = 1")
    scoped.publish()
    scoped.assert_whole()
    assert scoped.check(scoped.token)


def test_of_an_account_that_is_removed_nothing_is_left(store: Store, tmp_path: Path) -> None:
    scoped = Scoped(store, tmp_path, "account")
    scoped.store.remove_account("ada@example.org", with_keys=True)
    again = scoped.store.add_account("ada@example.org", plan="zzforeign plan")
    assert again.account_id != 1
    token = scoped.store.issue_key("ada@example.org").token
    scoped.publish()
    scoped.assert_whole()
    assert scoped.rows == set()
    assert not scoped.check(scoped.token)
    assert not scoped.check(token)
    scoped.assert_nothing_else()
    assert scoped.publish() == 0


def test_what_happens_to_others_publishes_the_time_alone(scoped: Scoped) -> None:
    before = scoped.shelf.files()
    scoped.sql("UPDATE APIKeys SET label = 'zzforeign changed' WHERE label = 'zzforeign label'")
    assert scoped.publish() == 0
    assert scoped.shelf.files() == before
    with open_store(scoped.replica) as file:
        held = file.info().as_of_change or 0
    scoped.pull()
    with open_store(scoped.replica) as file:
        assert (file.info().as_of_change or 0) > held
    mine = scoped.store.issue_key("ada@example.org", label="one")
    scoped.store.set_quota(mine.token, "maps", 5)
    assert scoped.publish() == 2
    scoped.assert_whole()


def test_an_origin_is_not_compared_with_a_part_of_it(scoped: Scoped) -> None:
    with pytest.raises(UnsupportedTargetError, match="only a part"):
        targets.verify(scoped.store.file, str(scoped.shelf.folder), keys=scoped.shelf.keys)


def test_text_that_cannot_be_read_stops_a_scope_with_its_name(store: Store, tmp_path: Path) -> None:
    scoped = Scoped(store, tmp_path, "account")
    scoped.sql("UPDATE Plans SET name = CAST(x'ff' AS TEXT) WHERE plan_id = 1")
    with pytest.raises(DamagedStoreError, match="Plans 1 "):
        scoped.publish()
    scoped.sql("UPDATE Plans SET name = 'free' WHERE plan_id = 1")
    scoped.publish()
