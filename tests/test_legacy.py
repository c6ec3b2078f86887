"""Moving a store with UUID primary keys: what is kept, what is told, and what is never touched."""

import json
import shutil
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import click
import pytest
from click.testing import CliRunner, Result

from keystore import Store, Validator, db, migrate
from keystore.changelog import count_records
from keystore.cli.common import KeystoreGroup
from keystore.cli.legacy import COMMANDS
from keystore.doctor import examine
from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    NotAKeystoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from keystore.legacy import import_legacy
from keystore.tables import TRACKED
from keystore.tokens import hash_token

SCHEMA = """
CREATE TABLE Plans (plan_id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE Accounts (email TEXT, plan_id INTEGER, phone TEXT, account_id INTEGER PRIMARY KEY);
CREATE TABLE APIKeys (
    api_key_id CHAR(36) PRIMARY KEY, account_id INTEGER, api_key_hash TEXT,
    is_active BOOLEAN NOT NULL DEFAULT 1, updated_at TIMESTAMP, created_at TIMESTAMP
);
CREATE TABLE ChangeLog (change_id INTEGER PRIMARY KEY, record_id TEXT);
INSERT INTO Plans VALUES (3, 'free'), (8, 'pro');
INSERT INTO Accounts VALUES ('ada@x', 3, '1', 70), ('bob@x', 8, '2', 12);
"""
KEYS = [str(UUID(int=number << 96 | 0xABC)) for number in range(1, 10)]
TOKENS = [f"old-token-{number}" for number in range(1, 10)]
HASHES = [hash_token(token) for token in TOKENS]
SOUND = f"""
INSERT INTO APIKeys VALUES
    ('{KEYS[0]}', 70, '{HASHES[0]}', 1, '2024-05-06 07:08:09', '2023-01-02 03:04:05'),
    ('{KEYS[1].upper()}', 12, '{HASHES[1].upper()}', 0, '2024-05-06T09:08:09.75+02:00', NULL);
"""
BAD = f"""
INSERT INTO Accounts VALUES ('eve@x', 99, '3', 13), ('ADA@X', 3, NULL, 90), (x'00ff', 3, '4', 91);
INSERT INTO APIKeys (api_key_id, account_id, api_key_hash, is_active) VALUES
    ('{KEYS[2]}', 5, '{HASHES[2]}', 1),
    ('{KEYS[3]}', 13, '{HASHES[3]}', 1),
    ('{KEYS[4]}', NULL, '{HASHES[4]}', 1),
    ('no-uuid', 70, '{HASHES[5]}', 1),
    (17000, 70, '{HASHES[5]}', 1),
    ('{KEYS[5]}', 70, 'abc', 1),
    ('{KEYS[6]}', 70, '{HASHES[6]}', 7),
    ('{KEYS[1]}', 70, '{HASHES[7]}', 1),
    ('{KEYS[8]}', 70, '{HASHES[0]}', 1);
INSERT INTO APIKeys VALUES ('{KEYS[7]}', 70, '{HASHES[7]}', 1, 'yesterday', NULL);
"""
"""13 rows: an account without plan, a duplicate one and an invalid one, and ten keys."""

Make = Callable[..., Path]


def put(path: Path, script: str) -> Path:
    conn = db.connect(path, create=True)
    conn.executescript(script)
    conn.close()
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return put(tmp_path / "old.db", SCHEMA + SOUND)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new.db"


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with db.open_store(path) as file:
        return file.conn.execute(statement).fetchall()


def findings(path: Path) -> list[str]:
    with db.open_store(path) as file:
        return [item.what for item in examine(file)]


def run(*arguments: object) -> Result:
    group = KeystoreGroup(commands={"import-legacy": COMMANDS[0]})
    return CliRunner().invoke(group, ["import-legacy", *map(str, arguments)])


