"""Revocation from the centre: it reaches everyone, for good, and every receipt is true."""

import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from keystore import Reason, Store, Validator, db, migrate
from keystore.backup import restore
from keystore.db import open_store
from keystore.errors import InvalidInputError, KeystoreError, NotFoundError
from keystore.sync import hub_fleet, repository, targets
from keystore.sync.engine import Report
from keystore.sync.folder import Folder
from keystore.sync.hub_admin import HubAdmin, Revoked
from keystore.sync.hub_fleet import Holder, Receipt
from tests.conftest import NewStore
from tests.test_cli import run

ADA = "ada@example.org"
UUID_A = "01890a5d-ac96-774b-bcce-b302099a8057"
UUID_B = "01890a5d-ac96-774b-bcce-b302099a8058"


def sync(path: Path, url: str) -> Report:
    with open_store(path) as file:
        (report,) = targets.sync(file, url)
    return report


def revoke(url: str, key: str, reason: str | None = None) -> list[Revoked]:
    with targets.hub_admin(url) as admin:
        return admin.revoke(key, reason=reason)


def receipts(url: str, key: str | None = None) -> list[Receipt]:
    with targets.hub_admin(url) as admin:
        return hub_fleet.receipts(admin, key)


def reason_at(path: Path, token: str) -> Reason:
    with Validator(path) as validator:
        return validator.check(token).reason


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as conn:
        for statement in statements:
            conn.execute(statement)  # type: ignore[call-overload,unused-ignore]


def shell(path: Path, statement: str) -> str:
    """Run a statement as another client would; return what it complains of."""
    done = subprocess.run(
        ["sqlite3", str(path), statement], capture_output=True, text=True, check=False
    )
    return done.stderr


@pytest.fixture
def replica(store: Store, hub_url: str, tmp_path: Path) -> Path:
    """A replica of ``store``, by way of the hub."""
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, tmp_path / "replica.db")
    return tmp_path / "replica.db"


