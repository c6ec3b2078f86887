"""What a repository says of itself beside what TUF says: the signed fields of keystore's own.

The root key signs the :class:`Terms`, the online key everything else. ``docs/repository.md`` tells
the whole format.
"""

import re
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp

from keystore import db, tokens
from keystore.clock import parse_utc
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
_ANEW = (
    "Find out who has signed that; then, at the origin, remove metadata/timestamp.json and run "
    "`keystore sync TARGET --reconcile`."
)
"""(a plain sync reads what is published first, and stops there as well)"""
_CHANGES_NAME = re.compile(r"changes-[0-9]{1,19}-[0-9]{1,19}\.jsonl\.zst")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What a column of SQLite can hold."""
_Id = Annotated[str, AfterValidator(lambda value: str(uuid.UUID(value)))]


def _time(value: str) -> str:
    if not 1000 <= parse_utc(value).year < 3000:  # the tables take no other
        raise ValueError(value)
    return value


def _prefix(value: str) -> str:
    if not tokens.is_valid_prefix(value):
        raise ValueError(value)
    return value


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

    up_to: _Count
    as_of_at: Annotated[str, AfterValidator(_time)]
    push_token: str
    counts: dict[str, _Count]


class SnapshotInfo(_Signed):
    """What the snapshot target says of itself, and which changes go with it, oldest first."""

    origin_id: _Id
    incarnation: _Id
    token_prefix: Annotated[str, AfterValidator(_prefix)]
    schema_version: PositiveInt
    up_to: _Count
    length: _Count
    """Bytes of the SQLite file, so that no more is ever decompressed."""
    changes: tuple[str, ...]


class ChangesInfo(_Signed):
    """What a segment of changes says of itself.

    It names every record that changed later than ``after``, as it was right after ``up_to``.
    """

    after: _Count
    up_to: _Count
    length: _Count
    level: _Count
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


def stamp_of(timestamp: Timestamp, state: State | None = None) -> Stamp:
    """Read the stamp of a state from verified metadata.

    Raises:
        IncompleteStateError: it is missing or wrong, or that of another state.
    """
    stamp = _validated(Stamp, timestamp.unrecognized_fields.get(FIELD), "timestamp")
    if state is not None and stamp.up_to < state.up_to:  # (later, if nothing moved since)
        raise _incomplete("a timestamp of this state")
    return stamp


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
    _refuse_unsafe(snapshot)
    segments: list[Segment] = []
    for name in info.changes:
        if not _CHANGES_NAME.fullmatch(name):
            raise _unsafe(name)
        target = targets.get(name)
        if target is None:
            raise _incomplete(name)
        _refuse_unsafe(target)
        custom = target.unrecognized_fields.get("custom")
        segments.append(Segment(target, _validated(ChangesInfo, custom, name)))
        before = (
            segments[-2].info.up_to if segments[:-1] else min(info.up_to, segments[0].info.after)
        )
        if not before == segments[-1].info.after < segments[-1].info.up_to:
            raise _incomplete(f"what comes before {name}")
    state = State(snapshot, info, tuple(segments))
    if state.up_to < info.up_to:
        raise _incomplete("what leads to its end")
    return state


def columns_by_table() -> dict[str, list[str]]:
    """Return the columns of each tracked table, in the order in which they travel."""
    return {table.name: [column.name for column in table.columns] for table in TRACKED}


def _refuse_unsafe(target: TargetFile) -> None:
    """(the hash is a part of the names of files, there and here)"""
    found = target.hashes.get("sha256")
    if found is None or not _SHA256.fullmatch(found):
        raise _unsafe(f"{found}.{target.path}")


def _unsafe(name: str) -> UnsafeNameError:
    return UnsafeNameError(
        f"the repository names a file {name[:80]!r}, as no keystore does.",
        hint=_ANEW,
    )


def _validated(kind: type[_T], said: Any, where: str) -> _T:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        raise _incomplete(f"{where}: {error.errors()[0]['loc']}") from error


def _incomplete(what: str) -> IncompleteStateError:
    return IncompleteStateError(
        f"the repository's metadata lack {what}, or it is wrong.", hint=_ANEW
    )
