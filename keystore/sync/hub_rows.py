"""Fills the hub's statements with a table's names, and turns wire rows into COPY and back.

Rows travel as the store has them: 64-bit numbers and text. What they become at the hub is said in
SQL, once for each kind of column.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg

from keystore import sql
from keystore.changelog import PAGE_SIZE
from keystore.clock import parse_utc
from keystore.errors import TargetError
from keystore.tables import Kind, Table, WireRow, WireValue

_Q = sql.named("hub")
Connection = psycopg.Connection[tuple[Any, ...]]

_TO_HUB = {
    Kind.BIGINT: "{0}",
    Kind.TEXT: "{0}",
    Kind.UUID: "{0}::UUID AS {0}",
    Kind.BOOLEAN: "{0} <> 0 AS {0}",
    Kind.TIMESTAMPTZ: "{0}::TIMESTAMPTZ AS {0}",
}
_TO_WIRE = {
    Kind.BIGINT: "{0}",
    Kind.TEXT: "{0}",
    Kind.UUID: "{0}::TEXT AS {0}",
    Kind.BOOLEAN: "{0}::INTEGER::BIGINT AS {0}",
    Kind.TIMESTAMPTZ: "left({0}::TEXT, 19) AS {0}",
}
_NUMBERS = {Kind.BIGINT, Kind.BOOLEAN}


def wire_types(table: Table) -> list[str]:
    """Return the PostgreSQL types of a table's wire rows."""
    return ["int8" if column.kind in _NUMBERS else "text" for column in table.columns]


@contextmanager
def copying_in(
    conn: Connection, statement: str, types: Sequence[str], rows: Iterable[Sequence[object]]
) -> Iterator[None]:
    """Send rows by COPY … FROM STDIN (FORMAT BINARY); the hub has them when the block ends."""
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
        yield


def copy_in(
    conn: Connection, statement: str, types: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Send rows by COPY … FROM STDIN (FORMAT BINARY), and wait until the hub has them."""
    with copying_in(conn, statement, types, rows):
        pass


def copy_out(
    conn: Connection, statement: str, types: Sequence[str], values: dict[str, object]
) -> Iterator[list[WireRow]]:
    """Stream rows by COPY … TO STDOUT (FORMAT BINARY), in pages: the server goes on meanwhile."""
    with conn.cursor() as cursor, cursor.copy(statement, values) as copy:
        copy.set_types(types)
        rows = copy.rows()
        while page := list(islice(rows, PAGE_SIZE)):
            yield page


def refuse_misfits(table: Table, rows: Iterable[WireRow]) -> None:
    """Find the row that the hub's types cannot take.

    Raises:
        TargetError: names the first one.
    """
    readers = [_READ[column.kind] for column in table.columns]
    for row in rows:
        for column, read, value in zip(table.columns, readers, row, strict=True):
            try:
                if value is not None:
                    read(value)
            except (ValueError, TypeError) as error:
                raise TargetError(
                    f"{table.name} {row[0]} cannot be pushed: {column.name}: {error}.",
                    hint="Correct that row at the origin; nothing was pushed.",
                ) from error


def _text(value: WireValue) -> str:
    if not isinstance(value, str):
        msg = f"{value!r} is no text"
        raise TypeError(msg)
    if "\0" in value:
        msg = f"{value!r} has a NUL"
        raise ValueError(msg)
    return value


def _number(value: WireValue) -> int:
    if not isinstance(value, int):
        msg = f"{value!r} is no number"
        raise TypeError(msg)
    return value


def _moment(value: WireValue) -> datetime:
    return parse_utc(_text(value))


def _uuid(value: WireValue) -> UUID:
    return UUID(_text(value))


_READ: dict[Kind, Any] = {
    Kind.BIGINT: _number,
    Kind.TEXT: _text,
    Kind.UUID: _uuid,
    Kind.BOOLEAN: _number,
    Kind.TIMESTAMPTZ: _moment,
}


def fill(name: str, table: Table) -> str:
    """Return a statement of hub.sql for one table."""
    columns = table.columns
    names = [column.name for column in columns]
    pairs = zip(names, wire_types(table), strict=True)
    return _Q[name].format(
        table=table.hub_name,
        name=table.name,
        id=table.id,
        columns=table.column_list,
        wire_types=", ".join(f"{column} {kind}" for column, kind in pairs),
        values=", ".join(_TO_HUB[column.kind].format(column.name) for column in columns),
        wire=", ".join(_TO_WIRE[column.kind].format(column.name) for column in columns),
        updates=", ".join(f"{column} = i.{column}" for column in names[1:]),
        excluded=", ".join(f"{column} = excluded.{column}" for column in names[1:]),
        old=", ".join(f"t.{column}" for column in names),
        new=", ".join(f"i.{column}" for column in names),
        digest=" || ".join(
            f"coalesce(octet_length({column}::TEXT) || ':' || {column} || ',', '-,')"
            for column in names
        ),
    )
