"""Usage upward as signed, numbered files: written at a replica, taken at its origin.

A replica that no hub serves writes what it has recorded into files; how they get to the origin (a
disk, a mailbox, a bucket) is nobody's business here. The origin takes them in any order, twice, or
with gaps, because a row's identity is the hub's: ``(store_id, usage_id, nonce)``, in a set.

The replica notes a file, with its rows and their digest, before it writes it. So a number never
gets other rows, a kill in between leaves a file that the next export writes, and a file that was
lost on the way can be written again: the rows are append-only. The origin notes a file in the
transaction that takes its rows, so a number that is missing was never taken.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keystore import db, sql
from keystore.db import StoreFile
from keystore.errors import (
    ConstraintError,
    DamagedStoreError,
    ForeignUsageFileError,
    InvalidInputError,
    MisattributedUsageFileError,
    NotFoundError,
    RenamedUsageFileError,
    RevokedUsageKeyError,
    UnknownUsageKeyError,
    UsageFileError,
)
from keystore.failpoint import reached
from keystore.sync import received
from keystore.sync import usage_envelope as envelope
from keystore.sync.protocols import Usage
from keystore.sync.usage_keys import UsageKey, load_key, only_origin, only_replica
from keystore.sync.usage_place import place, read

if TYPE_CHECKING:
    import sqlite3

USAGE_PAGE_SIZE = envelope.MAX_ROWS
TEXT_LENGTH = 4 << 20
"""A file gets no more rows once their request ids have so many characters: its lines stay below
what an origin refuses, even if every one of them must be escaped."""
SUFFIX = ".usage"
_COLUMNS = tuple(field.name for field in fields(Usage))
_TEXT = _COLUMNS.index("request_id")

_Q = sql.named("usage_files")


@dataclass(frozen=True, slots=True)
class UsageFile:
    """A file as it is noted (table UsageFiles)."""

    store_id: str
    incarnation: str
    number: int
    first_usage_id: int
    last_usage_id: int
    digest: str

    @property
    def name(self) -> str:
        """The file's name."""
        return envelope.file_name(self.store_id, self.incarnation, self.number)


