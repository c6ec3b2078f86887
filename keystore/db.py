"""Opens SQLite connections and begins transactions on stores; no other module does either.

The stdlib's implicit transactions are off (``isolation_level=None``): under them DDL and
``executescript`` commit behind the caller's back. Every write starts with BEGIN IMMEDIATE, because
a deferred transaction that reads first and then writes fails at once with SQLITE_BUSY_SNAPSHOT
when somebody else wrote in between, and no busy timeout helps.
"""

import os
import sqlite3 as _stdlib_sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from keystore import disk, forks, sql
from keystore.errors import (
    ConstraintError,
    DamagedStoreError,
    DiskFullError,
    KeystoreError,
    NotAKeystoreError,
    SchemaVersionError,
    StoreBusyError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        # Its SQLite (3.53) has neither the WAL-reset corruption of 3.7.0 to 3.51.2 nor the slow
        # statement journal of older libraries; sqlite-utils prefers it by itself, too.
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        sqlite3 = _stdlib_sqlite3

Error = sqlite3.Error
"""The driver's root exception, for those who use a bare connection."""

APPLICATION_ID = 0x4B537472
"""``PRAGMA application_id`` of a keystore: "KStr" in ASCII."""
SCHEMA_VERSION = 6
"""``PRAGMA user_version`` of a file that this program reads and writes."""
FIRST_SAFE_SQLITE = (3, 51, 3)
"""Older libraries can corrupt a WAL database when a reset races with a writer."""
BUSY_TIMEOUT_SECONDS = 10.0

_Q = sql.named("store")


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Who a store is (table StoreInfo).

    Times are UTC text. What a pull writes (``as_of_change``, ``as_of_at``, ``origin_incarnation``)
    is ``None`` for an origin and for a replica that has never synced; ``valid_until`` and
    ``max_offline_seconds`` also for a replica that pulls from a hub.
    """

    store_id: str
    role: str
    incarnation: str
    origin_id: str
    token_prefix: str
    as_of_change: int | None
    as_of_at: str | None
    origin_incarnation: str | None
    valid_until: str | None
    max_offline_seconds: int | None
    clock_mark: str | None
    replaying: int
    log_horizon: int
    compacted_to: int
    created_at: str

    @property
    def is_origin(self) -> bool:
        """Whether writes happen here."""
        return self.role == "origin"


class Closing:
    """Closes itself at the end of a ``with`` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError


class StoreFile(Closing):
    """An open store: one connection, the file's path, and transactions on it.

    Not safe for use by two threads at once. Close it, or use it in a ``with`` statement.
    """

    def __init__(self, path: Path, conn: "sqlite3.Connection") -> None:
        self.path = path
        self.conn = conn
        self.is_inherited = False
        forks.opened(self)

    def close(self) -> None:
        """Close the connection; the last one to close a file checkpoints it."""
        if not self.is_inherited:
            self.conn.close()
            forks.closed(self)

    def info(self) -> StoreInfo:
        """Read the StoreInfo row.

        Raises:
            DamagedStoreError: the row is missing.
        """
        with self.errors():
            row = self.conn.execute(_Q["store_info"]).fetchone()
        if row is None:
            raise DamagedStoreError(
                f"{self.path}: the StoreInfo row is missing.", hint="Restore a backup."
            )
        return StoreInfo(*row)

    @contextmanager
    def read(self) -> Iterator["sqlite3.Connection"]:
        """One snapshot for several reads. Keep it short: an open reader pins the WAL.

        It ends with COMMIT, so that rows written to temporary tables stay.
        """
        with self._transaction("BEGIN") as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator["sqlite3.Connection"]:
        """A write transaction: committed at the end, rolled back on any exception."""
        with self._transaction("BEGIN IMMEDIATE") as conn:
            yield conn

    @contextmanager
    def _transaction(self, begin: str) -> Iterator["sqlite3.Connection"]:
        with self.errors():
            try:
                # In here: a signal's exception may come right after it.
                self.conn.execute(begin)
                yield self.conn
                self.conn.execute("COMMIT")
            except BaseException:
                # a full disk or RAISE(ROLLBACK) may have ended the transaction already
                if self.conn.in_transaction:
                    self.conn.execute("ROLLBACK")
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's own failures into keystore errors.

        Raises:
            ForkedError: the process was forked since; the connection is not touched.
        """
        forks.refuse_inherited(self)
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise translated(error, self.path) from error


@contextmanager
def any_text(conn: "sqlite3.Connection") -> Iterator[None]:
    """Read text that is not UTF-8, which no CHECK can refuse, with U+FFFD for what it lacks."""
    before = conn.text_factory
    conn.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        yield
    finally:
        conn.text_factory = before


@contextmanager
def scratch(conn: "sqlite3.Connection", name: str) -> Iterator[None]:
    """Attach an empty database on disk under a name, and let it go.

    Not with ATTACH '': a library that was compiled with TEMP_STORE=3, as pysqlite3's is, keeps that
    in memory, whatever a pragma says. And not in the system's folder for temporary files, which
    may be memory, too.
    """
    (path,) = (row[2] for row in conn.execute("PRAGMA database_list") if row[1] == "main")
    folder = os.path.dirname(path) if path else None  # noqa: PTH120 - "" is no path
    with disk.errors(folder or tempfile.gettempdir()):
        descriptor, place = tempfile.mkstemp(prefix=".keystore-", suffix=".scratch", dir=folder)
        os.close(descriptor)
    try:
        conn.execute(f"ATTACH ? AS {name}", (place,))
        # An open file is gone with its last connection, or its process.
        if os.name == "posix":
            remove_files(Path(place))
        conn.execute(f"PRAGMA {name}.journal_mode = OFF")
        conn.execute(f"PRAGMA {name}.synchronous = OFF")
        try:
            yield
        finally:
            if conn.in_transaction:  # an error has left it, which "database is locked" would hide
                conn.execute("ROLLBACK")
            conn.execute(f"DETACH {name}")
    finally:
        remove_files(Path(place))


def open_store(
    path: Path | str, *, busy_timeout: float = BUSY_TIMEOUT_SECONDS, any_version: bool = False
) -> StoreFile:
    """Open an existing store of the current schema version, or with ``any_version`` an older one.

    Raises:
        StoreNotFoundError: no file there.
        NotAKeystoreError: a directory, no SQLite file, or another application's.
        SchemaVersionError: a newer schema, or an older one that waits for ``keystore migrate``.
        ForkedError: the file was open in the parent when this process was forked.
    """
    path = Path(path)
    if not path.exists():
        raise StoreNotFoundError(
            f"{path}: no such file.",
            hint="`keystore init` makes an origin, `keystore replicate` a replica.",
        )
    forks.refuse_open_in_parent(path)
    file = StoreFile(path, connect(path, busy_timeout=busy_timeout))
    try:
        with file.errors():
            application_id, version = versions(file.conn)
            if any_version:
                version = max(version, SCHEMA_VERSION)
            check_version(path, application_id, version)
            apply_pragmas(file.conn)
    except BaseException:
        file.close()
        raise
    return file


def connect(
    path: Path, *, create: bool = False, busy_timeout: float = BUSY_TIMEOUT_SECONDS
) -> "sqlite3.Connection":
    """Open a bare connection in autocommit mode; :func:`open_store` is what callers want."""
    mode = "rwc" if create else "rw"
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise translated(error, path) from error


def apply_pragmas(conn: "sqlite3.Connection") -> None:
    """Set what every connection of ours has, foreign keys above all."""
    conn.executescript(sql.read("connection"))


def connect_memory() -> "sqlite3.Connection":
    """Open an empty database in memory."""
    return sqlite3.connect(":memory:", isolation_level=None)


def sqlite_version() -> tuple[int, ...]:
    """Return the version of the SQLite library in use."""
    return sqlite3.sqlite_version_info


def renew_incarnation(conn: "sqlite3.Connection") -> None:
    """Tell a store apart from its copies from now on."""
    conn.execute(_Q["set_incarnation"], (str(uuid.uuid4()),))


def set_busy_timeout(conn: "sqlite3.Connection", seconds: float) -> None:
    """Set for how long a connection waits for another's lock."""
    conn.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")


def versions(conn: "sqlite3.Connection") -> tuple[int, int]:
    """Return ``(application_id, user_version)``."""
    (application_id,) = conn.execute("PRAGMA application_id").fetchone()
    (user_version,) = conn.execute("PRAGMA user_version").fetchone()
    return application_id, user_version


def check_version(path: Path, application_id: int, user_version: int) -> None:
    """Refuse what is not a keystore of exactly our version."""
    if application_id != APPLICATION_ID:
        raise NotAKeystoreError(
            f"{path}: a SQLite file, but not a keystore.", hint="Check the path (--db)."
        )
    if user_version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path}: schema version {user_version} is newer than this program's {SCHEMA_VERSION}.",
            hint="Update keystore on this machine.",
        )
    if user_version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path}: schema version {user_version} is older than this program's {SCHEMA_VERSION}.",
            hint=f"Run `keystore migrate --db {path}`.",
        )


