"""The snapshot of a repository: the key tables in a compact SQLite file, packed and announced."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from tuf.api.metadata import TargetFile

from keystore import db, sql
from keystore.changelog import PAGE_SIZE, Page
from keystore.errors import IncompleteStateError, SchemaVersionError
from keystore.tables import TRACKED, Table

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SNAPSHOT_NAME = "snapshot.sqlite.zst"
_CHUNK = 1 << 20
_Q = sql.named("snapshot")


class Announcement(BaseModel):
    """The signed ``custom`` field of the snapshot target."""

    model_config = ConfigDict(frozen=True)

    origin_id: str
    incarnation: str
    token_prefix: str
    schema_version: int
    up_to: NonNegativeInt
    as_of_at: str
    push_token: str
    counts: dict[str, NonNegativeInt]
    length: NonNegativeInt
    """Bytes of the SQLite file, so that no more is ever decompressed."""


def announcement(target: TargetFile) -> Announcement:
    """Read what a snapshot target says of itself.

    Raises:
        IncompleteStateError: it lacks something.
        SchemaVersionError: it is newer than this program.
    """
    try:
        said = Announcement.model_validate(target.unrecognized_fields.get("custom"))
    except ValidationError as error:
        raise IncompleteStateError(
            f"the repository's snapshot lacks {error.errors()[0]['loc']}.",
            hint="Publish it anew with a current keystore.",
        ) from error
    if said.schema_version > db.SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the repository's schema version is {said.schema_version}, "
            f"this program's {db.SCHEMA_VERSION}.",
            hint="Update keystore on this machine.",
        )
    return said


def pack(data: bytes) -> bytes:
    """Compress a snapshot as it is published."""
    return zstd.compress(data)


def unpack(packed: Path, path: Path, length: int) -> None:
    """Decompress a snapshot to ``path``; never more than ``length`` bytes.

    Raises:
        IncompleteStateError: it is damaged, or not of that length.
    """
    written = 0
    try:
        with zstd.open(packed, "rb") as source, path.open("wb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > length:
                    break
                file.write(chunk)
    except (zstd.ZstdError, EOFError) as error:
        raise IncompleteStateError(
            "the repository's snapshot cannot be decompressed.", hint="Publish it anew."
        ) from error
    if written != length:
        raise IncompleteStateError(
            f"the repository's snapshot is not the announced {length} bytes.",
            hint="Publish it anew.",
        )


def pages_of(path: Path) -> Iterator[Page]:
    """Yield all rows of a snapshot file, by table and id."""
    conn = db.connect(path)
    try:
        for table in TRACKED:
            rows = conn.execute(fill("rows", table))
            while found := rows.fetchmany(PAGE_SIZE):
                yield Page(table, found)
    finally:
        conn.close()


def fill(name: str, table: Table) -> str:
    """Return a statement of snapshot.sql for one table."""
    return _Q[name].format(
        table=table.name,
        id=table.id,
        columns=table.column_list,
        other_columns=", ".join(column.name for column in table.columns[1:]),
        marks=", ".join("?" * len(table.columns)),
    )
