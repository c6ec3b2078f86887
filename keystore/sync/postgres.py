"""The hub: a schema in a central PostgreSQL.

A push is one transaction: lock the store's row, COPY the pages into temporary tables, then upsert,
delete, acknowledge, commit. Each row is stamped with the origin's change up to which the push goes.
Because pushes of one store take turns, a replica that asks for what is stamped later than what it
has misses nothing; pushes of different stores do not wait for each other.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple
from itertools import groupby

import psycopg
from psycopg import IsolationLevel

from keystore import db, sql
from keystore.changelog import Page
from keystore.errors import SchemaVersionError, TargetNotReadyError
from keystore.quotas import Consumed
from keystore.sync.hub_connection import HubConnection, hub_errors, not_granted
from keystore.sync.hub_push import HubPush, digests_of, pages_of
from keystore.sync.hub_rows import copy_in, copy_out, fill, wire_types
from keystore.sync.hub_watch import HubWatch
from keystore.sync.protocols import (
    CheckIn,
    Consumption,
    Entry,
    Origin,
    Pull,
    Revocation,
    TargetState,
    Usage,
)
from keystore.tables import BY_NAME, TRACKED, Table

_Q = sql.named("hub")
_USAGE_TYPES = ("int8", "text", "int8", "int8", "int8", "int8", "text", "text", "int8")
_LEDGER_TYPES = (
    *("int8", "int8", "text", "int8", "int8", "text", "text", "text"),
    *("int8", "int8", "int8", "int8", "text", "int8"),
)


class PostgresHub(HubConnection):
    """A sink, a source and a hub at once."""

    @property
    def sink(self) -> "PostgresHub":
        return self

    @property
    def source(self) -> "PostgresHub":
        return self

    @property
    def hub(self) -> "PostgresHub":
        return self

    @contextmanager
    def push(self, origin: Origin) -> Iterator[HubPush]:
        """Start a push; see :class:`keystore.sync.protocols.Sink`."""
        _ = self.target_id
        with hub_errors():
            # Before the transaction: a row that is inserted and not committed would make a second
            # pusher of a new store wait on an index entry instead of on the row.
            self.rows(
                "register",
                store_id=origin.store_id,
                incarnation=origin.incarnation,
                token_prefix=origin.token_prefix,
                schema_version=origin.schema_version,
                program_version=origin.program_version,
            )
            with self.conn.transaction():
                self.rows("give_up_in_time")
                self.rows("use_utc")
                found = self.rows("lock_store", store_id=origin.store_id)
                if not found:  # it was there a moment ago: this role no longer sees it
                    raise not_granted(f"this role may not push as {origin.store_id}")
                acknowledged, token, _ = found[0]
                session = HubPush(self, origin, TargetState(acknowledged, token, not token))
                with closing(session):
                    yield session
                if not session.committed:
                    raise psycopg.Rollback

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        """Open a cut; see :class:`keystore.sync.protocols.Source`."""
        _ = self.target_id
        with hub_errors():
            self.conn.isolation_level = IsolationLevel.REPEATABLE_READ
            self.conn.read_only = True
            try:
                with self.conn.transaction():
                    self.rows("use_utc")
                    pages, cut = self._cut(origin_id or self._only_origin(), after)
                    # A COPY that was left half read would keep the ROLLBACK waiting for ever.
                    with closing(pages):
                        yield cut
            finally:
                if not self.conn.closed:
                    self.conn.isolation_level = None
                    self.conn.read_only = None

    def _only_origin(self) -> str:
        origins = [str(row[0]) for row in self.rows("origins")]
        if not origins:
            raise TargetNotReadyError(
                f"nothing was pushed to this hub yet{self._or_not_for_us()}.",
                hint="Run `keystore sync` at the origin.",
            )
        if len(origins) > 1:
            raise TargetNotReadyError(
                f"this hub has {len(origins)} origins: {', '.join(origins)}.",
                hint="Name the one to mirror with --origin.",
            )
        return origins[0]

    def _or_not_for_us(self) -> str:
        """Say that row-level security may hide what was asked for, where it is in force."""
        (is_restricted,) = self.row("is_restricted")
        return ", or its owner did not grant it to this role" if is_restricted else ""

    def _cut(self, origin_id: str, after: int | None) -> tuple[Generator[Page, None, None], Pull]:
        found = self.rows("cut", store_id=origin_id)
        if not found:
            raise TargetNotReadyError(
                f"this hub has nothing of origin {origin_id}{self._or_not_for_us()}.",
                hint="Push from it first.",
            )
        *who, acknowledged_change, as_of_at, horizon, counts = found[0]
        origin = Origin(*who)
        if origin.schema_version != db.SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the origin's schema version is {origin.schema_version}, "
                f"this program's {db.SCHEMA_VERSION}.",
                hint="Update the older of the two.",
            )
        if after is not None and after < horizon:
            after = None  # what was deleted since is no longer known
        has_news = after is None or after < acknowledged_change
        pages = self._pages(origin_id, after, TRACKED if has_news else ())
        return pages, Pull(
            origin=origin,
            as_of_change=acknowledged_change,
            as_of_at=as_of_at,
            counts=counts,
            is_everything=after is None,
            pages=pages,
            digests=lambda: digests_of(self, origin_id),
            bucket_pages=lambda buckets: pages_of(self, origin_id, buckets),
        )

    def _pages(
        self, origin_id: str, after: int | None, tables: Sequence[Table]
    ) -> Generator[Page, None, None]:
        where: dict[str, object] = {"store_id": origin_id, "after": -1 if after is None else after}
        for table in tables:
            statement = fill("rows_after", table)
            for rows in copy_out(self.conn, statement, wire_types(table), where):
                yield Page(table, rows)
        if after is not None and tables:
            for name, ids in self.rows("deleted_after", **where):
                yield Page(BY_NAME[name], [], ids)

    def holds_usage(self, store_id: str, usage_id: int, nonce: int) -> bool:
        """Look for a usage row; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors():
            where = {"store_id": store_id, "usage_id": usage_id, "nonce": nonce}
            return bool(self.row("holds_usage", **where)[0])

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors(), self.conn.transaction():
            self.rows("use_utc")
            self._claim(store_id, origin_id)
            self.rows("create_incoming_usage")
            values = (
                (
                    usage.usage_id,
                    usage.principal_type,
                    usage.principal_id,
                    usage.account_id,
                    usage.service_id,
                    usage.amount,
                    usage.request_id,
                    usage.occurred_at,
                    usage.nonce,
                )
                for usage in rows
            )
            copy_in(self.conn, _Q["copy_incoming_usage"], _USAGE_TYPES, values)
            self.rows("insert_usage", store_id=store_id, origin_id=origin_id)

    def holds_ledger(self, store_id: str, ledger_id: int, nonce: int) -> bool:
        """Look for a row of a ledger; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors():
            where = {"store_id": store_id, "ledger_id": ledger_id, "nonce": nonce}
            return bool(self.row("holds_ledger", **where)[0])

    def push_ledger(self, store_id: str, rows: Sequence[Entry]) -> None:
        """Take rows of a ledger; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors(), self.conn.transaction():
            self.rows("use_utc")
            self.rows("create_incoming_ledger")
            copy_in(self.conn, _Q["copy_incoming_ledger"], _LEDGER_TYPES, map(astuple, rows))
            self.rows("insert_ledger", store_id=store_id)

    def consumption(self, origin_id: str, settled: Mapping[str, int]) -> list[Consumption]:
        """Sum up what was used; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        known = {"stores": list(settled), "settled": list(settled.values())}
        with hub_errors():
            found = self.rows("consumption", origin_id=origin_id, **known)
        return [
            Consumption(store_id, max(row[1] for row in rows), [Consumed(*row[2:]) for row in rows])
            for store_id, rows in (
                (store_id, list(group)) for store_id, group in groupby(found, lambda row: row[0])
            )
        ]

    def revocations(self, origin_id: str, after: int, last: str | None) -> list[Revocation]:
        """Return what was revoked since; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors():
            found = self.rows("revocations", store_id=origin_id, after=after, last=last)
        return [Revocation(*row) for row in found]

    def check_in(self, who: CheckIn, *, last: str | None, token: str) -> bool:
        """Note what a replica has; see :class:`keystore.sync.protocols.Hub`."""
        _ = self.target_id
        with hub_errors(), self.conn.transaction():
            self._claim(who.store_id, who.origin_id)
            return bool(self.rows("check_in", **asdict(who), last=last, token=token))

    def watch(self, origin_id: str) -> HubWatch:
        """Listen for news; see :class:`keystore.sync.protocols.Hub`."""
        return HubWatch(self, origin_id)

    def _claim(self, store_id: str, origin_id: str) -> None:
        """Make a replica's id this role's own, where roles are told apart at all."""
        if store_id != origin_id and self.row("is_restricted")[0]:
            self.rows("claim", store_id=store_id)
