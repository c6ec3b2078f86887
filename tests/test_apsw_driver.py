"""The stand-in for the driver is honest: keystore does with it what it does with the real one."""

import re
from pathlib import Path
from typing import Any

import pytest

from keystore import changelog, db
from keystore.db import open_store
from keystore.tables import TRACKED
from tests.apsw_driver import apsw_drives
from tests.storage_scenes import SCENES, copied

STATEMENTS = (
    ("SELECT 1 AS a, 'x' AS b, x'00ff' AS c, NULL AS d, 1.5 AS e", ()),
    ("SELECT * FROM T ORDER BY x", ()),
    ("SELECT * FROM T WHERE x > :x", {"x": 5}),
    ("INSERT INTO T (x, y) VALUES (?, ?)", (4, "four")),
    ("-- said\nINSERT OR IGNORE INTO T (x, y) VALUES (1, 'again')", ()),
    ("UPDATE T SET y = 'z' WHERE x < 3", ()),
    ("DELETE FROM T", ()),
    ("DELETE FROM T WHERE x = 1 RETURNING y", ()),
    ("CREATE TABLE U (v)", ()),
    ("PRAGMA user_version", ()),
    ("INSERT INTO T (x) VALUES (1)", ()),
    ("INSERT INTO T (x, z) VALUES (9, 9)", ()),
    ("INSERT INTO T (x, y) VALUES (8, NULL)", ()),
    ("SELECT * FROM Nowhere", ()),
    ("SELECT abs(-9223372036854775808)", ()),
    ("COMMIT", ()),
)


def outcome(statement: str, parameters: Any) -> Any:
    """What a connection of keystore's says to a statement."""
    conn = db.connect_memory()
    try:
        conn.executescript(
            "CREATE TABLE T (x INTEGER PRIMARY KEY, y TEXT NOT NULL DEFAULT '' CHECK (y <> 'bad'));"
            "INSERT INTO T VALUES (1, 'one'), (2, 'two'), (3, 'three')"
        )
        cursor = conn.execute(statement, parameters)
        names = [column[0] for column in cursor.description or ()]
        said = cursor.fetchone(), cursor.fetchmany(1), cursor.fetchall()
    except db.Error as error:
        return type(error).__name__, str(error), error.sqlite_errorcode & 0xFF
    else:
        return names, said, cursor.rowcount, conn.in_transaction
    finally:
        conn.close()


@pytest.mark.parametrize(("statement", "parameters"), STATEMENTS)
def test_a_statement_has_the_same_outcome_with_either_driver(
    statement: str, parameters: Any
) -> None:
    real = outcome(statement, parameters)
    with apsw_drives():
        assert outcome(statement, parameters) == real


def rows(path: Path) -> Any:
    """The rows that are synced, but for their times."""
    with open_store(path) as file:
        return {
            table.name: re.sub(r"'\d{4}-\d\d-\d\d [\d:]+'", "then", repr(found))
            for table in TRACKED
            if (found := list(changelog.all_records(file.conn, table)))
        }


@pytest.mark.parametrize("name", ["store-v1", "replica-v5", "push", "pull", "flush", "charge"])
def test_what_keystore_does_comes_to_the_same_with_either_driver(name: str, tmp_path: Path) -> None:
    scene, base = SCENES[name](), tmp_path / "base"
    base.mkdir()
    scene.prepare(base)
    with copied(base, tmp_path / "real") as real, copied(base, tmp_path / "apsw") as other:
        scene.run(real, scene.hub.twin())
        with apsw_drives():
            scene.run(other, hub := scene.hub.twin())
        scene.check(other, hub)
        assert rows(real / scene.path) == rows(other / scene.path)
