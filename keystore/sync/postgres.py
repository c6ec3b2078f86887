"""The hub: a schema in a central PostgreSQL.

A push is one transaction: lock the store's row, COPY the pages into temporary tables, then upsert,
delete, acknowledge, commit. Each row is stamped with the origin's change up to which the push goes.
Because pushes of one store take turns, a replica that asks for what is stamped later than what it
has misses nothing; pushes of different stores do not wait for each other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict

from keystore import db, sql
from keystore.changelog import PAGE_SIZE, Page
from keystore.clock import parse_utc
from keystore.errors import (
    ForkedStoreError,
    IncompleteStateError,
    InvalidInputError,
    KeystoreError,
    SchemaVersionError,
    TargetError,
    TargetNotReadyError,
    TargetUnavailableError,
)
from keystore.sync.hub_rows import copy_rows, fill, from_wire
from keystore.sync.protocols import Origin, PageCounts, Pull, TargetState, Usage
from keystore.tables import TRACKED, Table

HUB_SCHEMA_VERSION = 2
CONNECT_TIMEOUT_SECONDS = 10

_Q = sql.named("hub")
_USAGE_TYPES = ("int8", "text", "int8", "int8", "int8", "text", "timestamptz")


class PostgresHub:
    """An open connection to a hub; a sink, a source and a usage sink at once."""

    def __init__(self, url: str) -> None:
        try:
            conninfo_to_dict(url)
        except psycopg.Error:
            # libpq's own message repeats the part that it could not read: maybe the password
            raise InvalidInputError(
                "the hub's URL cannot be read.",
                hint="Check its spelling; write special characters in a password as %XX.",
            ) from None
        with _errors():
            self._conn = psycopg.connect(
                url,
                autocommit=True,
                application_name="keystore",
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                client_encoding="utf8",
            )
        self._target_id: str | None = None

    @property
    def target_id(self) -> str:
        """The hub's own UUID, asked for once.

        Raises:
            TargetNotReadyError: no ``keystore hub init`` was run in this database.
            SchemaVersionError: the hub is of another version.
        """
        if self._target_id is None:
            with _errors():
                has_hub, _ = self._row("exists")
                if not has_hub:
                    raise _no_hub()
                hub_id, version = self._row("hub_info")
            if version != HUB_SCHEMA_VERSION:
                raise _other_version(version)
            self._target_id = hub_id
        return self._target_id

    @property
    def sink(self) -> "PostgresHub":
        return self

    @property
    def source(self) -> "PostgresHub":
        return self

    @property
    def usage_sink(self) -> "PostgresHub":
        return self

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def init(self) -> bool:
        """Create the schema ``keystore`` in one transaction; ``False`` if the hub was there.

        Raises:
            TargetNotReadyError: a schema of that name exists and is not ours.
        """
        with _errors(), self._conn.transaction():
            self._conn.execute(_Q["lock_init"])
            has_hub, has_schema = self._row("exists")
            if has_hub:
                return False
            if has_schema:
                raise TargetNotReadyError(
                    "this database has a schema named keystore that is not a hub.",
                    hint="Use another database.",
                )
            (encoding,) = self._row("server_encoding")
            if encoding != "UTF8":
                raise TargetNotReadyError(
                    f"this database is in {encoding}; a hub needs UTF8.",
                    hint="Make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.",
                )
            self._conn.execute(sql.read("hub_schema"))
        return True

    def migrate(self) -> tuple[int, int]:
        """Bring the hub to this program's schema version, in one transaction.

        Returns the version before and after.

        Raises:
            TargetNotReadyError: there is no hub.
            SchemaVersionError: the hub is newer than this program.
        """
        with _errors(), self._conn.transaction():
            self._conn.execute(_Q["lock_init"])
            has_hub, _ = self._row("exists")
            if not has_hub:
                raise _no_hub()
            _, before = self._row("hub_info")
            if before > HUB_SCHEMA_VERSION:
                raise _other_version(before)
            for version in range(before + 1, HUB_SCHEMA_VERSION + 1):
                self._conn.execute(sql.read(f"hub_migrations/{version:04}"))
        return before, HUB_SCHEMA_VERSION

    @contextmanager
    def push(self, origin: Origin) -> Iterator["_HubPush"]:
        """Start a push; see :class:`keystore.sync.protocols.Sink`."""
        _ = self.target_id
        with _errors():
            # Before the transaction: a row that is inserted and not committed would make a second
            # pusher of a new store wait on an index entry instead of on the row.
            self._conn.execute(_Q["register"], _params(origin))
            with self._conn.transaction():
                acknowledged, token = self._row("lock_store", store_id=origin.store_id)
                session = _HubPush(self._conn, origin, TargetState(acknowledged, token, not token))
                yield session
                if not session.committed:
                    raise psycopg.Rollback

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        """Open a cut; see :class:`keystore.sync.protocols.Source`."""
        _ = self.target_id
        with _errors():
            self._conn.isolation_level = IsolationLevel.REPEATABLE_READ
            self._conn.read_only = True
            try:
                with self._conn.transaction():
                    yield self._cut(origin_id, after)
            finally:
                if not self._conn.closed:
                    self._conn.isolation_level = None
                    self._conn.read_only = None

    def _cut(self, origin_id: str | None, after: int | None) -> Pull:
        if origin_id is None:
            origins = [row[0] for row in self._conn.execute(_Q["origins"]).fetchall()]
            if not origins:
                raise TargetNotReadyError(
                    "nothing was pushed to this hub yet.", hint="Run `keystore sync` at the origin."
                )
            if len(origins) > 1:
                raise TargetNotReadyError(
                    f"this hub has {len(origins)} origins: {', '.join(origins)}.",
                    hint="Name the one to mirror with --origin.",
                )
            (origin_id,) = origins
        found = self._conn.execute(_Q["cut"], {"store_id": origin_id}).fetchone()
        if found is None:
            raise TargetNotReadyError(
                f"this hub has nothing of origin {origin_id}.", hint="Push from it first."
            )
        *who, acknowledged_change, as_of_at = found
        origin = Origin(*who)
        if origin.schema_version != db.SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the origin's schema version is {origin.schema_version}, "
                f"this program's {db.SCHEMA_VERSION}.",
                hint="Update the older of the two.",
            )
        counts = {t.name: self._row("count_rows", t, store_id=origin_id)[0] for t in TRACKED}
        return Pull(
            origin=origin,
            as_of_change=acknowledged_change,
            as_of_at=as_of_at,
            counts=counts if after is None else None,
            pages=self._pages(origin_id, after),
        )

    def _pages(self, origin_id: str, after: int | None) -> Iterator[Page]:
        where = {"store_id": origin_id, "after": -1 if after is None else after}
        for table in TRACKED:
            # A named cursor streams; a plain one would hold the whole result in memory.
            with self._conn.cursor(name="keystore_rows") as rows:
                rows.itersize = PAGE_SIZE
                rows.execute(fill("rows_after", table), where)
                while found := rows.fetchmany(PAGE_SIZE):
                    yield Page(table, found)
            if after is not None:
                statement = fill("deleted_after", table)
                gone = [row[0] for row in self._conn.execute(statement, where).fetchall()]
                yield Page(table, [], gone)

    def usage_held(self, store_id: str) -> int:
        """Return the highest usage id held; see :class:`keystore.sync.protocols.UsageSink`."""
        with _errors():
            return int(self._row("usage_held", store_id=store_id)[0])

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage; see :class:`keystore.sync.protocols.UsageSink`."""
        _ = self.target_id
        who = {"store_id": store_id, "origin_id": origin_id}
        with _errors(), self._conn.transaction():
            self._conn.execute(_Q["create_incoming_usage"])
            values = (
                (
                    usage.usage_id,
                    usage.principal_type,
                    usage.principal_id,
                    usage.account_id,
                    usage.amount,
                    usage.request_id,
                    parse_utc(usage.occurred_at),
                )
                for usage in rows
            )
            copy_rows(self._conn, _Q["copy_incoming_usage"], _USAGE_TYPES, values)
            self._conn.execute(_Q["insert_usage"], who)
            other = self._conn.execute(_Q["contradicting_usage"], who).fetchone()
            if other is not None:
                raise ForkedStoreError(
                    f"usage row {other[0]} of store {store_id} is at the hub with another content.",
                    hint="Two copies of one replica are in use: make one anew.",
                )

    def _row(self, name: str, table: Table | None = None, **values: object) -> tuple[Any, ...]:
        statement = _Q[name] if table is None else fill(name, table)
        row = self._conn.execute(statement, values).fetchone()
        if row is None:
            raise TargetError(f"the hub answered nothing to {name}.", hint="Is it a keystore hub?")
        return row


