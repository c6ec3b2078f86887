"""Stores without our triggers: bare, or tracked by what else there is for SQLite.

apsw brings a SQLite of its own. Two libraries in one process must never open the same file (each
drops the other's locks when it closes it), so a file here belongs to one of them from the start.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keystore import db, sql


@dataclass(frozen=True, slots=True)
class Table:
    """A store to write to; ``recording`` goes around the writes of each transaction.

    The connection in ``file`` may be apsw's: what is called here works the same there.
    """

    file: db.StoreFile
    recording: Callable[[Any], AbstractContextManager[object]] = nullcontext


def missing_chronicle() -> str | None:
    """Say why sqlite-chronicle cannot be measured, if it cannot."""
    try:
        import sqlite_chronicle  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def missing_session() -> str | None:
    """Say why SQLite's session extension cannot be measured, if it cannot."""
    try:
        import apsw
    except ImportError as error:
        return str(error)
    return None if hasattr(apsw, "Session") else "this apsw was built without it"


def plain(path: Path) -> Table:
    """Make a store without any trigger."""
    return Table(_build(path, db.connect(path, create=True)))


def chronicle(path: Path) -> Table:
    """Make a store whose keys sqlite-chronicle tracks, through the same library as ours."""
    from sqlite_chronicle import enable_chronicle

    table = plain(path)
    enable_chronicle(cast("Any", table.file.conn), "APIKeys")
    return table


def apsw_plain(path: Path) -> Table:
    """Make a store without any trigger, in apsw's library."""
    import apsw

    return Table(_build(path, apsw.Connection(str(path))))


def session(path: Path) -> Table:
    """Make a store whose keys a session tracks, in apsw's library.

    A session records in memory. To be as durable as a ChangeLog, its changeset has to be stored in
    the transaction that it tells of.
    """
    table = apsw_plain(path)
    table.file.conn.execute("CREATE TABLE Changesets (id INTEGER PRIMARY KEY, changes BLOB)")
    return Table(table.file, _stored_session)


@contextmanager
def _stored_session(conn: Any) -> Iterator[None]:
    import apsw

    record = apsw.Session(conn, "main")
    try:
        record.attach("APIKeys")
        yield
        conn.execute("INSERT INTO Changesets (changes) VALUES (?)", (record.changeset(),))
    finally:
        record.close()


def _build(path: Path, conn: Any) -> db.StoreFile:
    """Do what ``keystore init`` does, but leave the triggers out."""
    for statement in sql.statements(sql.read("connection")):
        conn.execute(statement)
    conn.execute("PRAGMA journal_mode = WAL").fetchall()
    for script in ("schema", "statuses"):
        for statement in sql.statements(sql.read(script)):
            conn.execute(statement)
    return db.StoreFile(path, conn)