@dataclass(frozen=True, slots=True)
class Written:
    """A file that an export has written, and the rows in it."""

    path: str
    number: int
    rows: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that an ingest has accepted: ``new`` of its ``rows`` were not here before.

    ``outcome`` is ``taken``, ``already here``, or ``copy``: taken, but another file with that
    number is here as well, so the replica's store was copied.
    """

    path: str
    store_id: str
    incarnation: str
    number: int
    rows: int
    new: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that an ingest has not accepted, and why; ``code`` is that of the error."""

    path: str
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that an origin lacks of a replica, from ``first`` to ``last``."""

    store_id: str
    incarnation: str
    first: int
    last: int

    @property
    def missing(self) -> str:
        """The numbers as ``--again`` takes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of each file, and which numbers are missing now."""

    taken: list[Taken]
    refused: list[Refused]
    gaps: list[Gap]


# -- at the replica ----------------------------------------------------------------------------


def export(
    file: StoreFile,
    folder: Path,
    key_path: Path,
    *,
    on_written: Callable[[Written], None] = lambda _: None,
) -> list[Written]:
    """Write what was recorded since the last export into files; nothing new is an empty list.

    ``on_written`` gets each file as soon as it is there.

    Raises:
        WrongRoleError: the store is an origin.
        InvalidInputError: the folder or the key is missing.
        AlreadyExistsError: another copy of this replica has written to that folder.
        TargetUnavailableError: the folder cannot be written; the next export goes on.
    """
    key, written = _prepared(file, folder, key_path), []
    with file.read() as conn:
        # Who records without a pause does not keep us here.
        head = int(db.scalar(conn, _Q["usage_head"]))
    for note in chain(_notes(file, "pending_files"), _new_notes(file, head)):
        written.append(_write(file, note, folder, key))
        on_written(written[-1])
    return written


def export_again(
    file: StoreFile, folder: Path, key_path: Path, first: int, last: int
) -> list[Written]:
    """Write files again that were lost on the way, of every incarnation that this store had.

    Raises:
        NotFoundError: no such number was ever written.
        KeystoreError: as :func:`export`.
    """
    key = _prepared(file, folder, key_path)
    notes = list(_notes(file, "numbered_files", first=first, last=last))
    if not notes:
        raise NotFoundError(
            f"{file.path} has written no usage file of such a number.",
            hint="`keystore usage gaps` at the origin lists what is missing.",
        )
    return [_write(file, note, folder, key) for note in notes]


def _prepared(file: StoreFile, folder: Path, key_path: Path) -> Ed25519PrivateKey:
    only_replica(file)
    if not folder.is_dir():
        raise InvalidInputError(f"{folder}: no such folder.", hint="Make it first.")
    return load_key(key_path)


def _notes(file: StoreFile, statement: str, **where: int) -> Iterator[UsageFile]:
    with file.read() as conn:
        rows = conn.execute(_Q[statement], {"store_id": file.info().store_id, **where}).fetchall()
    return (UsageFile(*row) for row in rows)


def _new_notes(file: StoreFile, head: int) -> Iterator[UsageFile]:
    while (note := _note_next(file, head)) is not None:
        reached("export.noted")
        yield note


def _note_next(file: StoreFile, head: int) -> UsageFile | None:
    """Give the next number to the next rows, for good."""
    with file.write() as conn:
        info = file.info()
        where = {"store_id": info.store_id, "incarnation": info.incarnation}
        number, after = conn.execute(_Q["next_file"], where).fetchone()
        rows = _rows(conn, after + 1, head)
        if not rows:
            return None
        first, last = rows[0][0], rows[-1][0]
        draft = UsageFile(info.store_id, info.incarnation, number, first, last, digest="")
        note = replace(draft, digest=_digest(_lines(info.origin_id, draft, rows)))
        conn.execute(_Q["note_file"], {**asdict(note), "is_pending": True})
        return note


def _write(file: StoreFile, note: UsageFile, folder: Path, key: Ed25519PrivateKey) -> Written:
    with file.read() as conn:
        rows = _rows(conn, note.first_usage_id, note.last_usage_id, is_bounded=False)
    lines = _lines(file.info().origin_id, note, rows) if rows else b""
    if _digest(lines) != note.digest:
        raise DamagedStoreError(
            f"{file.path}: usage {note.first_usage_id} to {note.last_usage_id} is not what it was.",
            hint="`keystore usage compact` has summed it, or somebody changed the UsageLog: then "
            "restore a backup.",
        )
    path = folder / note.name
    place(path, envelope.seal(key, envelope.USAGE_TYPE, envelope.pack(lines)))
    reached("export.placed")
    with file.write() as conn:
        conn.execute(_Q["file_written"], asdict(note))
    reached("export.written")
    return Written(str(path), note.number, len(rows))


def _rows(
    conn: "sqlite3.Connection", first: int, last: int, *, is_bounded: bool = True
) -> list[tuple[Any, ...]]:
    """Read rows of the UsageLog; as many as a file takes, or all of them."""
    where = {"first_usage_id": first, "last_usage_id": last, "limit": USAGE_PAGE_SIZE}
    rows, size = [], 0
    # (text that is not UTF-8 travels as U+FFFD, as to a hub)
    with db.any_text(conn):
        for row in conn.execute(_Q["usage_rows"], where if is_bounded else {**where, "limit": -1}):
            rows.append(row)
            size += len(row[_TEXT] or "")
            if is_bounded and size >= TEXT_LENGTH:
                break
    return rows


def _lines(origin_id: str, note: UsageFile, rows: Sequence[tuple[Any, ...]]) -> bytes:
    header = envelope.Header(
        store_id=note.store_id,
        incarnation=note.incarnation,
        origin_id=origin_id,
        number=note.number,
        first_usage_id=note.first_usage_id,
        last_usage_id=note.last_usage_id,
        count=len(rows),
    )
    named = map(_named, rows)
    return b"".join(map(envelope.line, (header.model_dump(), *named)))


def _named(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    if found["service_id"] is None:
        del found["service_id"]  # the digest of a file that an earlier version wrote stays
    return found


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


# -- at the origin -----------------------------------------------------------------------------


def ingest(file: StoreFile, paths: Sequence[Path]) -> Ingested:
    """Take usage files; of a folder all whose names end in ``.usage``.

    A file that is refused does not keep the others from being taken.

    Raises:
        WrongRoleError: the store is a replica.
        KeystoreError: the store cannot be written; what was taken before stays.
    """
    only_origin(file)
    taken, refused = [], []
    for path, is_named in _files(paths):
        label = os.fsencode(path).decode("utf-8", "backslashreplace")
        try:
            taken.append(_take(file, path, label, follow=is_named))
        except (UsageFileError, ConstraintError) as error:
            refused.append(Refused(label, error.code, error.message, error.hint))
    return Ingested(taken, refused, gaps(file))


def gaps(file: StoreFile) -> list[Gap]:
    """Return which numbers are missing below the highest one, by replica and incarnation.

    Raises:
        WrongRoleError: the store is a replica.
    """
    only_origin(file)
    with file.read() as conn:
        return [Gap(*row) for row in conn.execute(_Q["missing_numbers"])]


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield files, and whether each was named itself: what lies in a folder may be anybody's."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        try:
            found = sorted(path.iterdir())
        except OSError:
            yield path, True  # it is refused there, and says why
            continue
        yield from ((item, False) for item in found if item.name.endswith(SUFFIX))


def _take(file: StoreFile, path: Path, label: str, *, follow: bool) -> Taken:
    said = envelope.parse(read(path, envelope.MAX_FILE_BYTES, follow=follow), envelope.USAGE_TYPE)
    with file.read() as conn:
        key = _key(conn, said.fingerprint)
    envelope.verify(said, envelope.load_public(key.public_key))
    lines = envelope.unpack(said.payload)
    header, rows = envelope.parse_lines(lines)
    _refuse_others(file.info().store_id, key, header, path)
    note = UsageFile(
        header.store_id,
        header.incarnation,
        header.number,
        header.first_usage_id,
        header.last_usage_id,
        _digest(lines),
    )
    outcome, new = "already here", 0
    reached("ingest.verified")
    with file.write() as conn:
        known = {found for (found,) in conn.execute(_Q["file_digests"], asdict(note))}
        if note.digest not in known:
            _refuse_revoked(_key(conn, key.fingerprint))
            outcome = "copy" if known else "taken"
            conn.execute(_Q["note_file"], {**asdict(note), "is_pending": False})
            new = received.add(conn, note.store_id, rows)
            reached("ingest.inserted")
    reached("ingest.taken")
    return Taken(label, note.store_id, note.incarnation, note.number, header.count, new, outcome)


def _key(conn: "sqlite3.Connection", fingerprint: str) -> UsageKey:
    row = conn.execute(_Q["key"], (fingerprint,)).fetchone()
    if row is None:
        raise UnknownUsageKeyError(
            "signed by a key that is not enrolled here.",
            hint="`keystore usage key` at the replica, then `keystore usage enroll` here.",
        )
    return UsageKey(*row)


def _refuse_others(store_id: str, key: UsageKey, header: envelope.Header, path: Path) -> None:
    if header.store_id != key.store_id:
        raise MisattributedUsageFileError(
            f"signed by {key.store_id}, and it speaks for {header.store_id}.",
            hint="Nothing of it was taken; find out who has that replica's key, and revoke it.",
        )
    if header.origin_id != store_id:
        raise ForeignUsageFileError(
            f"it holds usage of origin {header.origin_id}, not of {store_id}.",
            hint="Take it at that origin.",
        )
    if path.name != header.file_name:
        raise RenamedUsageFileError(
            f"what was signed is {header.file_name}.", hint="Give it that name back."
        )


def _refuse_revoked(key: UsageKey) -> None:
    """Refuse what a revoked key has signed; but what is here already may come again."""
    if key.revoked_at is not None:
        raise RevokedUsageKeyError(
            f"signed by a key that was revoked at {key.revoked_at}.",
            hint="Give the replica a new key, and have it write the file again: "
            "`keystore usage export --again NUMBER`.",
        )