class _HubPush:
    """One push inside its transaction."""

    def __init__(
        self, conn: psycopg.Connection[tuple[Any, ...]], origin: Origin, state: TargetState
    ) -> None:
        self.state = state
        self.committed = False
        self._conn, self._origin = conn, origin
        self._has_pages = False

    def send(self, page: Page) -> None:
        if not self._has_pages:
            self._has_pages = True
            self._conn.execute(_Q["create_incoming_deleted"])
            for table in TRACKED:
                self._conn.execute(fill("create_incoming", table))
        table, name = page.table, page.table.name
        if page.repeats:
            ids = [*page.deleted, *(int(row[0] or 0) for row in page.rows)]
            self._conn.execute(fill("forget_incoming", table), {"ids": ids})
            where = {"name": name, "ids": ids}
            self._conn.execute(_Q["forget_incoming_deleted"], where)
        if page.rows:
            types = [column.kind.value for column in table.columns]
            values = from_wire(table, page.rows)
            copy_rows(self._conn, fill("copy_incoming", table), types, values)
        if page.deleted:
            gone = ((name, record_id) for record_id in page.deleted)
            copy_rows(self._conn, _Q["copy_incoming_deleted"], ("text", "int8"), gone)

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts | None) -> None:
        if self._has_pages:
            self._merge(up_to, counts)
        self._conn.execute(
            _Q["acknowledge"],
            _params(self._origin)
            | {
                "acknowledged_change": up_to,
                "push_token": token,
                "as_of_at": parse_utc(as_of_at),
            },
        )
        self.committed = True

    def _merge(self, up_to: int, counts: PageCounts | None) -> None:
        conn, where = self._conn, {"store_id": self._origin.store_id}
        for table in TRACKED if counts is not None else ():
            conn.execute(fill("delete_unnamed", table), where)
        stamp = where | {"changed_at_id": up_to}
        for table in TRACKED:
            conn.execute(fill("upsert", table), stamp)
            conn.execute(fill("raise_dead", table), where)
        for table in reversed(TRACKED):
            conn.execute(fill("delete", table), stamp)
        for table in TRACKED if counts is not None else ():
            held = conn.execute(fill("count_rows", table), where).fetchone()
            if counts is not None and held != (counts[table.name],):
                raise IncompleteStateError(
                    f"the hub would hold {held} {table.name}, the store has {counts[table.name]}.",
                    hint="Nothing was written; please report this.",
                )


def _params(origin: Origin) -> dict[str, object]:
    return {
        "store_id": origin.store_id,
        "incarnation": origin.incarnation,
        "token_prefix": origin.token_prefix,
        "schema_version": origin.schema_version,
    }


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the driver's failures into keystore errors, without the URL (it may hold a password)."""
    try:
        yield
    except KeystoreError:
        raise
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise TargetUnavailableError(
            f"the hub cannot be reached or stopped answering: {_first_line(error)}.",
            hint="Nothing is lost; run the same command again when it is back.",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetError(
            f"the hub refused: {_first_line(error)}.", hint="Ask its owner for the rights."
        ) from error
    except psycopg.Error as error:
        raise TargetError(f"the hub failed: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _no_hub() -> TargetNotReadyError:
    return TargetNotReadyError(
        "this database is not a keystore hub yet.",
        hint="Run `keystore hub init` with the same URL.",
    )


def _other_version(version: int) -> SchemaVersionError:
    return SchemaVersionError(
        f"the hub's schema version is {version}, this program's {HUB_SCHEMA_VERSION}.",
        hint="Run `keystore hub migrate` with the same URL."
        if version < HUB_SCHEMA_VERSION
        else "Update keystore on this machine.",
    )