def test_a_replica_denies_after_its_next_sync_though_the_origin_has_not_synced(
    store: Store, hub_url: str, replica: Path
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    sync(replica, hub_url)
    assert reason_at(replica, token) is Reason.OK
    revoke(hub_url, store.key(token).api_key, "leaked")
    assert sync(replica, hub_url).revocations == 1
    assert reason_at(replica, token) is Reason.REVOKED
    assert reason_at(store.file.path, token) is Reason.OK
    with Store.open(replica) as opened:  # and says so, though its row is still the origin's
        (key,) = opened.keys(status="revoked")
        assert (key.state, key.is_active, key.status_reason) == ("revoked", False, "leaked")
        assert opened.key(token) == key


def test_it_reaches_the_origin_and_with_its_push_the_replicas_of_signed_files(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    files, keys, edge = tmp_path / "files", tmp_path / "keys", tmp_path / "edge.db"
    root = repository.create(Folder(files), keys).read_bytes()
    token = store.issue_key(ADA).token
    targets.sync(store.file, str(files), keys=keys)
    targets.sync(store.file, hub_url)
    targets.replicate(str(files), edge, root=root)
    revoke(hub_url, token, "leaked")
    targets.sync(store.file, hub_url)
    assert reason_at(store.file.path, token) is Reason.REVOKED
    assert [(event.status, event.reason) for event in store.history(token)] == [
        ("revoked", "leaked"),
        ("assigned", "issued"),
    ]
    assert reason_at(edge, token) is Reason.OK
    targets.sync(store.file, str(files), keys=keys)
    with open_store(edge) as file:
        targets.sync(file, str(files))
    assert reason_at(edge, token) is Reason.REVOKED


def test_it_reaches_everybody_though_the_origin_has_no_status_revoked(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    """A replica of signed files hears of it by the key's row alone."""
    files, keys, edge = tmp_path / "files", tmp_path / "keys", tmp_path / "edge.db"
    root = repository.create(Folder(files), keys).read_bytes()
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    store.file.conn.execute("DELETE FROM APIKeyStatuses WHERE name = 'revoked'")
    revoke(hub_url, token)
    targets.sync(store.file, hub_url)
    assert reason_at(store.file.path, token) is Reason.REVOKED
    assert store.key(token).state == "revoked"
    targets.sync(store.file, str(files), keys=keys)
    targets.replicate(str(files), edge, root=root)
    assert reason_at(edge, token) is Reason.REVOKED


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE APIKeys SET is_active = 1",
        "UPDATE APIKeys SET status = 'assigned'",
        "UPDATE OR IGNORE APIKeys SET status = 'assigned', is_active = 1",
        (
            "INSERT OR REPLACE INTO APIKeys (api_key_id, api_key, account_id, api_key_hash)"
            " SELECT api_key_id, api_key, account_id, api_key_hash FROM APIKeys"
        ),
        (
            "CREATE TEMP TABLE k AS SELECT * FROM APIKeys; DELETE FROM APIKeys;"
            " INSERT OR IGNORE INTO APIKeys (api_key, account_id, api_key_hash)"
            " SELECT api_key, account_id, api_key_hash FROM k"
        ),
    ],
)
def test_no_client_of_the_origin_brings_the_key_back(
    store: Store, hub_url: str, statement: str
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    revoke(hub_url, token)
    targets.sync(store.file, hub_url)
    assert "revoked at a hub, which is for good" in shell(store.file.path, statement)
    assert reason_at(store.file.path, token) in {Reason.REVOKED, Reason.UNKNOWN}
    rows = store.file.conn.execute("SELECT 1 FROM APIKeys WHERE is_active").fetchall()
    assert rows == []


def test_resume_says_that_it_is_for_good(
    store: Store, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    issued = store.issue_key(ADA)
    targets.sync(store.file, hub_url)
    revoke(hub_url, issued.token)
    targets.sync(store.file, hub_url)
    result = run("key", "resume", issued.key.api_key)
    assert result.exit_code == 1
    assert "revoked at a hub, which is for good: issue a new one" in result.stderr
    assert result.stderr.count("\n") == 1
    assert reason_at(store.file.path, issued.token) is Reason.REVOKED


def test_an_operator_may_still_delete_a_revoked_key_and_give_it_another_denying_status(
    store: Store, hub_url: str
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    revoke(hub_url, token)
    targets.sync(store.file, hub_url)
    store.set_key_status(token, "suspended")
    assert reason_at(store.file.path, token) is Reason.REVOKED
    store.delete_key(token)
    assert reason_at(store.file.path, token) is Reason.UNKNOWN


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("DELETE FROM Revocations", "only grow"),
        ("UPDATE Revocations SET api_key = '{b}'", "only grow"),
        ("UPDATE OR REPLACE Revocations SET api_key = '{b}'", "only grow"),
        ("REPLACE INTO Revocations VALUES (1, '{b}', NULL, datetime('now'), '')", "only grow"),
        (
            (
                "PRAGMA recursive_triggers = ON;"
                "REPLACE INTO Revocations VALUES (1, '{b}', NULL, datetime('now'), '')"
            ),
            "only grow",
        ),
        (
            (
                "INSERT OR IGNORE INTO Revocations (api_key, revoked_at)"
                " VALUES (upper('{b}'), datetime('now'))"
            ),
            "a revocation holds",
        ),
        (
            (
                "INSERT OR IGNORE INTO Revocations (api_key, revoked_at)"
                " VALUES ('{b}' || char(0) || 'x', datetime('now'))"
            ),
            "a revocation holds",
        ),
        (
            (
                "INSERT OR IGNORE INTO Revocations (api_key, revoked_at)"
                " VALUES (CAST('{b}' AS BLOB), datetime('now'))"
            ),
            "a revocation holds",
        ),
        (
            (
                "INSERT OR IGNORE INTO Revocations (api_key, revoked_at)"
                " VALUES (replace('{b}', '-', '') || '----', datetime('now'))"
            ),
            "a revocation holds",
        ),
        (
            (
                "INSERT OR IGNORE INTO Revocations (api_key, revoked_at, reason)"
                " VALUES ('{b}', datetime('now'), 'a' || char(0))"
            ),
            "a revocation holds",
        ),
        (
            "INSERT OR IGNORE INTO Revocations (api_key, revoked_at) VALUES ('{b}', 'today')",
            "a revocation holds",
        ),
    ],
)
def test_the_revocations_of_a_store_only_grow_whatever_a_client_writes(
    store: Store, statement: str, complaint: str
) -> None:
    with store.file.write() as conn:
        conn.execute(
            "INSERT INTO Revocations (api_key, revoked_at) VALUES (?, '2026-11-20 12:00:00')",
            (UUID_A,),
        )
    assert complaint in shell(store.file.path, statement.format(b=UUID_B))
    found = store.file.conn.execute("SELECT api_key FROM Revocations").fetchall()
    assert found == [(UUID_A,)]


def test_a_revocation_that_is_replaced_by_itself_stays(store: Store) -> None:
    statement = (
        f"REPLACE INTO Revocations (api_key, revoked_at) VALUES ('{UUID_A}', '2026-11-20 12:00:00')"
    )
    assert shell(store.file.path, statement) == ""
    shell(store.file.path, statement)
    found = store.file.conn.execute("SELECT api_key FROM Revocations").fetchall()
    assert found == [(UUID_A,)]


def test_the_very_next_check_denies_after_another_process_took_it_over(
    store: Store, hub_url: str, replica: Path
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    sync(replica, hub_url)
    revoke(hub_url, token)
    with Validator(replica) as validator:
        assert validator.check(token).allowed
        done = subprocess.run(
            [sys.executable, "-m", "keystore", "sync", "--db", str(replica), hub_url],
            capture_output=True,
            text=True,
            check=True,
        )
        assert validator.check(token).reason is Reason.REVOKED
    assert "took over 1 revocation" in done.stdout


@pytest.mark.parametrize("key", [UUID_A, "sk-unknown", "", UUID_A.upper()])
def test_an_unknown_key_is_an_error_and_revokes_nothing(hub_url: str, key: str) -> None:
    with pytest.raises(NotFoundError):
        revoke(hub_url, key)
    result = run("revoke", "--at", hub_url, "-", stdin=key)
    assert result.exit_code == 1
    assert result.stderr.startswith("keystore: the hub has no such key.")
    assert receipts(hub_url) == []


@pytest.mark.parametrize("form", ["token", "uuid", "upper", "hex"])
def test_a_key_is_named_by_its_token_or_its_uuid(store: Store, hub_url: str, form: str) -> None:
    issued = store.issue_key(ADA)
    uuid = issued.key.api_key
    targets.sync(store.file, hub_url)
    names = {
        "token": issued.token,
        "uuid": uuid,
        "upper": uuid.upper(),
        "hex": uuid.replace("-", ""),
    }
    (done,) = revoke(hub_url, names[form])
    assert (done.api_key, done.origin_id, done.is_new) == (uuid, store.info.store_id, True)
    assert [item.api_key for item in receipts(hub_url, names[form])] == [uuid]


def test_revoking_twice_is_one_revocation_with_the_first_reason(store: Store, hub_url: str) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    first, again = revoke(hub_url, token, "leaked"), revoke(hub_url, token, "other")
    assert [item.is_new for item in first + again] == [True, False]
    (receipt,) = receipts(hub_url)
    assert receipt.reason == "leaked"


@pytest.mark.parametrize("reason", ["a\0b", "\ud800", "line\nbreak", "x" * 1000, ""])
def test_a_reason_that_could_not_be_kept_is_refused_before_anything_is_written(
    store: Store, hub_url: str, reason: str
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    with pytest.raises(InvalidInputError):
        revoke(hub_url, token, reason)
    assert receipts(hub_url) == []


def test_a_key_that_a_replica_has_not_got_yet_is_denied_when_it_arrives(
    store: Store, hub_url: str, replica: Path
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    revoke(hub_url, token)
    assert reason_at(replica, token) is Reason.UNKNOWN
    sync(replica, hub_url)
    assert reason_at(replica, token) is Reason.REVOKED


def test_a_replica_is_never_there_without_the_revocations(
    store: Store, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    revoke(hub_url, token)

    def publish_and_crash(draft: Path, path: Path) -> None:
        publish(draft, path)
        raise ZeroDivisionError

    publish = migrate.publish
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(migrate, "publish", publish_and_crash)
        targets.replicate(hub_url, tmp_path / "replica.db")
    assert reason_at(tmp_path / "replica.db", token) is Reason.REVOKED


def test_a_hub_that_was_put_back_and_gave_numbers_again_loses_none(
    store: Store, hub_url: str, replica: Path
) -> None:
    first, second, third = (store.issue_key(ADA) for _ in range(3))
    targets.sync(store.file, hub_url)
    revoke(hub_url, first.token)
    revoke(hub_url, second.token)
    sync(replica, hub_url)
    execute(
        hub_url,
        "DELETE FROM keystore.revocations WHERE revocation_id = "
        "(SELECT max(revocation_id) FROM keystore.revocations)",
        "UPDATE keystore.revocation_heads SET head = 1",
        "UPDATE keystore.replicas SET seen_revocation = 1",
    )
    revoke(hub_url, third.token)
    assert len(receipts(hub_url)) == 2
    sync(replica, hub_url)
    for issued in (first, second, third):
        assert reason_at(replica, issued.token) is Reason.REVOKED
    assert [len(item.have) for item in receipts(hub_url)] == [1, 1]


def test_a_number_that_the_hub_has_forgotten_is_no_receipt_for_the_next_key_that_gets_it(
    store: Store, hub_url: str, replica: Path
) -> None:
    first, second = (store.issue_key(ADA) for _ in range(2))
    targets.sync(store.file, hub_url)
    revoke(hub_url, first.token)
    sync(replica, hub_url)
    targets.sync(store.file, hub_url)
    execute(
        hub_url,
        "DELETE FROM keystore.revocations",
        "DELETE FROM keystore.revocation_heads",
        "UPDATE keystore.replicas SET seen_revocation = 0",
    )
    sync(replica, hub_url)
    targets.sync(store.file, hub_url)
    revoke(hub_url, second.token)
    (receipt,) = receipts(hub_url)
    assert (len(receipt.have), len(receipt.lack)) == (0, 2)
    sync(replica, hub_url)
    assert reason_at(replica, second.token) is Reason.REVOKED
    assert [holder.role for holder in receipts(hub_url)[0].have] == ["replica"]


def test_operators_who_revoke_at_once_lose_nothing(
    store: Store, hub_url: str, replica: Path
) -> None:
    issued = [store.issue_key(ADA) for _ in range(6)]
    targets.sync(store.file, hub_url)
    done: list[Revoked] = []

    def revoke_all() -> None:
        with targets.hub_admin(hub_url) as admin:
            for item in issued:
                done.extend(admin.revoke(item.token))

    threads = [threading.Thread(target=revoke_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(item.is_new for item in done) == len(issued)
    assert len(done) == 3 * len(issued)
    numbers = [item.revocation_id for item in receipts(hub_url)]
    assert len(set(numbers)) == len(issued)
    assert sync(replica, hub_url).revocations == len(issued)
    for item in issued:
        assert reason_at(replica, item.token) is Reason.REVOKED


def test_a_revocation_does_not_wait_for_a_push_that_is_under_way(
    store: Store, hub_url: str
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    with psycopg.connect(hub_url) as pusher:
        pusher.execute("SELECT FROM keystore.stores FOR UPDATE")
        admin = HubAdmin(hub_url)
        admin.conn.execute("SET lock_timeout = '10s'")
        assert admin.revoke(token)[0].is_new
        admin.close()


def names(holders: list[Holder]) -> set[tuple[str, str]]:
    return {(holder.role, holder.store_id) for holder in holders}


def store_id(path: Path) -> str:
    with open_store(path) as file:
        return file.info().store_id


def test_receipts_name_who_has_it_who_has_not_and_when_each_was_last_heard(
    hub_url: str, new_store: NewStore, tmp_path: Path
) -> None:
    tokens, edges, origins = [], [], []
    for number in range(2):
        made = new_store(f"origin{number}.db")
        made.add_plan("free")
        made.add_account(ADA, plan="free")
        tokens.append(made.issue_key(ADA).token)
        targets.sync(made.file, hub_url)
        origins.append(made)
        for edge in range(2):
            path = tmp_path / f"edge{number}{edge}.db"
            targets.replicate(hub_url, path, origin_id=made.info.store_id)
            edges.append(path)
    execute(hub_url, "UPDATE keystore.replicas SET last_seen_at = '2025-01-01 11:00:00+00'")
    for token in tokens:
        revoke(hub_url, token)
    sync(edges[0], hub_url)
    first = {item.origin_id: item for item in receipts(hub_url)}[origins[0].info.store_id]
    assert names(first.have) == {("replica", store_id(edges[0]))}
    assert names(first.lack) == {
        ("replica", store_id(edges[1])),
        ("origin", origins[0].info.store_id),
    }
    heard = {holder.store_id: holder.last_seen_at for holder in first.have + first.lack}
    assert heard[store_id(edges[1])] == "2025-01-01 11:00:00"
    assert heard[store_id(edges[0])] > "2025-01-01 11:00:00"
    targets.sync(origins[0].file, hub_url)
    (first,) = receipts(hub_url, tokens[0])
    assert names(first.lack) == {("replica", store_id(edges[1]))}
    (second,) = receipts(hub_url, tokens[1])
    assert second.have == []
    assert len(second.lack) == 3


def test_a_restored_backup_has_no_receipt_of_what_came_after_it(
    store: Store, hub_url: str, replica: Path, tmp_path: Path
) -> None:
    token = store.issue_key(ADA).token
    targets.sync(store.file, hub_url)
    sync(replica, hub_url)
    backup = tmp_path / "backup.db"
    with open_store(replica) as file:
        file.conn.execute("VACUUM INTO ?", (str(backup),))
    revoke(hub_url, token)
    sync(replica, hub_url)
    info = restore(backup, tmp_path / "restored.db")
    assert reason_at(tmp_path / "restored.db", token) is Reason.OK
    (receipt,) = receipts(hub_url)
    assert [holder.incarnation for holder in receipt.have] != [info.incarnation]
    sync(tmp_path / "restored.db", hub_url)
    assert reason_at(tmp_path / "restored.db", token) is Reason.REVOKED
    (receipt,) = receipts(hub_url)
    assert info.incarnation in [holder.incarnation for holder in receipt.have]
    assert len(receipt.have) == 2


@pytest.mark.parametrize("arguments", [("revoke", "--at"), ("revocations",), ("fleet",)])
def test_what_is_no_hub_is_told_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    more = ("key",) if arguments[0] == "revoke" else ()
    result = run(*arguments, str(tmp_path), *more)
    assert result.exit_code == 1
    assert result.stderr.endswith("is not a hub. A hub's URL starts with postgresql://.\n")


def test_the_commands_say_what_was_done_and_who_follows(
    store: Store, hub_url: str, replica: Path
) -> None:
    key = store.issue_key(ADA).key.api_key
    targets.sync(store.file, hub_url)
    with_password = hub_url.replace("keystore@", "keystore:s3cret@")
    assert run("revocations", hub_url).stdout == "No key was revoked here.\n"
    assert run("revoke", key).exit_code == 2
    result = run("revoke", "--at", with_password, key, "--reason", "leaked")
    assert result.stdout == (
        f"Revoked key {key}; 1 replica and the origin follow with the next sync.\n"
        f"Who has it: `keystore revocations {hub_url}`.\n"
    )
    again = run("revoke", "--at", hub_url, key)
    assert again.exit_code == 0
    assert again.stdout.startswith(f"Nothing to do. Key {key} was revoked ")
    assert "0 of 2 have it" in again.stdout
    sync(replica, hub_url)
    lines = run("revocations", hub_url, "--key", key).stdout.splitlines()
    assert lines[0].endswith("ago (leaked); 1 of 2 have it.")
    assert [line.split()[:3] for line in lines[2:]] == [
        [store.info.store_id, "origin", "no"],
        [store_id(replica), "replica", "yes"],
    ]
    unknown = run("revocations", hub_url, "--key", UUID_A)
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("keystore: that key was not revoked at this hub.")


def test_a_store_with_a_damaged_hub_row_does_not_take_half(
    store: Store, hub_url: str, replica: Path
) -> None:
    """All or nothing: what cannot be stored leaves the number where it was."""
    issued = [store.issue_key(ADA) for _ in range(2)]
    targets.sync(store.file, hub_url)
    for item in issued:
        revoke(hub_url, item.token)
    execute(
        hub_url,
        "UPDATE keystore.revocations SET revoked_at = '4000-01-01' WHERE revocation_id = "
        "(SELECT max(revocation_id) FROM keystore.revocations)",
    )
    with pytest.raises(KeystoreError):
        sync(replica, hub_url)
    with db.open_store(replica) as file:
        assert file.conn.execute("SELECT count(*) FROM Revocations").fetchone() == (0,)
    execute(hub_url, "UPDATE keystore.revocations SET revoked_at = now()")
    assert sync(replica, hub_url).revocations == 2