def test_ids_uuids_hashes_states_and_times_are_kept(old: Path, new: Path) -> None:
    done = import_legacy(old, new)
    assert rows(new, "SELECT plan_id, name FROM Plans") == [(3, "free"), (8, "pro")]
    accounts = rows(new, "SELECT account_id, email, plan_id, is_active FROM Accounts")
    assert accounts == [(12, "bob@x", 8, 1), (70, "ada@x", 3, 1)]
    keys = "SELECT api_key, api_key_hash, account_id, is_active, status, created_at, updated_at"
    assert rows(new, f"{keys} FROM APIKeys") == [
        (KEYS[0], HASHES[0], 70, 1, "assigned", "2023-01-02 03:04:05", "2024-05-06 07:08:09"),
        (KEYS[1], HASHES[1], 12, 0, "revoked", "2024-05-06 07:08:09", "2024-05-06 07:08:09"),
    ]
    assert done.columns_not_carried == {"Accounts": ["phone"]}
    assert done.tables_not_carried == ["ChangeLog"]
    assert findings(new) == []
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_tokens_of_the_old_store_still_validate(old: Path, new: Path) -> None:
    import_legacy(old, new)
    with Validator(new) as validator:
        decision = validator.check(TOKENS[0])
        assert (decision.allowed, decision.account, decision.plan) == (True, "ada@x", "free")
        assert validator.check(TOKENS[1]).reason == "revoked"


def test_the_change_log_tells_of_every_row(old: Path, new: Path) -> None:
    import_legacy(old, new)
    with Store.open(new) as store:
        told = {(change.table_name, change.record_id) for change in store.changes()}
        count = sum(count_records(store.file.conn, table) for table in TRACKED)
    assert len(told) == count
    assert {("Plans", 8), ("Accounts", 70), ("APIKeys", 1), ("APIKeys", 2)} <= told


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("'2024-01-31 10:00:00'", "2024-01-31 10:00:00"),
        ("'2024-01-31T10:00:00Z'", "2024-01-31 10:00:00"),
        ("'2024-01-31T10:00:00.123456789-05:30'", "2024-01-31 15:30:00"),
        ("'2024-01-31 10:00:00 +0100'", "2024-01-31 09:00:00"),
        ("'2024-01-31 10:00'", "2024-01-31 10:00:00"),
        ("1706695200", "2024-01-31 10:00:00"),
        ("1706695200.75", "2024-01-31 10:00:00"),
    ],
)
def test_a_time_is_read_in_each_of_its_spellings(
    old: Path, new: Path, value: str, text: str
) -> None:
    put(old, f"UPDATE APIKeys SET updated_at = {value}, created_at = NULL")
    import_legacy(old, new)
    assert set(rows(new, "SELECT created_at, updated_at FROM APIKeys")) == {(text, text)}


@pytest.mark.parametrize(
    "value", ["'2023-02-29 00:00:00'", "'0999-01-01 00:00:00'", "20240131", "9e99", "''", "x'01'"]
)
def test_a_time_that_cannot_be_read_names_its_row(old: Path, new: Path, value: str) -> None:
    put(old, f"UPDATE APIKeys SET updated_at = {value} WHERE api_key_id = '{KEYS[0]}'")
    with pytest.raises(InvalidInputError, match=f"1 invalid row of APIKeys.*{KEYS[0]}.*updated_at"):
        import_legacy(old, new)
    assert not new.exists()


def test_optional_columns_may_be_missing(tmp_path: Path, new: Path) -> None:
    minimal = f"""
    CREATE TABLE plans (Name TEXT, Plan_ID INTEGER PRIMARY KEY);
    CREATE TABLE accounts (plan_id INTEGER, email TEXT, account_id INTEGER PRIMARY KEY);
    CREATE TABLE apikeys (api_key_hash TEXT, account_id INT, api_key_id TEXT PRIMARY KEY)
        WITHOUT ROWID;
    INSERT INTO plans VALUES ('free', 1);
    INSERT INTO accounts VALUES (1, 'a@x', 1);
    INSERT INTO apikeys VALUES ('{HASHES[0]}', 1, '{KEYS[0]}');
    """
    done = import_legacy(put(tmp_path / "old.db", minimal), new)
    assert done.carried == {"Plans": 1, "Accounts": 1, "APIKeys": 1}
    assert done.columns_not_carried == {}
    assert rows(new, "SELECT created_at = updated_at, is_active FROM APIKeys") == [(1, 1)]


