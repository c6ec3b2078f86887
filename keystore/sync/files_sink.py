"""Publishes an origin's rows as signed files.

A push with few changes adds a segment of changes to the chain; many small ones are merged into
larger ones. When those since the snapshot outgrow it, a new snapshot takes them in. The chain goes
back further, as far as it is smaller than the snapshot: who has that much needs no new snapshot.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tuf.api.metadata import TargetFile

from keystore import db
from keystore.changelog import Page
from keystore.errors import (
    DamagedTargetError,
    ForeignOriginError,
    IncompleteStateError,
    TargetNotReadyError,
    UntrustedRepositoryError,
)
from keystore.sync import repository_keys, segments, snapshot
from keystore.sync.digest import Bucket
from keystore.sync.downloads import SCRATCH, disk_errors, downloaded
from keystore.sync.protocols import Origin, PageCounts, TargetState
from keystore.sync.repository import Publisher, file_name, identity
from keystore.sync.repository_format import (
    SNAPSHOT_NAME,
    ChangesInfo,
    Segment,
    SnapshotInfo,
    Stamp,
    State,
    changes_name,
    read_state,
)
from keystore.sync.staging import Staging, staged
from keystore.sync.storage import Storage
from keystore.sync.trust import tuf_errors
from keystore.tables import TRACKED

if TYPE_CHECKING:
    import sqlite3


class FileSink:
    """Publishes to a folder or a bucket."""

    def __init__(self, storage: Storage, keys: Path) -> None:
        self._storage, self._keys = storage, keys
        self._is_damaged = False

    @cached_property
    def target_id(self) -> str:
        """The repository's own UUID."""
        return identity(self._storage, repository_keys.trusted_root(self._keys))

    @contextmanager
    def push(self, origin: Origin) -> Iterator["FilePush"]:
        """Start a push; see :class:`keystore.sync.protocols.Sink`."""
        with (
            tuf_errors(),
            repository_keys.alone(self._keys),
            self._storage.lock(),
            disk_errors(SCRATCH),
            tempfile.TemporaryDirectory(prefix="keystore-") as scratch,
            FilePush(
                Publisher(self._storage, self._keys),
                origin,
                Path(scratch),
                is_damaged=self._is_damaged,
            ) as session,
        ):
            try:
                yield session
            except (UntrustedRepositoryError, IncompleteStateError, TargetNotReadyError) as error:
                if session.is_anew:
                    raise
                self._is_damaged = True
                raise DamagedTargetError(
                    f"{self._storage.url}: what was published cannot be read: {error.message}",
                    hint="Run the same command again: everything is published anew.",
                ) from error


