"""Moves rows between a store and a target; knows the protocols and no driver.

What a kill at any point leaves: a push or a pull has happened whole or not at all, and the next
sync finds out which. The push does so by tokens. The next token is written to the store just before
the target commits, and the target keeps it with the rows. Afterwards

* the target shows the old token: the push did not happen; go on from the acknowledged change;
* the target shows the pending one: it did, and only the acknowledgement was lost; note it;
* anything else: the target was written by another copy of this store, a restored backup or a
  copied file. Stop and say so: going on would silently lose changes. Or, if the operator says that
  this copy is the one to go on with, find by digests what differs, and push that.
"""

import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from keystore import changelog, db, migrate, sql
from keystore._version import __version__
from keystore.changelog import Reader
from keystore.db import StoreFile
from keystore.errors import (
    DamagedTargetError,
    ForkedStoreError,
    IncompleteStateError,
    WrongRoleError,
)
from keystore.failpoint import reached
from keystore.scope import ScopedReader
from keystore.sync import digest
from keystore.sync.progress import OnProgress, nobody
from keystore.sync.protocols import Origin, PushSession, Sink, Source, TargetState
from keystore.sync.replay import adopt_draft, fill_draft, replay

_Q = sql.named("sync")


@dataclass(slots=True)
class Report:
    """What a sync did; ``None`` where it was not asked to.

    ``reconciled`` is the number of records that differed from what another copy had pushed, where
    that was looked at: files are published whole.
    """

    target: str
    pushed: int | None = None
    pulled: int | None = None
    usage: int | None = None
    ledger: int | None = None
    revocations: int | None = None
    reconciled: int | None = None
    as_of_change: int | None = None
    as_of_at: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """A store's record of one target (table SyncTargets)."""

    push_token: str | None
    pending_token: str | None
    acknowledged_usage: int
    acknowledged_ledger: int
    acknowledged_revocation: int
    last_revocation: str | None


def push(
    file: StoreFile,
    sink: Sink,
    url: str,
    report: Report,
    *,
    reconcile: bool = False,
    on_progress: OnProgress = nobody,
) -> None:
    """Bring the target to the origin's present state.

    With ``reconcile`` this copy of the store is the one that counts: what another copy has pushed
    is found by digests, and replaced by what is here.

    Raises:
        WrongRoleError: the store is a replica.
        ForkedStoreError: another copy of this store has written to the target.
        TargetError: whatever the target says.
    """
    try:
        _push(file, sink, url, report, reconcile=reconcile, on_progress=on_progress)
    except DamagedTargetError:  # once more: it asks for everything now
        _push(file, sink, url, report, reconcile=reconcile, on_progress=on_progress)


def _push(
    file: StoreFile,
    sink: Sink,
    url: str,
    report: Report,
    *,
    reconcile: bool,
    on_progress: OnProgress,
) -> None:
    info = file.info()
    if not info.is_origin:
        raise WrongRoleError(
            f"{file.path} is a replica; only an origin pushes.", hint="Run it at the origin."
        )
    migrate.verify_tracking(file)
    book = remember(file, sink.target_id, url)
    origin = Origin(
        info.store_id,
        info.incarnation,
        info.token_prefix,
        db.SCHEMA_VERSION,
        __version__,
        book.acknowledged_revocation,
    )
    reached("push.begin")
    with sink.push(origin) as session:
        reached("push.locked")
        report.warnings = session.state.warnings
        # From here to the commit the target holds this store's lock, so no second process can
        # write a pending token between our reading of the old one and our push.
        if not _shake_hands(file, sink.target_id, session.state):
            if not reconcile:
                raise ForkedStoreError(
                    f"the target was last written by another copy of {file.path}, "
                    "or was itself put back to an earlier state.",
                    hint="Go on with the newest copy of this store; or, if this is the one to go "
                    "on with, `keystore sync TARGET --reconcile`. Nothing was changed.",
                )
            report.reconciled = _reconcile(file, session)
            session.origin = replace(origin, incarnation=file.info().incarnation)
        after = _start(file, session.state)
        if after is None:
            session.start_over()
        scope = session.state.scope
        reader = Reader(file, after) if scope is None else ScopedReader(file, *scope)
        token = str(uuid.uuid4())
        report.pushed = _send(reader, session, on_progress)
        reached("push.sent")
        # Not before all pages are read: whoever copies the file and so learns the token must have
        # every change that is pushed with it.
        with file.write() as conn:
            conn.execute(_Q["set_pending"], {"pending_token": token, "target_id": sink.target_id})
        reached("push.pending")
        moved = session.commit(
            up_to=reader.up_to, as_of_at=reader.as_of_at, token=token, counts=reader.counts
        )
        report.pushed = report.pushed if moved is None else moved
        reached("push.staged")
    reached("push.committed")
    _acknowledge_push(file, sink.target_id, reader.up_to, token)
    reached("push.acknowledged")
    report.as_of_change, report.as_of_at = reader.up_to, reader.as_of_at