def test_what_cannot_be_carried_is_refused_and_nothing_is_written(old: Path, new: Path) -> None:
    put(old, BAD)
    result = run(old, new)
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    for part in (
        "1 orphaned row of Accounts",
        "1 duplicate row of Accounts",
        "1 invalid row of Accounts",
        "3 orphaned rows of APIKeys",
        "5 invalid rows of APIKeys",
        "2 duplicate rows of APIKeys",
        "Accounts 13: its plan_id 99 is not there",
        "--orphans set-aside --report FILE",
    ):
        assert part in result.output, part
    assert list(new.parent.iterdir()) == [old]


def test_what_is_set_aside_is_in_the_report_and_the_counts_add_up(
    old: Path, new: Path, tmp_path: Path
) -> None:
    put(old, BAD)
    report = tmp_path / "aside.jsonl"
    result = run(old, new, "--orphans", "set-aside", "--report", report, "--json")
    done = json.loads(result.stdout)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    for table in ("Plans", "Accounts", "APIKeys"):
        aside = sum(line["table"] == table for line in lines)
        carried = rows(new, f"SELECT count(*) FROM {table}")[0][0]
        assert done["set_aside"][table] == aside
        assert (done["carried"][table], done["read"][table]) == (carried, carried + aside)
    assert done["read"] == {"Plans": 2, "Accounts": 5, "APIKeys": 12}
    assert done["reasons"] == {"invalid": 6, "orphaned": 4, "duplicate": 3}
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    by_key = {str(line["row"].get("api_key_id") or line["row"]["email"]): line for line in lines}
    assert by_key[KEYS[2]]["row"]["api_key_hash"] == HASHES[2]
    assert by_key[KEYS[2]]["reason"] == "its account_id 5 is not there"
    assert by_key[KEYS[3]]["reason"] == "its account_id 13 is not carried either"
    assert by_key["ADA@X"]["row"] == {
        "email": "ADA@X",
        "plan_id": 3,
        "phone": None,
        "account_id": 90,
    }
    assert findings(new) == []


def test_the_ids_of_accounts_set_aside_are_not_given_away(
    old: Path, new: Path, tmp_path: Path
) -> None:
    put(old, BAD)
    import_legacy(old, new, report=tmp_path / "aside.jsonl")
    with Store.open(new) as store:
        assert store.add_account("new@x.org", plan="free").account_id == 92
        assert store.issue_key("new@x.org").key.api_key_id == 3


def test_text_that_is_not_utf_8_makes_its_row_invalid(old: Path, new: Path, tmp_path: Path) -> None:
    put(old, "UPDATE Accounts SET email = CAST(x'61ff40' AS TEXT), phone = x'ff' WHERE plan_id = 8")
    import_legacy(old, new, report=tmp_path / "aside.jsonl")
    first, second = map(json.loads, (tmp_path / "aside.jsonl").read_text().splitlines())
    assert (first["row"]["phone"], second["reason"]) == (
        {"hex": "ff"},
        "its account_id 12 is not carried either",
    )


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_the_old_file_stays_byte_for_byte(old: Path, new: Path, mode: str) -> None:
    put(old, f"PRAGMA journal_mode = {mode}")
    before = sha256(old.read_bytes()).hexdigest()
    import_legacy(old, new)
    assert sha256(old.read_bytes()).hexdigest() == before


