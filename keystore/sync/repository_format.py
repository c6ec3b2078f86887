"""What a repository says of itself beside what TUF says: the signed fields of keystore's own.

The root key signs the :class:`Terms`, the online key everything else. ``docs/repository.md`` tells
the whole format.
"""

import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp

from keystore import db
from keystore.errors import (
    IncompleteStateError,
    InvalidInputError,
    SchemaVersionError,
    UnsafeNameError,
)
from keystore.tables import TRACKED

FIELD = "x-keystore"
"""The name of keystore's field in root and timestamp."""
FORMAT: Literal[1] = 1
SNAPSHOT_NAME = "snapshot.sqlite.zst"
_CHANGES_NAME = re.compile(r"changes-\d{1,19}-\d{1,19}\.jsonl\.zst")


class _Signed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


_T = TypeVar("_T", bound=_Signed)


class Scope(_Signed):
    """Whose rows a repository carries: those of one account, or of one service.

    ``record_id`` is the origin's internal id, which never changes; ``name`` is what people call it.
    """

    kind: Literal["account", "service"]
    record_id: PositiveInt
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Terms(_Signed):
    """What holds for a repository until its root key says otherwise."""

    format: Literal[1] = FORMAT
    repository_id: uuid.UUID
    lifetime_seconds: PositiveInt
    """How long the signatures of a publication are good for."""
    max_offline_seconds: NonNegativeInt
    """How long a replica may go on after that, without contact."""
    scope: Scope | None = None


class Stamp(_Signed):
    """What the timestamp says of the state that it belongs to."""

    up_to: NonNegativeInt
    as_of_at: str
    push_token: str
    counts: dict[str, NonNegativeInt]


class SnapshotInfo(_Signed):
    """What the snapshot target says of itself, and which changes go with it, oldest first."""

    origin_id: str
    incarnation: str
    token_prefix: str
    schema_version: int
    up_to: NonNegativeInt
    length: NonNegativeInt
    """Bytes of the SQLite file, so that no more is ever decompressed."""
    changes: tuple[str, ...]


class ChangesInfo(_Signed):
    """What a segment of changes says of itself.

    It names every record that changed later than ``after``, as it was right after ``up_to``.
    """

    after: NonNegativeInt
    up_to: NonNegativeInt
    length: NonNegativeInt
    level: NonNegativeInt
    """How often it was merged from smaller ones."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of changes that a repository offers."""

    target: TargetFile
    info: ChangesInfo


@dataclass(frozen=True, slots=True)
class State:
    """What a repository offers: one snapshot, and the changes around it, oldest first.

    The chain of changes may begin before the snapshot: who has that much needs no snapshot.
    """

    snapshot: TargetFile
    info: SnapshotInfo
    changes: tuple[Segment, ...] = field(default=())

    @property
    def up_to(self) -> int:
        """The change that snapshot and changes together end with."""
        return self.changes[-1].info.up_to if self.changes else self.info.up_to

    def changes_after(self, change: int) -> tuple[Segment, ...] | None:
        """Return the changes that lead from ``change`` to now; ``None`` if they do not."""
        wanted = tuple(segment for segment in self.changes if segment.info.up_to > change)
        if (wanted and wanted[0].info.after > change) or (not wanted and change < self.up_to):
            return None
        return wanted

    @property
    def since_snapshot(self) -> tuple[Segment, ...]:
        """The changes that lead from the snapshot to now."""
        return tuple(segment for segment in self.changes if segment.info.up_to > self.info.up_to)


def terms_of(root: bytes) -> Terms:
    """Read the terms from a root file.

    Raises:
        InvalidInputError: these bytes are no root file of a keystore repository.
    """
    try:
        signed = Metadata[Root].from_bytes(root).signed
        return Terms.model_validate(signed.unrecognized_fields[FIELD])
    except (RepositoryError, AttributeError, KeyError, ValueError) as error:
        raise InvalidInputError(
            "that is not the root file of a keystore repository.",
            hint="Pass the root.json that `keystore repo create` wrote (--root).",
        ) from error


def stamp_of(timestamp: Timestamp) -> Stamp:
    """Read the stamp from verified metadata."""
    return _validated(Stamp, timestamp.unrecognized_fields.get(FIELD), "timestamp")


def changes_name(after: int, up_to: int) -> str:
    """Name a segment of changes."""
    return f"changes-{after}-{up_to}.jsonl.zst"


def read_state(targets: dict[str, TargetFile]) -> State | None:
    """Read what verified targets offer; ``None`` if nothing was published yet.

    Raises:
        IncompleteStateError: a signed field is missing or wrong.
        SchemaVersionError: the publisher is newer than this program.
        UnsafeNameError: a name is none that keystore gives.
    """
    snapshot = targets.get(SNAPSHOT_NAME)
    if snapshot is None:
        return None
    info = _validated(SnapshotInfo, snapshot.unrecognized_fields.get("custom"), SNAPSHOT_NAME)
    if info.schema_version > db.SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the repository's schema version is {info.schema_version}, "
            f"this program's {db.SCHEMA_VERSION}.",
            hint="Update keystore on this machine.",
        )
    segments = []
    for name in info.changes:
        if not _CHANGES_NAME.fullmatch(name):
            raise UnsafeNameError(
                f"the repository names a file {name!r}, as no keystore does.",
                hint="It was refused; publish anew with the origin's keystore.",
            )
        target = targets.get(name)
        if target is None:
            raise _incomplete(name)
        custom = target.unrecognized_fields.get("custom")
        segments.append(Segment(target, _validated(ChangesInfo, custom, name)))
    return State(snapshot, info, tuple(segments))


def columns_by_table() -> dict[str, list[str]]:
    """Return the columns of each tracked table, in the order in which they travel."""
    return {table.name: [column.name for column in table.columns] for table in TRACKED}


def _validated(kind: type[_T], said: Any, where: str) -> _T:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise _incomplete(f"{where}: {error.errors()[0]['loc']}") from error


def _incomplete(what: str) -> IncompleteStateError:
    return IncompleteStateError(
        f"the repository's metadata lack {what}.", hint="Publish anew with a current keystore."
    )
