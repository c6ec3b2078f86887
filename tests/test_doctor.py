"""The doctor finds what was broken on purpose, names it, and changes nothing."""

import json
from pathlib import Path

import pytest

from keystore import Store, db, migrate
from keystore.doctor import examine
from keystore.errors import DamagedStoreError
from keystore.repair import mend
from keystore.sync import digest, engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import everything
from tests.test_cli import run


@pytest.fixture
def patient(tmp_path: Path) -> Store:
    """A store outside the healthy ones: the doctor is meant to find something."""
    store = Store.create(tmp_path / "patient.db")
    store.add_plan("free")
    store.add_account("ada@example.org", plan="free")
    store.issue_key("ada@example.org")
    return store


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DROP TRIGGER trg_plans_update", ("missing_trigger", "error")),
        ("DROP INDEX idx_accounts_plan_id", ("missing_index", "error")),
        ("ALTER TABLE UsageLog ADD COLUMN extra", ("altered_table", "error")),
        (
            (
                "DROP TRIGGER trg_plans_update; CREATE TRIGGER trg_plans_update"
                " AFTER UPDATE ON Plans BEGIN SELECT 1; END"
            ),
            ("altered_trigger", "error"),
        ),
        (
            "CREATE TRIGGER stranger AFTER UPDATE ON Plans BEGIN SELECT 1; END",
            ("foreign_trigger", "warning"),
        ),
        ("PRAGMA foreign_keys = OFF; DELETE FROM Accounts", ("orphans", "error")),
        ("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'APIKeys'", ("sequence", "warning")),
        ("UPDATE StoreInfo SET replaying = 1", ("replaying", "error")),
        (
            (
                "INSERT INTO ChangeLog (table_name, record_id, operation, occurred_at)"
                " VALUES ('Plans', 1, 'UPDATE', '2999-01-01 00:00:00')"
            ),
            ("clock", "warning"),
        ),
        ("UPDATE StoreInfo SET token_prefix = ''", ("identity", "error")),
        ("UPDATE StoreInfo SET incarnation = 'x'", ("identity", "error")),
        ("INSERT INTO Plans (name) VALUES (CAST(x'ff' AS TEXT))", ("not_utf8", "error")),
        ("PRAGMA journal_mode = DELETE", ("journal_mode", "warning")),
        (
            (
                "UPDATE StoreInfo SET replaying = 1; DELETE FROM ChangeLog WHERE change_id = 2;"
                "UPDATE StoreInfo SET replaying = 0"
            ),
            ("log_gap", "error"),
        ),
    ],
)
def test_damage_is_found_and_named(patient: Store, damage: str, finding: tuple[str, str]) -> None:
    assert examine(patient.file) == []
    patient.file.conn.executescript(damage)
    found = examine(patient.file)
    assert [(item.id, item.severity) for item in found] == [finding]
    assert all(item.what and item.hint for item in found)


def test_an_open_file_mode_is_found(patient: Store) -> None:
    patient.file.path.chmod(0o644)
    (found,) = examine(patient.file)
    assert (found.id, "`keystore doctor --fix`" in found.hint) == ("file_mode", True)
    assert mend(patient.file) != []
    assert examine(patient.file) == []