def test_what_waits_in_the_wal_of_the_old_file_is_moved_and_stays_there(
    old: Path, new: Path, tmp_path: Path
) -> None:
    put(old, "PRAGMA journal_mode = WAL")
    crashed = tmp_path / "crashed.db"
    conn = db.connect(old)
    conn.execute("INSERT INTO Plans VALUES (9, 'in the WAL')")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{old}{suffix}", f"{crashed}{suffix}")
    conn.close()
    before = [Path(f"{crashed}{suffix}").read_bytes() for suffix in ("", "-wal")]
    assert import_legacy(crashed, new).carried["Plans"] == 3
    assert [Path(f"{crashed}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


@pytest.mark.parametrize("with_report", [True, False])
def test_a_failure_at_the_last_step_leaves_no_file(
    old: Path, new: Path, monkeypatch: pytest.MonkeyPatch, with_report: bool
) -> None:
    publish = migrate.publish

    def fail(draft: Path, path: Path) -> None:
        if path == new:
            raise KeyboardInterrupt
        publish(draft, path)

    monkeypatch.setattr(migrate, "publish", fail)
    with pytest.raises(KeyboardInterrupt):
        import_legacy(old, new, report=new.with_name("aside.jsonl") if with_report else None)
    assert list(new.parent.iterdir()) == [old]


def test_nothing_is_overwritten(old: Path, new: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for store, report in ((taken, None), (new, taken), (new, new)):
        with pytest.raises(StoreExistsError):
            import_legacy(old, store, report=report)
    assert taken.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [old, taken]


def test_20_000_keys_with_a_duplicate_in_another_chunk(old: Path, new: Path) -> None:
    conn = db.connect(old)
    conn.execute("BEGIN")
    conn.executemany(
        "INSERT INTO APIKeys (api_key_id, account_id, api_key_hash) VALUES (?, 70, ?)",
        ((str(uuid4()), hash_token(str(number))) for number in range(20_000)),
    )
    conn.execute("COMMIT")
    conn.execute(f"UPDATE APIKeys SET api_key_hash = '{HASHES[0]}' WHERE rowid = 17000")
    conn.close()
    seen: list[tuple[int, int]] = []
    report = new.with_name("aside.jsonl")
    done = import_legacy(old, new, report=report, progress=lambda *pair: seen.append(pair))
    assert (done.carried["APIKeys"], done.reasons) == (20_001, {"duplicate": 1})
    assert seen[-1] == (20_006, 20_006)
    assert findings(new) == []


def test_a_file_that_is_no_old_store_is_told_on_one_line(tmp_path: Path, new: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_text("this is no database" * 99)
    Store.create(tmp_path / "store.db").close()
    dual = "CREATE TABLE APIKeys (api_key_id, api_key, account_id, api_key_hash);"
    few = "CREATE TABLE APIKeys (api_key_id, api_key_hash);"
    two = "CREATE TABLE Plans (plan_id, name); CREATE TABLE Accounts (account_id, email, plan_id);"
    cases: list[tuple[Path, type[KeystoreError], str]] = [
        (junk, NotAKeystoreError, "not a SQLite file"),
        (tmp_path, StoreNotFoundError, "no such file"),
        (tmp_path / "missing.db", StoreNotFoundError, "no such file"),
        (put(tmp_path / "a.db", "CREATE TABLE plans (x)"), NotAKeystoreError, "Accounts, APIKeys"),
        (put(tmp_path / "b.db", two + few), NotAKeystoreError, "no column account_id"),
        (put(tmp_path / "c.db", two + dual), InvalidInputError, "both kinds of id"),
        (tmp_path / "store.db", InvalidInputError, "keystore migrate --db"),
    ]
    before = sorted(tmp_path.glob("*.db"))
    for path, kind, part in cases:
        with pytest.raises(kind) as caught:
            import_legacy(path, new)
        assert part in str(caught.value), path
        assert caught.value.hint, path
        assert run(path, new).output.count("\n") == 1
    # a reader of a file in WAL mode leaves an empty -wal beside it
    assert sorted(tmp_path.glob("*.db")) == before
    assert not list(tmp_path.glob("*new.db*"))


def test_the_command_tells_what_it_did(old: Path, new: Path) -> None:
    assert run(old, new).output == (
        f"Moved 2 plans, 2 accounts and 2 keys from {old} to {new}.\n"
        "Columns not carried: Accounts.phone.\n"
        "Tables not carried: ChangeLog.\n"
    )


@pytest.mark.parametrize(
    "options", [["--orphans", "set-aside"], ["--report", "x"], ["--orphans", "drop"]]
)
def test_set_aside_and_report_go_together(old: Path, new: Path, options: list[str]) -> None:
    result = run(old, new, *options)
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_help_has_an_example() -> None:
    assert isinstance(COMMANDS[0], click.Command)
    assert "Example:\n    keystore import-legacy old.db keystore.db" in run("--help").output


@pytest.mark.parametrize("column", ["status", "expires_at", "Revoked_At"])
def test_a_column_that_may_stop_keys_is_not_dropped(old: Path, new: Path, column: str) -> None:
    put_column = db.connect(old)
    put_column.execute(f"ALTER TABLE APIKeys ADD COLUMN {column}")
    put_column.close()
    result = run(old, new)
    assert result.exit_code == 1
    assert column.lower() in result.stderr
    assert not new.exists()
