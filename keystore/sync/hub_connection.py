"""One connection to a hub, its errors in our words, and the hub's identity."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from keystore import sql
from keystore.errors import (
    InvalidInputError,
    KeystoreError,
    SchemaVersionError,
    TargetError,
    TargetNotReadyError,
    TargetUnavailableError,
)
from keystore.sync.hub_rows import Connection, fill
from keystore.tables import Table

HUB_SCHEMA_VERSION = 5
CONNECTION: dict[str, str | int] = {
    "application_name": "keystore",
    "connect_timeout": 10,
    # A host that vanishes says no goodbye. Noticed when nothing is sent (the first three), and when
    # something is (the last, in milliseconds); the system's own defaults are hours.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Connection parameters where the URL names none."""
ANSWER_TIMEOUT_SECONDS = 600.0
"""For how long the hub may say nothing before it counts as gone: longer than any merge takes."""

_Q = sql.named("hub")
_Row = tuple[Any, ...]
_Result = TypeVar("_Result")


class _Patient(psycopg.Connection[_Row]):
    """Waits long, but not for ever: some networks drop a connection and tell neither side."""

    def wait(
        self, gen: PQGen[_Result], interval: float = 0.1, timeout: float | None = None
    ) -> _Result:
        try:
            return super().wait(
                gen, interval, ANSWER_TIMEOUT_SECONDS if timeout is None else timeout
            )
        except psycopg.OperationalError as error:
            if error.sqlstate is None:  # not the server's word: nobody knows where things stand
                self.pgconn.finish()
            raise


class HubConnection:
    """An open connection to a database that holds a hub, or is to hold one."""

    def __init__(self, url: str) -> None:
        try:
            given = conninfo_to_dict(url)
            own = {name: value for name, value in CONNECTION.items() if name not in given}
            conninfo = make_conninfo(url, **own)
        except psycopg.Error:
            # libpq's own message repeats the part that it could not read: maybe the password
            raise InvalidInputError(
                "the hub's URL cannot be read.",
                hint="Check its spelling; write special characters in a password as %XX.",
            ) from None
        try:
            self.conn: Connection = _Patient.connect(
                conninfo, autocommit=True, client_encoding="utf8"
            )
        except psycopg.Error as error:
            raise _not_connected(error) from error
        self._target_id: str | None = None

    def close(self) -> None:
        """Close the connection."""
        self.conn.close()

    @property
    def target_id(self) -> str:
        """The hub's own UUID, asked for once.

        Raises:
            TargetNotReadyError: no ``keystore hub init`` was run in this database.
            SchemaVersionError: the hub is of another version.
        """
        if self._target_id is None:
            with hub_errors():
                has_hub, _ = self.row("exists")
                if not has_hub:
                    raise no_hub()
                hub_id, version = self.row("hub_info")
            if version != HUB_SCHEMA_VERSION:
                raise other_version(version)
            self._target_id = hub_id
        return self._target_id

    def rows(self, name: str, table: Table | None = None, /, **values: object) -> list[Any]:
        """Run a statement of hub.sql, filled for ``table`` if given; return its rows, if any."""
        cursor = self.conn.execute(_Q[name] if table is None else fill(name, table), values)
        return cursor.fetchall() if cursor.description else []

    def row(self, name: str, table: Table | None = None, /, **values: object) -> tuple[Any, ...]:
        """Run a statement that has to give a row; return the first."""
        found = self.rows(name, table, **values)
        if not found:
            raise TargetError(f"the hub answered nothing to {name}.", hint="Is it a keystore hub?")
        return tuple(found[0])


@contextmanager
def hub_errors() -> Iterator[None]:
    """Turn the driver's failures into keystore errors, without the URL (it may hold a password)."""
    try:
        yield
    except KeystoreError:
        raise
    except psycopg.errors.LockNotAvailable as error:
        raise TargetUnavailableError(
            "another push of this store is under way at the hub.",
            hint="Nothing was changed; run the same command again when it is done.",
        ) from error
    except psycopg.errors.DiskFull as error:
        raise TargetUnavailableError(
            f"the hub's disk is full: {first_line(error)}.",
            hint="Nothing was changed; run the same command again when there is room.",
        ) from error
    except (
        psycopg.OperationalError,
        psycopg.InterfaceError,
        psycopg.errors.IdleInTransactionSessionTimeout,  # which the driver counts as internal
    ) as error:
        raise TargetUnavailableError(
            f"the hub stopped answering: {first_line(error)}.",
            hint="Nothing is lost; run the same command again when it is back.",
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise TargetUnavailableError(
            "the hub takes no writes at present.",
            hint="Nothing is lost; run the same command again when it is no longer read-only.",
        ) from error
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise no_hub() from error  # gone since it said who it is: being restored, say
    except psycopg.errors.InsufficientPrivilege as error:
        raise not_granted(first_line(error)) from error
    except psycopg.Error as error:
        raise TargetError(
            f"the hub failed: {first_line(error)}.", hint="The server's log may tell more."
        ) from error


def _not_connected(error: psycopg.Error) -> TargetUnavailableError:
    if "certificate" in first_line(error):
        return TargetUnavailableError(
            f"the hub is not the one that the URL asks for: {first_line(error)}.",
            hint="Check sslmode and sslrootcert in the URL, and the hub's certificate.",
        )
    return TargetUnavailableError(
        f"the hub cannot be reached: {first_line(error)}.",
        hint="Check the URL and the password; if the hub is down, nothing is lost: run the same "
        "command again when it is back.",
    )


def channel_of(store_id: str) -> str:
    """Return the channel on which a hub tells of an origin's news."""
    return f"keystore_{store_id.replace('-', '')}"


def no_hub() -> TargetNotReadyError:
    """Return the error that says that there is no hub here."""
    return TargetNotReadyError(
        "this database is not a keystore hub yet.",
        hint="Run `keystore hub init` with the same URL.",
    )


def not_granted(what: str) -> TargetError:
    """Return the error that says that this role lacks a right."""
    return TargetError(
        f"the hub refused: {what}.",
        hint="Its owner gives an origin or a replica its rights with `keystore hub grant`; "
        "the rest is for the owner alone.",
    )


def other_version(version: int) -> SchemaVersionError:
    """Return the error that says that the hub is of another version."""
    return SchemaVersionError(
        f"the hub's schema version is {version}, this program's {HUB_SCHEMA_VERSION}.",
        hint="Run `keystore hub migrate` with the same URL."
        if version < HUB_SCHEMA_VERSION
        else "Update keystore on this machine.",
    )


def first_line(error: Exception) -> str:
    """Return the first line of a driver's message, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
