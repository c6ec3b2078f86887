"""Turns wire rows into what PostgreSQL's binary COPY takes, and statements into the hub's names."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import psycopg

from keystore import sql
from keystore.clock import parse_utc
from keystore.errors import TargetError
from keystore.tables import Kind, Table, WireRow, WireValue

_Q = sql.named("hub")


def copy_rows(
    conn: psycopg.Connection[tuple[Any, ...]],
    statement: str,
    types: Sequence[str],
    rows: Iterable[Sequence[object]],
) -> None:
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([name.lower() for name in types])
        for row in rows:
            copy.write_row(row)


def from_wire(table: Table, rows: Iterable[WireRow]) -> Iterator[list[object]]:
    readers = [_READ[column.kind] for column in table.columns]
    for row in rows:
        try:
            yield [
                value if value is None else read(value)
                for read, value in zip(readers, row, strict=True)
            ]
        except (ValueError, TypeError) as error:
            raise TargetError(
                f"{table.name} {row[0]} cannot be pushed: {error}.",
                hint="Correct that row at the origin; nothing was pushed.",
            ) from error


def _moment(value: WireValue) -> datetime:
    return parse_utc(str(value))


_READ: dict[Kind, Any] = {
    Kind.BIGINT: int,
    Kind.TEXT: str,
    Kind.UUID: uuid.UUID,
    Kind.BOOLEAN: bool,
    Kind.TIMESTAMPTZ: _moment,
}
_WIRE = {
    Kind.BIGINT: "{0}",
    Kind.TEXT: "{0}",
    Kind.UUID: "{0}::TEXT",
    Kind.BOOLEAN: "{0}::INTEGER",
    Kind.TIMESTAMPTZ: "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')",
}


def fill(name: str, table: Table) -> str:
    columns = table.columns
    return _Q[name].format(
        table=table.hub_name,
        name=table.name,
        id=table.id,
        columns=table.column_list,
        typed=", ".join(f"{column.name} {column.kind.value}" for column in columns),
        wire=", ".join(_WIRE[column.kind].format(column.name) for column in columns),
        updates=", ".join(f"{column.name} = excluded.{column.name}" for column in columns[1:]),
    )