def pull(
    file: StoreFile,
    source: Source,
    url: str,
    report: Report,
    *,
    on_progress: OnProgress = nobody,
) -> None:
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
    try:
        _pull_after(file, source, url, info.as_of_change, report, on_progress)
    except IncompleteStateError:
        # Something is missing here or there. If it is here, everything anew mends it.
        _pull_after(file, source, url, None, report, on_progress)
    held = file.info()  # later than the cut, if another process has pulled meanwhile
    report.as_of_change, report.as_of_at = held.as_of_change, held.as_of_at
    reached("pull.done")


def _pull_after(
    file: StoreFile,
    source: Source,
    url: str,
    after: int | None,
    report: Report,
    on_progress: OnProgress,
) -> None:
    info = file.info()
    with source.pull(info.origin_id, after) as cut:
        remember(file, source.target_id, url)  # now: a URL that never worked is no target
        reached("pull.opened")
        if cut.is_everything or cut.origin.incarnation == info.origin_incarnation:
            report.pulled = replay(file, cut, source.target_id, on_progress)
            return
    # The origin was put back to an earlier state. It counts its changes anew from there, so what is
    # later than ours by number is not all that we lack.
    _pull_after(file, source, url, None, report, on_progress)


def replicate(
    source: Source,
    url: str,
    path: Path | str,
    report: Report,
    *,
    origin_id: str | None = None,
    on_filled: Callable[[StoreFile], None] = lambda _: None,
    on_progress: OnProgress = nobody,
) -> None:
    """Make a replica at ``path``, complete with its first pull, or nothing.

    ``on_filled`` gets the replica before anybody else can see it.

    Raises:
        StoreExistsError: something is at ``path``.
        TargetError: whatever the target says.
    """
    path = Path(path)
    draft = migrate.draft_path(path)  # a path that is taken is refused before any download
    with source.pull(origin_id, None) as cut:
        try:
            if cut.place is not None:
                cut.place(draft)
            else:
                origin = cut.origin
                migrate.build_replica(
                    draft, origin_id=origin.store_id, token_prefix=origin.token_prefix
                )
            with db.open_store(draft) as file:
                remember(file, source.target_id, url)
                if cut.place is not None:
                    report.pulled = adopt_draft(file, cut, source.target_id)
                else:
                    report.pulled = fill_draft(file, cut, source.target_id, on_progress)
                on_filled(file)
            reached("replicate.filled")
            migrate.publish(draft, path)
        finally:
            db.remove_files(draft)
        report.as_of_change, report.as_of_at = cut.as_of_change, cut.as_of_at


