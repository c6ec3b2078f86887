"""SQL in files: every statement that is asked for exists, and the tables are carried whole."""

import re
from pathlib import Path

import pytest

import keystore
from keystore import Store, sql
from keystore.tables import TRACKED

PACKAGE = Path(keystore.__file__).parent
FILES = sorted(path.stem for path in (PACKAGE / "sql").glob("*.sql"))


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        match = re.search(r'_Q = sql\.named\("(\w+)"\)', text)
        if match:
            used = set(re.findall(r'_Q\[\s*"(\w+)"\s*\]', text))
            used |= set(re.findall(r'_fill\(\s*"(\w+)"', text))
            used |= set(re.findall(r'\.(?:_query|rows?|_windows?)\(\s*(?:conn, )?"(\w+)"', text))
            assert used <= sql.named(match[1]).keys(), path


def test_no_statement_is_dead() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for name in FILES:
        for statement in sql.named(name):
            is_built = statement.endswith(("_id", "_names")) and '_Q[f"{kind}_' in code
            assert f'"{statement}"' in code or is_built, f"{name}.sql: {statement}"


def test_the_tracked_tables_are_described_column_by_column(store: Store) -> None:
    for table in TRACKED:
        columns = store.file.conn.execute(f"PRAGMA table_info({table.name})").fetchall()
        assert [column.name for column in table.columns] == [column[1] for column in columns]


@pytest.mark.parametrize("table", [*(table.name for table in TRACKED), "ChangeLog", "UsageLog"])
def test_ids_are_never_used_again(store: Store, table: str) -> None:
    (text,) = store.file.conn.execute(
        "SELECT sql FROM sqlite_master WHERE name = ?", (table,)
    ).fetchone()
    assert "INTEGER PRIMARY KEY AUTOINCREMENT" in text


def test_the_changelog_has_the_columns_and_no_constraint_that_could_drop_a_row(
    store: Store,
) -> None:
    columns = store.file.conn.execute("PRAGMA table_info(ChangeLog)").fetchall()
    assert [(name, kind) for _, name, kind, *_ in columns] == [
        ("change_id", "INTEGER"),
        ("table_name", "TEXT"),
        ("record_id", "INTEGER"),
        ("operation", "TEXT"),
        ("occurred_at", "TIMESTAMP"),
    ]
    (text,) = store.file.conn.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'ChangeLog'"
    ).fetchone()
    assert "UNIQUE" not in text
    assert "CHECK" not in text