def test_a_large_wal_is_found(patient: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystore.doctor.LARGE_WAL_BYTES", 1)
    assert [item.id for item in examine(patient.file)] == ["wal_size"]


def test_an_old_sqlite_is_found(patient: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "sqlite_version", lambda: (3, 40, 1))
    (found,) = examine(patient.file)
    assert (found.id, "3.40.1" in found.what) == ("sqlite_version", True)


def test_a_replica_needs_its_read_only_triggers(patient: Store, tmp_path: Path) -> None:
    hub, path = MemoryHub(), tmp_path / "replica.db"
    engine.push(patient.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", path, Report(""))
    with Store.open(path) as replica:
        assert examine(replica.file) == []
        replica.file.conn.execute("DROP TRIGGER trg_apikeys_update_read_only")
        assert [item.id for item in examine(replica.file)] == ["missing_trigger"]


BROKEN = {
    "a missing trigger": "DROP TRIGGER trg_apikeys_update; UPDATE APIKeys SET label = 'unseen'",
    "a delete that no trigger saw": ("DROP TRIGGER trg_apikeys_delete; DELETE FROM APIKeys"),
    "an altered trigger": (
        "DROP TRIGGER trg_plans_update; CREATE TRIGGER trg_plans_update AFTER UPDATE ON Plans"
        " BEGIN SELECT 1; END; UPDATE Plans SET stale_action = 'allow'"
    ),
    "a missing index": "DROP INDEX idx_accounts_plan_id",
    "a sequence": "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'APIKeys'",
    "a replay that never ended": "UPDATE StoreInfo SET replaying = 1",
    "a contradiction": (
        "UPDATE StoreInfo SET replaying = 1; UPDATE APIKeys SET status = 'suspended'"
    ),
    "a reason that is not UTF-8": (
        "UPDATE APIKeys SET status = 'suspended', status_reason = CAST(x'61ff' AS TEXT);"
        " UPDATE APIKeys SET status_reason = 'corrected'"
    ),
    "a journal mode": "PRAGMA journal_mode = DELETE",
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_mended_is_mended_and_no_change_is_lost(patient: Store, damage: str) -> None:
    hub = MemoryHub()
    engine.push(patient.file, hub, "memory:", Report(""))
    patient.file.conn.executescript(damage)
    found = examine(patient.file)
    assert found != []
    assert [item.id for item in found if "`keystore doctor --fix`" not in item.hint] == []
    assert mend(patient.file) != []
    assert examine(patient.file) == []
    assert mend(patient.file) == []
    engine.push(patient.file, hub, "memory:", Report(""))
    assert digest.digest_pages(everything(hub, None)) == digest.digest_store(patient.file)


def test_a_contradiction_is_settled_for_denial(patient: Store) -> None:
    patient.file.conn.executescript(BROKEN["a contradiction"])
    mend(patient.file)
    rows = patient.file.conn.execute("SELECT is_active, status FROM APIKeys").fetchall()
    assert rows == [(0, "suspended")]


def test_mending_never_opens_a_key(patient: Store) -> None:
    conn = patient.file.conn
    conn.executescript(
        "DROP TRIGGER trg_apikeys_update_status;"
        " UPDATE APIKeys SET is_active = 0, label = 'stopped'"
    )
    mend(patient.file)
    assert conn.execute("SELECT is_active FROM APIKeys").fetchone() == (0,)
    assert [item.id for item in examine(patient.file)] == ["contradiction"]


def test_a_store_that_does_not_say_what_it_is_is_not_mended(patient: Store) -> None:
    patient.file.conn.execute("DELETE FROM StoreInfo")
    with pytest.raises(DamagedStoreError):
        mend(patient.file)


def test_a_log_without_its_tail_is_found(patient: Store) -> None:
    conn = patient.file.conn
    text = migrate.schema_of(conn)["trigger", "trg_changelog_delete"]
    for condition in ("change_id = (SELECT max(change_id) FROM ChangeLog)", "1"):
        conn.execute("DROP TRIGGER trg_changelog_delete")
        conn.execute(f"DELETE FROM ChangeLog WHERE {condition}")
        conn.execute(text)
        assert [item.id for item in examine(patient.file)] == ["log_gap"]


def test_what_needs_a_decision_is_left_alone(patient: Store) -> None:
    patient.file.conn.executescript("PRAGMA foreign_keys = OFF; DELETE FROM Accounts")
    assert mend(patient.file) == []
    (found,) = examine(patient.file)
    assert (found.id, "--fix" in found.hint) == ("orphans", False)


def test_fix_by_hand_backs_up_first(patient: Store) -> None:
    path = str(patient.file.path)
    patient.file.conn.execute("DROP TRIGGER trg_plans_update")
    assert run("doctor", "--db", path).exit_code == 1
    said = json.loads(run("doctor", "--fix", "--db", path, "--json").stdout)
    assert said["findings"] == []
    copy = Path(said["done"][0].removeprefix("Backed up to ").rstrip("."))
    with db.open_store(copy) as file:
        assert [item.id for item in examine(file)] == ["missing_trigger"]
    assert run("doctor", "--fix", "--db", path).stdout == f"{path}: nothing is wrong.\n"
