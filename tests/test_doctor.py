"""The doctor finds what was broken on purpose, names it, and changes nothing."""

from pathlib import Path

import pytest

from keystore import Store, db
from keystore.doctor import examine
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub


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
    assert [item.id for item in examine(patient.file)] == ["file_mode"]


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
