"""apsw in the place of keystore's driver, so that SQLite's files are ours to break.

keystore opens all of its connections in :mod:`keystore.db`; there this adapter takes the place of
``connect``. It has as much of the DB-API as keystore uses, raises the real driver's exceptions, and
opens each file in the VFS that is named. Then apsw's is the only SQLite that has the file open.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from keystore import db

DRIVER: Any = db.sqlite3  # type: ignore[attr-defined,unused-ignore]
_CHANGES = re.compile(r"(?:\s|--[^\n]*\n)*(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_CLASSES = {
    apsw.SQLITE_CONSTRAINT: "IntegrityError",
    apsw.SQLITE_MISMATCH: "IntegrityError",
    apsw.SQLITE_CORRUPT: "DatabaseError",
    apsw.SQLITE_NOTADB: "DatabaseError",
    apsw.SQLITE_INTERNAL: "InternalError",
    apsw.SQLITE_TOOBIG: "DataError",
    apsw.SQLITE_MISUSE: "InterfaceError",
}
_END = object()
Parameters = Sequence[Any] | Mapping[str, Any]


@contextmanager
def _errors() -> Iterator[None]:
    """Raise what the real driver would."""
    try:
        yield
    except apsw.Error as error:
        code = getattr(error, "extendedresult", 0) or getattr(error, "result", 1)
        kind = getattr(DRIVER, _CLASSES.get(code & 0xFF, "OperationalError"))
        translated = kind(str(error))
        translated.sqlite_errorcode = code
        raise translated from error


def _describe(described: list[Any], cursor: apsw.Cursor, *_: object) -> bool:
    described.append(cursor.get_description())
    return True


class Cursor:
    """Runs one statement at a time, and is a row ahead of its reader, as the real one is."""

    def __init__(self, conn: "Connection") -> None:
        self._conn = conn
        self._cursor: apsw.Cursor | None = None
        self._next: Any = _END
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    def execute(self, statement: str, parameters: Parameters = ()) -> "Cursor":
        self.rowcount = 0 if _CHANGES.match(statement) else -1
        self._run(statement, parameters)
        return self

    def executemany(self, statement: str, rows: Iterable[Parameters]) -> "Cursor":
        self.rowcount = 0
        for row in rows:
            self._run(statement, row)
        return self

    def _run(self, statement: str, parameters: Parameters) -> None:
        self.close()
        self.description = None
        with _errors(), self._conn.noticing_commits():
            self._cursor = self._conn.apsw.cursor()
            described: list[Any] = []
            # (not by a method: in a cycle, the statement would not end with the last reference)
            self._cursor.exec_trace = partial(_describe, described)
            self._cursor.execute(statement, parameters)
            columns = described[-1] if described else ()
            self.description = tuple((name, *[None] * 6) for name, _ in columns) or None
            if self.rowcount >= 0:
                self.rowcount += self._conn.apsw.changes()
                self.lastrowid = self._conn.apsw.last_insert_rowid()
            self._next = next(self._cursor, _END)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._next is _END or self._cursor is None:
            raise StopIteration
        row = self._next
        with _errors(), self._conn.noticing_commits():
            self._next = next(self._cursor, _END)
        return row

    def fetchone(self) -> Any:
        return next(self, None)

    def fetchmany(self, size: int) -> list[Any]:
        return [row for _, row in zip(range(size), self, strict=False)]

    def fetchall(self) -> list[Any]:
        return list(self)

    def close(self) -> None:
        self._next = _END
        if self._cursor is not None:
            with suppress(apsw.Error):
                self._cursor.close(True)


class Connection:
    """What keystore uses of a connection. Text is always UTF-8: ``text_factory`` has no effect."""

    def __init__(self, name: str, vfs: str, on_commit: Callable[["Connection"], None]) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        with _errors():
            self.apsw = apsw.Connection(name, flags=flags, vfs=vfs)
        self.text_factory: Any = str
        self._on_commit = on_commit
        self._has_committed = False
        self.apsw.set_wal_hook(self._in_wal)

    def _in_wal(self, conn: apsw.Connection, name: str, pages: int) -> int:
        """Checkpoint as SQLite does: what goes wrong with that is no error of the commit.

        (apsw would raise what its VFS raised, though SQLite itself goes on.)
        """
        self._has_committed = True
        if pages >= CHECKPOINT_AT:
            with suppress(apsw.Error):
                conn.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK

    @contextmanager
    def noticing_commits(self) -> Iterator[None]:
        yield
        if self._has_committed:
            self._has_committed = False
            self._on_commit(self)

    @property
    def in_transaction(self) -> bool:
        return self.apsw.in_transaction

    def cursor(self) -> Cursor:
        return Cursor(self)

    def execute(self, statement: str, parameters: Parameters = ()) -> Cursor:
        return Cursor(self).execute(statement, parameters)

    def executemany(self, statement: str, rows: Iterable[Parameters]) -> Cursor:
        return Cursor(self).executemany(statement, rows)

    def executescript(self, script: str) -> None:
        if self.in_transaction:
            self.execute("COMMIT")
        with _errors(), self.noticing_commits():
            self.apsw.execute(script)

    def backup(self, target: "Connection") -> None:
        with _errors(), self.apsw, target.apsw.backup("main", self.apsw, "main") as copying:
            while not copying.done:
                copying.step()

    def close(self) -> None:
        # the real driver does not tell either what went wrong with the last checkpoint
        with suppress(apsw.Error):
            self.apsw.close(True)


CHECKPOINT_AT = 1000
"""Pages in a WAL from which on a commit copies them to the database: SQLite's own default."""


@contextmanager
def apsw_drives(
    vfs: str = "unix", on_commit: Callable[[Connection], None] = lambda _: None
) -> Iterator[None]:
    """Let apsw open all of keystore's connections, for the length of a ``with`` block."""

    def connect(name: str, *, timeout: float = 5, uri: bool = False, **_: object) -> Connection:
        conn = Connection(name, vfs if uri else "unix", on_commit)
        conn.apsw.set_busy_timeout(int(timeout * 1000))
        return conn

    class Driver(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return getattr(DRIVER, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "sqlite3", Driver(connect=connect))
        yield
