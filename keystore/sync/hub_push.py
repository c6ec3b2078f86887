"""One push to a hub, inside its transaction."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from psycopg.types.json import Jsonb

from keystore.changelog import Page
from keystore.errors import IncompleteStateError
from keystore.sync import digest
from keystore.sync.digest import Bucket, Buckets
from keystore.sync.hub_connection import HubConnection, channel_of, not_granted
from keystore.sync.hub_rows import copy_in, copying_in, fill, refuse_misfits, wire_types
from keystore.sync.protocols import Origin, PageCounts, TargetState
from keystore.tables import TRACKED, Table


class HubPush:
    """The session of :meth:`keystore.sync.protocols.Sink.push`; the store's row is locked."""

    def __init__(self, hub: HubConnection, origin: Origin, state: TargetState) -> None:
        self.state = state
        self.committed = False
        self._hub, self.origin = hub, origin
        self._staged: set[Table] = set()
        self._is_everything = False
        self._under_way = ExitStack()

    def digests(self) -> Buckets:
        """Digest what the hub holds of this origin, in SQL."""
        return digests_of(self._hub, self.origin.store_id)

    def bucket_pages(self, buckets: Collection[Bucket]) -> Iterator[Page]:
        """Yield the rows that the hub holds in some buckets."""
        yield from pages_of(self._hub, self.origin.store_id, buckets)

    def highest_ids(self) -> PageCounts:
        """Return the highest ids that the hub has ever seen, tombstones included."""
        where = {"store_id": self.origin.store_id}
        return {t.name: int(self._hub.row("highest_id", t, **where)[0]) for t in TRACKED}

    def start_over(self) -> None:
        """Stage every table, so that what is not named is found."""
        self._is_everything = True
        for table in TRACKED:
            self.send(Page(table, []))

    def send(self, page: Page) -> None:
        """Stage one page in temporary tables; the next one is read while the hub is at it."""
        self.close()
        conn, table, name = self._hub.conn, page.table, page.table.name
        if not self._staged:
            self._hub.rows("create_incoming_deleted")
        if table not in self._staged:
            self._staged.add(table)
            self._hub.rows("create_incoming", table)
        if page.repeats:
            ids = [*page.deleted, *(int(row[0] or 0) for row in page.rows)]
            self._hub.rows("forget_incoming", table, ids=ids)
            self._hub.rows("forget_incoming_deleted", name=name, ids=ids)
        if page.deleted:
            gone = ((name, record_id) for record_id in page.deleted)
            copy_in(conn, fill("copy_incoming_deleted", table), ("text", "int8"), gone)
        if page.rows:
            self._under_way.enter_context(self._staging(page))

    @contextmanager
    def _staging(self, page: Page) -> Iterator[None]:
        statement, types = fill("copy_incoming", page.table), wire_types(page.table)
        try:
            with copying_in(self._hub.conn, statement, types, page.rows):
                yield
        except (psycopg.Error, TypeError, ValueError):  # a value that the driver cannot write
            refuse_misfits(page.table, page.rows)
            raise

    def close(self) -> None:
        """Wait until the hub has the last page; nothing else can be asked of it before."""
        self._under_way.close()

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts) -> None:
        """Merge what was staged; it becomes visible when the block ends."""
        self.close()
        where = {"store_id": self.origin.store_id}
        if self._staged:
            self._merge(up_to, counts)
            channel, payload = channel_of(self.origin.store_id), f"change {up_to}"
            # One for each push: NOTIFY takes a lock on the whole server when it commits.
            self._hub.rows("notify", channel=channel, payload=payload)
        acknowledged = self._hub.rows(
            "acknowledge",
            **where,
            incarnation=self.origin.incarnation,
            token_prefix=self.origin.token_prefix,
            schema_version=self.origin.schema_version,
            program_version=self.origin.program_version,
            seen_revocation=self.origin.seen_revocation,
            acknowledged_change=up_to,
            is_whole=self._is_everything,
            push_token=token,
            record_counts=Jsonb(dict(counts)),
            as_of_at=as_of_at,
        )
        if not acknowledged:  # and so deletions may have met no row either
            raise not_granted(f"this role may no longer push as {self.origin.store_id}")
        self.committed = True

    def _merge(self, up_to: int, counts: PageCounts) -> None:
        where: dict[str, object] = {"store_id": self.origin.store_id}
        stamp = where | {"changed_at_id": up_to}
        tables = [table for table in TRACKED if table in self._staged]
        for table in tables if self._is_everything else ():
            self._hub.rows("delete_unnamed", table, **where)
        for table in tables:
            self._upsert(table, stamp)
            self._hub.rows("raise_dead", table, **where)
        for table in reversed(tables):
            self._hub.rows("delete", table, **where)
        self._hub.rows("bury", **stamp)
        for table in tables if self._is_everything else ():
            (held,) = self._hub.row("count_rows", table, **where)
            if held != counts[table.name]:
                raise IncompleteStateError(
                    f"the hub would hold {held} {table.name}, the store has {counts[table.name]}.",
                    hint="Nothing was written; please report this.",
                )

    def _upsert(self, table: Table, stamp: dict[str, object]) -> None:
        try:
            with self._hub.conn.transaction():
                self._hub.rows("merge" if self._is_everything else "upsert", table, **stamp)
        except psycopg.DataError:
            # Only now is it worth a look at each row; the savepoint has kept what was staged.
            refuse_misfits(table, self._hub.rows("staged", table))
            raise


def digests_of(hub: HubConnection, store_id: str) -> Buckets:
    """Digest what a hub holds of an origin, in SQL; the session's time zone has to be UTC."""
    digests: Buckets = {}
    for table in TRACKED:
        where = {"store_id": store_id, "size": digest.BUCKET_SIZE}
        found = hub.rows("digests", table, **where)
        digests.update({(table.name, bucket): text for bucket, text in found})
    return digests


def pages_of(hub: HubConnection, store_id: str, buckets: Collection[Bucket]) -> Iterator[Page]:
    """Yield the rows that a hub holds of an origin in some buckets."""
    for table, first, last in digest.ranges(buckets):
        where = {"store_id": store_id, "first": first, "last": last}
        yield Page(table, hub.rows("rows_between", table, **where))
