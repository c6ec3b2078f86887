"""The snapshot of a repository: a replica's file, with all rows and indexes, and nothing local.

So a first start needs no insert: it is decompressed straight into its place.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from keystore import db, migrate, sql
from keystore.changelog import PAGE_SIZE, Page
from keystore.errors import (
    ConstraintError,
    DamagedStoreError,
    DiskFullError,
    IncompleteStateError,
    KeystoreError,
)
from keystore.sync.packing import pack, unpack
from keystore.sync.protocols import Origin, PageCounts
from keystore.sync.repository_format import SnapshotInfo
from keystore.sync.staging import staged
from keystore.tables import TRACKED, Table

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("snapshot")
_OURS = {table.name for table in TRACKED} | {"StoreInfo", "sqlite_sequence"}


def build(path: Path, origin: Origin) -> None:
    """Make an empty state file."""
    migrate.build_replica(path, origin_id=origin.store_id, token_prefix=origin.token_prefix)
    conn = db.connect(path)
    try:
        conn.execute("PRAGMA journal_mode = DELETE")
    finally:
        conn.close()


def unpacked(packed: IO[bytes], path: Path, info: SnapshotInfo) -> None:
    """Unpack a snapshot to ``path``, in the current schema.

    Raises:
        IncompleteStateError: it is no state file of ours.
        DecompressionBombError, DiskFullError: see :func:`.packing.unpack`.
    """
    unpack(packed, path, info.length)
    try:
        with db.open_store(path, any_version=True) as file:
            conn = file.conn
            # Who signed it may be a thief: what it brings must not act.
            if any(kind == "trigger" for kind, _ in migrate.schema_of(conn)):
                raise _not_ours("it has triggers")
            version = db.versions(conn)[1]
        if version != info.schema_version:
            raise _not_ours(f"its schema version is {version}, not {info.schema_version}")
        if version < db.SCHEMA_VERSION:
            migrate.upgrade(path)
        with db.open_store(path) as file:
            _strip(file, info)
    except (IncompleteStateError, DiskFullError):
        raise
    except KeystoreError as error:
        raise _not_ours(error.message) from error
    except db.Error as error:
        raise _not_ours(str(error)) from error


def _strip(file: db.StoreFile, info: SnapshotInfo) -> None:
    """Leave nothing but the rows of an origin, its schema and our own word of whose they are."""
    conn = file.conn
    conn.execute("PRAGMA journal_mode = DELETE")
    found = migrate.schema_of(conn)
    for kind, name in [key for key in found if key[0] == "trigger"]:
        conn.execute(f'DROP TRIGGER "{name}"')
        del found[kind, name]
    expected = migrate.expected_schema(is_replica=True)
    if found != {key: text for key, text in expected.items() if key[0] != "trigger"}:
        raise _not_ours("its schema is another")
    for kind, name in found:
        if kind == "table" and name not in _OURS and db.scalar(conn, fill("any_row", name)):
            raise _not_ours(f"there are rows in {name}")
    if db.scalar(conn, fill("count", "StoreInfo")) != 1:
        raise _not_ours("it says twice, or not at all, whose it is")
    with file.write():
        conn.execute(_Q["forget_sequences"])  # (one may say that a table has no ids left)
        for table in TRACKED:
            conn.execute(fill("set_sequence", table))
    info_row = file.info()
    if info_row.is_origin or info_row.origin_id != info.origin_id:
        raise _not_ours("it is another store's")


def open_scratch(path: Path) -> "sqlite3.Connection":
    """Open a state file to work on; it is finished, or thrown away."""
    conn = db.connect(path)
    conn.execute("PRAGMA journal_mode = OFF")
    conn.execute("PRAGMA synchronous = OFF")
    conn.execute("PRAGMA cache_size = -32768")
    return conn


def apply(path: Path, changes: Iterable[Page]) -> None:
    """Bring a state file forward by changes."""
    with db.StoreFile(path, open_scratch(path)) as file:
        try:
            with file.errors(), staged(file.conn) as staging, file.write():
                for page in changes:
                    staging.add(page)
                staging.apply()
        except (ConstraintError, DamagedStoreError) as error:
            raise _not_ours(error.message) from error


def pack_state(path: Path, packed: Path, counts: PageCounts) -> int:
    """Compress a state file; return its length before that.

    Raises:
        IncompleteStateError: it does not hold what the store has.
    """
    compact = path.with_suffix(".compact")
    conn = db.connect(path)
    try:
        held = {table.name: db.scalar(conn, fill("count", table)) for table in TRACKED}
        if held != dict(counts):
            raise IncompleteStateError(
                f"the repository would hold {held}, the store has {dict(counts)}.",
                hint="Nothing was published; please report this.",
            )
        # Indexes that grew row by row have gaps; every edge would download them.
        conn.execute("VACUUM INTO ?", (str(compact),))
    finally:
        conn.close()
    try:
        pack(compact, packed)
        return compact.stat().st_size
    finally:
        compact.unlink()


def pages_of(path: Path) -> Iterator[Page]:
    """Yield all rows of a state file, by table and id."""
    conn = db.connect(path)
    try:
        for table in TRACKED:
            rows = conn.execute(fill("rows", table))
            while found := rows.fetchmany(PAGE_SIZE):
                yield Page(table, found)
    finally:
        conn.close()


def fill(name: str, table: Table | str) -> str:
    """Return a statement of snapshot.sql for one table; a name will do where no column is asked."""
    if isinstance(table, str):
        return _Q[name].format(table=table)
    return _Q[name].format(table=table.name, id=table.id, columns=table.column_list)


def _not_ours(why: str) -> IncompleteStateError:
    return IncompleteStateError(
        f"the repository's snapshot cannot be used: {why}.",
        hint="Publish it anew with the origin's keystore.",
    )