def scalar(conn: "sqlite3.Connection", statement: str, *parameters: Any) -> Any:
    """Return the first column of the first row, or ``None`` without a row."""
    row = conn.execute(statement, parameters).fetchone()
    return None if row is None else row[0]


def identity(path: Path | str) -> tuple[int, int]:
    """Return what tells a file from another that takes its place: device and inode.

    Raises:
        StoreNotFoundError: there is none.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - on every check; a Path costs a tenth more
    except OSError as error:
        raise StoreNotFoundError(
            f"{path}: {error.strerror}.",
            hint="`keystore init` makes an origin, `keystore replicate` a replica.",
        ) from error
    return found.st_dev, found.st_ino


def remove_files(path: Path) -> None:
    """Delete a draft of a database, and what SQLite keeps beside it, as far as they can be."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            Path(f"{path}{suffix}").unlink()


_IOERR_SHMSIZE = 4874
"""(pysqlite3 does not name it)"""


def translated(error: Exception, path: Path) -> KeystoreError:
    """Return the error that says what SQLite's own means for a file."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == _IOERR_SHMSIZE:  # there is no room for the index of a WAL
        code = sqlite3.SQLITE_FULL
    kind, message, hint = _TRANSLATIONS.get(
        code & 0xFF,  # the primary code, without its extension
        (KeystoreError, "{error}.", "`keystore doctor` looks for the cause."),
    )
    return kind(f"{path}: {message.format(error=error)}", hint=hint)


_BUSY = (
    StoreBusyError,
    "another process holds the write lock.",
    "Try again when it is done; nothing was written.",
)
_DAMAGED = (
    DamagedStoreError,
    "{error}.",
    "Check the disk; restore a backup, or make a replica anew with `keystore replicate`.",
)
_TRANSLATIONS: dict[int, tuple[type[KeystoreError], str, str]] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_IOERR: _DAMAGED,
    sqlite3.SQLITE_FULL: (
        DiskFullError,
        "there is no room left on the disk.",
        "Nothing was written; make room, then run the same command again.",
    ),
    sqlite3.SQLITE_NOTADB: (NotAKeystoreError, "not a SQLite file.", "Check the path (--db)."),
    sqlite3.SQLITE_CANTOPEN: (
        NotAKeystoreError,
        "cannot be opened as a database file.",
        "Check the path (--db) and the permissions of the file and its folder.",
    ),
    sqlite3.SQLITE_READONLY: (
        KeystoreError,
        "the file or its folder is read-only.",
        "Check their permissions.",
    ),
    sqlite3.SQLITE_CONSTRAINT: (ConstraintError, "{error}.", "Nothing was written."),
}
