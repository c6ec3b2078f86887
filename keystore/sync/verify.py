"""Compares a store with a target by digests, names what differs, and repairs just that.

Both sides are looked at as of one cut. What changed at one side since that cut is known by name,
from the ChangeLog here or from the stamps there, and is left to the next sync.

A repair goes the way of every change. At an origin the records that differ are logged as changed,
and pushed; at a replica they are taken from the target, in one transaction.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

from keystore import changelog
from keystore.changelog import Page, Record
from keystore.db import StoreFile, StoreInfo
from keystore.errors import StaleTargetError, TargetNotReadyError, UnsupportedTargetError
from keystore.sync import digest
from keystore.sync.digest import Bucket, Buckets, Rows
from keystore.sync.protocols import Pull, Source
from keystore.sync.replay import replay
from keystore.tables import BY_NAME, WireRow


@dataclass(frozen=True, slots=True)
class Difference:
    """A record that is not the same: it ``differs``, or is ``only here`` or ``only there``."""

    table: str
    record_id: int
    kind: str


@dataclass(slots=True)
class Verification:
    """What a comparison found: the cut, how many buckets were compared, and every difference."""

    target: str
    as_of_change: int
    buckets: int = 0
    differences: list[Difference] = field(default_factory=list)
    repaired: int = 0


def verify(file: StoreFile, source: Source, url: str, *, repair: bool = False) -> Verification:
    """Compare a store with what a target holds of its origin; with ``repair``, mend it.

    At an origin, a repair logs the records that differ: the caller pushes them.

    Raises:
        StaleTargetError: the target holds an older state than this replica.
        TargetNotReadyError: the last sync is too long ago to tell news from damage, or another
            process has synced this replica meanwhile.
        TargetError: whatever the target says.
    """
    info = file.info()
    with _whole_cut(source, info) as (cut, theirs, news):
        done = Verification(url, cut.as_of_change)
        ours = digest.digest_store(file)
        done.buckets = len(ours.keys() | theirs.keys())
        rows: Rows = {}
        for buckets in digest.batches(digest.differing(ours, theirs)):
            their_rows = digest.rows_by_record(cut.bucket_pages(buckets))
            with file.read() as conn:
                our_rows = digest.rows_of_buckets(conn, buckets)
                if info.is_origin:
                    if cut.as_of_change < info.log_horizon:
                        raise TargetNotReadyError(
                            "the ChangeLog no longer tells what changed since the last push.",
                            hint="Run `keystore sync` first, then compare.",
                        )
                    news.update(changelog.changed_records(conn, cut.as_of_change))
            for record, here, there in digest.compare(our_rows, their_rows):
                if record not in news:
                    done.differences.append(Difference(*record, _kind(here, there)))
                    if there is not None:
                        rows[record] = there
        _refuse_moved(file, info)
        if repair and done.differences:
            if info.is_origin:
                _log(file, done.differences)
            else:
                _take(file, source, cut, info, done.differences, rows)
            done.repaired = len(done.differences)
    return done


def _kind(here: WireRow | None, there: WireRow | None) -> str:
    if here is None:
        return "only there"
    return "differs" if there is not None else "only here"


@contextmanager
def _whole_cut(source: Source, info: StoreInfo) -> Iterator[tuple[Pull, Buckets, set[Record]]]:
    """Open a cut with its digests, and name what is news in it to this replica."""
    origin_id, after = info.origin_id, info.as_of_change
    with source.pull(origin_id, after) as cut:
        if after is not None and cut.as_of_change < after:
            raise StaleTargetError(
                f"the target holds the origin's change {cut.as_of_change}, "
                f"this replica has {after} already.",
                hint="Push from the origin to that target first.",
            )
        if cut.scope is not None and info.is_origin:
            raise UnsupportedTargetError(
                f"the target carries only a part of this origin's rows: {cut.scope}.",
                hint="Compare a replica of it.",
            )
        is_at_cut = after is None or cut.as_of_change == after
        is_same_count = info.is_origin or cut.origin.incarnation == info.origin_incarnation
        if not is_same_count or (not is_at_cut and cut.is_everything):
            raise TargetNotReadyError(
                f"this replica is at change {after}, the target at {cut.as_of_change}"
                f"{'' if is_same_count else ', and the origin was put back in between'}.",
                hint="Run `keystore sync` first, then compare.",
            )
        news = set() if is_at_cut else {record for page in cut.pages for record in _named(page)}
        theirs = cut.digests()
        if theirs is not None:
            yield cut, theirs, news
            return
    pages = _Pages(source, origin_id, cut)
    yield replace(cut, bucket_pages=pages.of), pages.digests(), news


class _Pages:
    """Reads a whole cut, as often as is asked, of a source that has no digests of its own."""

    def __init__(self, source: Source, origin_id: str, cut: Pull) -> None:
        self._source, self._origin_id, self._cut = source, origin_id, cut

    def __iter__(self) -> Iterator[Page]:
        with self._source.pull(self._origin_id, None) as whole:
            if whole.as_of_change != self._cut.as_of_change:
                raise TargetNotReadyError(
                    "the target got a new state meanwhile.", hint="Run the same command again."
                )
            yield from whole.pages

    def digests(self) -> Buckets:
        found: Buckets = {}
        for table, pages in groupby(self, lambda page: page.table):
            rows = chain.from_iterable(page.rows for page in pages)
            found.update(digest.digest_rows(table, rows))
        return found

    def of(self, buckets: Collection[Bucket]) -> Iterator[Page]:
        for page in self:
            rows = [row for row in page.rows if digest.bucket_of(page.table, row) in buckets]
            yield Page(page.table, rows)


def _refuse_moved(file: StoreFile, info: StoreInfo) -> None:
    """Make sure that a replica is still at the change that it was compared at."""
    now = file.info()
    if (now.as_of_change, now.origin_incarnation) != (info.as_of_change, info.origin_incarnation):
        raise _moved(file)


def _moved(file: StoreFile) -> TargetNotReadyError:
    return TargetNotReadyError(
        f"{file.path} was synced meanwhile.", hint="Run the same command again."
    )


def _log(file: StoreFile, differences: list[Difference]) -> None:
    with file.write() as conn:
        changelog.log_records(conn, ((item.table, item.record_id) for item in differences))


def _take(
    file: StoreFile,
    source: Source,
    cut: Pull,
    info: StoreInfo,
    differences: list[Difference],
    theirs: Rows,
) -> None:
    pages = []
    for item in differences:
        row = theirs.get((item.table, item.record_id))
        table = BY_NAME[item.table]
        pages.append(Page(table, [row]) if row else Page(table, [], [item.record_id]))
    # As of what this replica was compared at: the news of the cut are left to the next pull, and so
    # is how long it may be used. Should another process pull them now, the replay writes nothing.
    mended = replace(
        cut,
        pages=pages,
        counts=None,
        is_everything=False,
        as_of_change=info.as_of_change or 0,
        as_of_at=info.as_of_at or cut.as_of_at,
        valid_until=info.valid_until,
        max_offline_seconds=info.max_offline_seconds,
        source_state=None,
    )
    if not replay(file, mended, source.target_id):
        raise _moved(file)
    _refuse_moved(file, info)


def _named(page: Page) -> Iterator[Record]:
    yield from ((page.table.name, int(row[0] or 0)) for row in page.rows)
    yield from ((page.table.name, record_id) for record_id in page.deleted)