def remember(file: StoreFile, target_id: str, url: str, *, usage_only: bool = False) -> Bookkeeping:
    """Note a new target; return the store's record of it, new or not.

    One that is known keeps its URL until a sync by another has worked: see :func:`found_at`.
    """
    with file.read() as conn:  # mostly nothing is new, and a commit would wake whoever follows
        known = conn.execute(_Q["known_target"], (target_id, usage_only)).fetchone()
    if known is None:
        with file.write() as conn:
            conn.execute(_Q["clear_url"], {"target_id": target_id, "url": url})
            conn.execute(
                _Q["add_target"], {"target_id": target_id, "url": url, "usage_only": usage_only}
            )
    return bookkeeping(file, target_id)


def found_at(file: StoreFile, target_id: str, url: str) -> None:
    """Note by which URL a target was synced with. (A URL of a wrong role must not be noted.)"""
    with file.read() as conn:
        known = conn.execute(_Q["known_url"], (target_id, url)).fetchone()
    if known is None:
        with file.write() as conn:
            conn.execute(_Q["clear_url"], {"target_id": target_id, "url": url})
            conn.execute(_Q["set_url"], {"target_id": target_id, "url": url})


def bookkeeping(file: StoreFile, target_id: str) -> Bookkeeping:
    """Read the store's record of a target that it remembers."""
    with file.read() as conn:
        return Bookkeeping(*conn.execute(_Q["target"], (target_id,)).fetchone())


def _shake_hands(file: StoreFile, target_id: str, state: TargetState) -> bool:
    """Compare tokens; return whether the target is as this store left it."""
    book = bookkeeping(file, target_id)
    with file.read() as conn:
        # A log that lost its end would give ids again that the target has seen.
        if changelog.head(conn) < state.acknowledged_change:
            return False
    if state.token is not None and state.token == book.pending_token:
        _acknowledge_push(file, target_id, state.acknowledged_change, state.token)
        return True
    return state.token == book.push_token


def _start(file: StoreFile, state: TargetState) -> int | None:
    """Return the change after which to push, ``None`` for everything."""
    is_forgotten = state.acknowledged_change < file.info().log_horizon
    return None if state.wants_everything or is_forgotten else state.acknowledged_change


def _reconcile(file: StoreFile, session: PushSession) -> int | None:
    """Log what the target holds otherwise than this store, so that the push replaces it.

    Returns how many records that are; ``None`` if the target is sent everything instead.

    Ids that the other copy has given away are skipped first. So whatever is logged here, or
    changes from here on, has a change id that no replica has seen here, and nobody's usage is taken
    for another's. Who has seen more elsewhere knows by the new incarnation.
    """
    with file.write() as conn:
        db.renew_incarnation(conn)
        change = session.state.acknowledged_change
        changelog.keep_ids_above(conn, session.highest_ids(), change)
    theirs = session.digests()
    if theirs is None:
        with file.write() as conn:
            changelog.distrust(conn)
        return None
    count = 0
    for buckets in digest.batches(digest.differing(digest.digest_store(file), theirs)):
        their_rows = digest.rows_by_record(session.bucket_pages(buckets))
        with file.read() as conn:
            our_rows = digest.rows_of_buckets(conn, buckets)
        records = sorted(record for record, _, _ in digest.compare(our_rows, their_rows))
        with file.write() as conn:
            changelog.log_records(conn, records)
        count += len(records)
    return count


def _acknowledge_push(file: StoreFile, target_id: str, up_to: int, token: str) -> None:
    with file.write() as conn:
        conn.execute(
            _Q["acknowledge_push"],
            {"acknowledged_change": up_to, "token": token, "target_id": target_id},
        )


def _send(reader: Reader | ScopedReader, session: PushSession, on_progress: OnProgress) -> int:
    sent = 0
    with closing(iter(reader)) as pages:  # its scratch goes now, not with an error's traceback
        for page in pages:
            session.send(page)
            sent += len(page.rows) + len(page.deleted)
            on_progress(sent, reader.expected)
            reached("push.page")
    return sent