class FilePush:
    """One push; see :class:`keystore.sync.protocols.PushSession`.

    ``is_damaged`` says that what is published cannot be read.
    """

    def __init__(
        self, publisher: Publisher, origin: Origin, scratch: Path, *, is_damaged: bool
    ) -> None:
        self.origin = origin
        self._publisher, self._storage, self._scratch = publisher, publisher.storage, scratch
        self._last = publisher.read()
        self._held = read_state(self._last.targets)
        self._conn: sqlite3.Connection | None = None
        self._staging: Staging | None = None
        self._ends = ExitStack()
        self._is_everything = False
        self._moved: int | None = None
        self._files: dict[str, Path] = {}
        held, scope, stamp = self._held, publisher.terms.scope, self._last.stamp
        if held is not None and held.info.origin_id != origin.store_id:
            raise ForeignOriginError(
                f"{self._storage.url} carries origin {held.info.origin_id}, not {origin.store_id}.",
                hint="One repository serves one origin: create another.",
            )
        missing: list[str] = []
        if publisher.is_sweep_due(self._last):
            missing = publisher.sweep(self._last).missing
        is_damaged = is_damaged or (
            held is not None and bool(missing or not self._storage.has(file_name(held.snapshot)))
        )
        self._is_scoped = scope is not None
        # (then nothing that is published is needed)
        self.is_anew = (
            held is None or is_damaged or held.info.schema_version != origin.schema_version
        )
        lost = f"{self._storage.url}: files were missing or damaged; everything is published anew."
        self.state = TargetState(
            acknowledged_change=stamp.up_to if stamp else 0,
            token=stamp.push_token if stamp else None,
            wants_everything=self._is_scoped or self.is_anew,
            scope=(scope.kind, scope.record_id) if scope else None,
            warnings=publisher.warnings + ((lost,) if is_damaged else ()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def digests(self) -> None:
        """Ask for everything: what differs is found when it is there."""

    def bucket_pages(self, _: Collection[Bucket]) -> Iterator[Page]:
        return iter(())

    def highest_ids(self) -> PageCounts:
        """Return the highest ids in the published state; none of what cannot be read."""
        if self._held is None or self.is_anew:
            return {}
        conn = db.connect(self._state_file())
        try:
            return {t.name: db.scalar(conn, snapshot.fill("highest_id", t)) or 0 for t in TRACKED}
        finally:
            conn.close()

    def start_over(self) -> None:
        self._drop()
        self._is_everything = True
        # What differs from the last publication is not all that a replica may lack, which got its
        # state elsewhere meanwhile, from a hub: a record may have changed there, and back. So the
        # chain begins anew. A part of the rows comes from here only, and always as everything.
        self.is_anew = self.is_anew or not self._is_scoped

    def send(self, page: Page) -> None:
        staging, conn = self._open()
        conn.execute("BEGIN")
        staging.add(page)
        conn.execute("COMMIT")

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts) -> int | None:
        stamp = Stamp(up_to=up_to, as_of_at=as_of_at, push_token=token, counts=dict(counts))
        targets = dict(self._last.targets)
        if self._held is None or self.is_anew:
            targets = self._targets(self._new_state(stamp), ())
        elif (segment := self._segment(stamp)) is not None:
            targets = self._with(self._held, segment, stamp)
        self._publisher.publish(self._last, stamp, targets, self._files)
        return self._moved

    def _drop(self) -> None:
        self._staging = None
        self._ends.close()

    # -- what is staged ------------------------------------------------------------------------

    def _open(self) -> "tuple[Staging, sqlite3.Connection]":
        if self._staging is None or self._conn is None:
            if self.is_anew:
                path = self._scratch / "staged.sqlite"
                path.unlink(missing_ok=True)
                snapshot.build(path, self.origin)
                self._conn = snapshot.open_scratch(path)
            elif self._is_everything:
                self._conn = snapshot.open_scratch(self._state_file())
            else:
                self._conn = db.connect_memory()
            self._ends.callback(self._conn.close)
            self._staging = self._ends.enter_context(staged(self._conn))
        return self._staging, self._conn

    def _segment(self, stamp: Stamp) -> Segment | None:
        """Write what is staged as a segment, unless it is nothing."""
        if self._staging is None and not self._is_everything:
            return None
        staging, conn = self._open()
        if self._is_everything:
            conn.execute("BEGIN")
            staging.reduce_to_differences()
            conn.execute("COMMIT")
            self._moved = 0
        # (from the end of the chain: what was stamped since without a segment has changed nothing)
        after = self._held.up_to if self._held else 0
        pages = self._counted(staging.pages())
        first = next(pages, None)
        return None if first is None else self._write(chain([first], pages), after, stamp.up_to, 0)

    def _counted(self, pages: Iterator[Page]) -> Iterator[Page]:
        """Count what differs, where everything was sent."""
        for page in pages:
            if self._moved is not None:
                self._moved += len(page.rows) + len(page.deleted)
            yield page

    def _write(self, pages: Iterator[Page], after: int, up_to: int, level: int) -> Segment:
        name = changes_name(after, up_to)
        path = self._scratch / name
        info = ChangesInfo(
            after=after, up_to=up_to, level=level, length=segments.write(path, pages)
        )
        target = TargetFile.from_file(name, str(path), ["sha256"])
        target.unrecognized_fields["custom"] = info.model_dump(mode="json")
        self._files[name] = path
        return Segment(target, info)

    # -- what is published ---------------------------------------------------------------------

    def _with(self, held: State, segment: Segment, stamp: Stamp) -> dict[str, TargetFile]:
        """Add a segment to what is held."""
        changes = (*held.changes, segment)
        if (merge := segments.to_merge(changes)) is not None:
            changes = (
                *changes[: merge.start],
                self._merged(changes[merge]),
                *changes[merge.stop :],
            )
        now = State(held.snapshot, held.info, changes)
        if sum(one.target.length for one in now.since_snapshot) > segments.room(
            held.snapshot.length
        ):
            fresh = self._new_state(stamp, now)
            now = State(fresh.snapshot, fresh.info, changes)
        room = segments.room(now.snapshot.length)
        kept: list[Segment] = []
        for one in reversed(changes):
            room -= one.target.length
            if room < 0:  # those since the snapshot fit, or there would be a new one
                break
            kept.insert(0, one)
        return self._targets(now, kept)

    def _targets(self, state: State, changes: Sequence[Segment]) -> dict[str, TargetFile]:
        info = state.info.model_copy(
            update={
                "changes": tuple(one.target.path for one in changes),
                "incarnation": self.origin.incarnation,
                "token_prefix": self.origin.token_prefix,
            }
        )
        listed = TargetFile(state.snapshot.length, state.snapshot.hashes, SNAPSHOT_NAME)
        listed.unrecognized_fields["custom"] = info.model_dump(mode="json")
        targets = {SNAPSHOT_NAME: listed} | {one.target.path: one.target for one in changes}
        self._files = {name: path for name, path in self._files.items() if name in targets}
        return targets

    def _merged(self, changes: Sequence[Segment]) -> Segment:
        conn = db.connect_memory()
        try:
            with staged(conn) as staging:
                conn.execute("BEGIN")
                for page in self._pages(changes):
                    staging.add(page)
                conn.execute("COMMIT")
                first, last = changes[0].info, changes[-1].info
                return self._write(staging.pages(), first.after, last.up_to, first.level + 1)
        finally:
            conn.close()

    def _pages(self, changes: Sequence[Segment]) -> Iterator[Page]:
        for one in changes:
            if (path := self._files.get(one.target.path)) is not None:
                with path.open("rb") as file:
                    yield from segments.read(file, one.info.length)
            else:
                with downloaded(self._storage, one.target, self._scratch) as file:
                    yield from segments.read(file, one.info.length)

    def _new_state(self, stamp: Stamp, with_changes: State | None = None) -> State:
        """Pack a new snapshot: what is staged, or what is held and has changed since."""
        if with_changes is None:
            staging, conn = self._open()
            conn.execute("BEGIN")
            staging.apply()
            conn.execute("COMMIT")
            self._drop()
            path = self._scratch / "staged.sqlite"
        else:
            self._drop()
            path = self._state_file(with_changes)
        packed = self._scratch / SNAPSHOT_NAME
        length = snapshot.pack_state(path, packed, stamp.counts)
        self._files[SNAPSHOT_NAME] = packed
        info = SnapshotInfo(
            origin_id=self.origin.store_id,
            incarnation=self.origin.incarnation,
            token_prefix=self.origin.token_prefix,
            schema_version=self.origin.schema_version,
            up_to=stamp.up_to,
            length=length,
            changes=(),
        )
        return State(TargetFile.from_file(SNAPSHOT_NAME, str(packed), ["sha256"]), info)

    def _state_file(self, state: State | None = None) -> Path:
        """Unpack what is published to a file of its own; ``state`` if it has more segments."""
        state = state or self._held
        if state is None:
            raise TargetNotReadyError(
                f"{self._storage.url}: nothing is published.", hint="Publish from the origin first."
            )
        path = self._scratch / "held.sqlite"
        path.unlink(missing_ok=True)
        with downloaded(self._storage, state.snapshot, self._scratch) as packed:
            snapshot.unpacked(packed, path, state.info)
        snapshot.apply(path, self._pages(state.since_snapshot))
        return path
