"""Moves rows between a store and a target; knows the protocols and no driver.

What a kill at any point leaves: a push or a pull has happened whole or not at all, and the next
sync finds out which. The push does so by tokens. The next token is written to the store just before
the target commits, and the target keeps it with the rows. Afterwards

* the target shows the old token: the push did not happen; go on from the acknowledged change;
* the target shows the pending one: it did, and only the acknowledgement was lost; note it;
* anything else: the target was written by another copy of this store, a restored backup or a
  copied file. Stop and say so: going on would silently lose changes.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from keystore import changelog, db, migrate, sql
from keystore.changelog import Page, Reader
from keystore.db import StoreFile
from keystore.errors import ForkedStoreError, WrongRoleError
from keystore.sync.protocols import (
    Origin,
    PushSession,
    Sink,
    Source,
    TargetState,
    Usage,
    UsageSink,
)
from keystore.sync.replay import replay

USAGE_PAGE_SIZE = 10_000

_Q = sql.named("sync")


@dataclass(slots=True)
class Report:
    """What a sync did; ``None`` where it was not asked to."""

    target: str
    pushed: int | None = None
    pulled: int | None = None
    usage: int | None = None
    as_of_change: int | None = None
    as_of_at: str | None = None


@dataclass(frozen=True, slots=True)
class _Bookkeeping:
    """A store's record of one target (table SyncTargets)."""

    push_token: str | None
    pending_token: str | None
    acknowledged_usage: int


def push(file: StoreFile, sink: Sink, url: str, report: Report) -> None:
    """Bring the target to the origin's present state.

    Raises:
        WrongRoleError: the store is a replica.
        ForkedStoreError: another copy of this store has written to the target.
        TargetError: whatever the target says.
    """
    info = file.info()
    if not info.is_origin:
        raise WrongRoleError(
            f"{file.path} is a replica; only an origin pushes.", hint="Run it at the origin."
        )
    migrate.verify_tracking(file)
    remember(file, sink.target_id, url)
    origin = Origin(info.store_id, info.incarnation, info.token_prefix, db.SCHEMA_VERSION)
    with sink.push(origin) as session:
        # From here to the commit the target holds this store's lock, so no second process can
        # write a pending token between our reading of the old one and our push.
        after = _shake_hands(file, sink.target_id, session.state)
        reader, token = Reader(file, after), str(uuid.uuid4())
        report.pushed = _send(reader, session)
        # Not before all pages are read: whoever copies the file and so learns the token must have
        # every change that is pushed with it.
        with file.write() as conn:
            conn.execute(_Q["set_pending"], {"pending_token": token, "target_id": sink.target_id})
        session.commit(
            up_to=reader.up_to, as_of_at=reader.as_of_at, token=token, counts=reader.counts
        )
    _acknowledge_push(file, sink.target_id, reader.up_to, token)
    report.as_of_change, report.as_of_at = reader.up_to, reader.as_of_at


def pull(file: StoreFile, source: Source, url: str, report: Report) -> None:
    """Bring a replica to the state that the target holds of its origin.

    Raises:
        WrongRoleError: the store is an origin.
        TargetError: whatever the target says, ForeignOriginError above all.
    """
    info = file.info()
    if info.is_origin:
        raise WrongRoleError(
            f"{file.path} is an origin; only a replica pulls.",
            hint="Make a replica with `keystore replicate`.",
        )
    remember(file, source.target_id, url)
    with source.pull(info.origin_id, info.as_of_change) as cut:
        report.pulled = replay(file, cut, source.target_id)
        report.as_of_change, report.as_of_at = cut.as_of_change, cut.as_of_at


def replicate(
    source: Source, url: str, path: Path | str, report: Report, *, origin_id: str | None = None
) -> None:
    """Make a replica at ``path``, complete with its first pull, or nothing.

    Raises:
        StoreExistsError: something is at ``path``.
        TargetError: whatever the target says.
    """
    path = Path(path)
    migrate.draft_path(path)  # a path that is taken is refused before anything is downloaded
    with source.pull(origin_id, None) as cut:
        draft = migrate.draft_replica(
            path, origin_id=cut.origin.store_id, token_prefix=cut.origin.token_prefix
        )
        try:
            with db.open_store(draft) as file:
                remember(file, source.target_id, url)
                report.pulled = replay(file, cut, source.target_id)
            migrate.publish(draft, path)
        finally:
            db.remove_files(draft)
        report.as_of_change, report.as_of_at = cut.as_of_change, cut.as_of_at


def hand_up_usage(
    file: StoreFile, sink: UsageSink, url: str, report: Report, *, usage_only: bool = False
) -> None:
    """Hand up every usage row that the target has not acknowledged.

    A page that was taken and not acknowledged is sent again; the target counts it once. What the
    target has lost since, because it was put back to an earlier state, is sent again, too.
    """
    info = file.info()
    book = remember(file, sink.target_id, url, usage_only=usage_only)
    after = min(book.acknowledged_usage, sink.usage_held(info.store_id))
    report.usage = 0
    while True:
        with file.read() as conn:
            window = {"after": after, "limit": USAGE_PAGE_SIZE}
            rows = [Usage(*row) for row in conn.execute(_Q["usage_after"], window)]
        if not rows:
            return
        sink.push_usage(info.store_id, info.origin_id, rows)
        after = rows[-1].usage_id
        with file.write() as conn:
            conn.execute(
                _Q["acknowledge_usage"],
                {"acknowledged_usage": after, "target_id": sink.target_id},
            )
        report.usage += len(rows)


def remember(
    file: StoreFile, target_id: str, url: str, *, usage_only: bool = False
) -> _Bookkeeping:
    """Note where a target was found; return the store's record of it, new or not."""
    with file.write() as conn:
        conn.execute(_Q["clear_url"], {"target_id": target_id, "url": url})
        conn.execute(
            _Q["add_target"], {"target_id": target_id, "url": url, "usage_only": usage_only}
        )
        return _Bookkeeping(*conn.execute(_Q["target"], (target_id,)).fetchone())


def _shake_hands(file: StoreFile, target_id: str, state: TargetState) -> int | None:
    """Compare tokens; return the change after which to push, ``None`` for everything."""
    with file.read() as conn:
        book = _Bookkeeping(*conn.execute(_Q["target"], (target_id,)).fetchone())
        # A log that lost its end would give ids again that the target has seen.
        is_behind = changelog.head(conn) < state.acknowledged_change
    if state.token is not None and state.token == book.pending_token and not is_behind:
        _acknowledge_push(file, target_id, state.acknowledged_change, state.token)
    elif state.token != book.push_token or is_behind:
        raise ForkedStoreError(
            f"the target was last written by another copy of {file.path}, "
            "or was itself put back to an earlier state.",
            hint="Go on with the newest copy of this store. Nothing was changed.",
        )
    return None if state.wants_everything else state.acknowledged_change


def _acknowledge_push(file: StoreFile, target_id: str, up_to: int, token: str) -> None:
    with file.write() as conn:
        conn.execute(
            _Q["acknowledge_push"],
            {"acknowledged_change": up_to, "token": token, "target_id": target_id},
        )


def _send(pages: Iterable[Page], session: PushSession) -> int:
    sent = 0
    for page in pages:
        session.send(page)
        sent += len(page.rows) + len(page.deleted)
    return sent
