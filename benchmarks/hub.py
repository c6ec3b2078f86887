"""Push and pull of a whole store, against moving the same rows with the drivers alone."""

import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import psycopg

from benchmarks import samples
from benchmarks.harness import Row, Side, compare, main
from keystore import clock, db, sql
from keystore.sync import engine, targets
from keystore.sync.postgres import PostgresHub
from keystore.tables import BY_NAME, Kind, WireRow
from keystore.testing.postgres import running

_KEYS = BY_NAME["APIKeys"]
_COLUMNS = _KEYS.column_list
_TYPES = [column.kind.value for column in _KEYS.columns]


def measure(quick: bool) -> list[Row]:
    """Measure with 20,000 keys (quick) or 200,000, on a server of its own."""
    count = 20_000 if quick else 200_000
    with (
        TemporaryDirectory(prefix="keystore-bench-") as folder,
        running() as server,
        samples.origin(Path(folder) / "origin.db", samples.random_hashes(count)) as file,
    ):
        select = f"SELECT {_COLUMNS} FROM APIKeys ORDER BY {_KEYS.id}"
        rows: list[WireRow] = file.conn.execute(select).fetchall()
        with closing(_Hub(server.url, "ours")) as ours:
            return [
                _push(file, rows, ours, server.url, quick),
                _pull(ours, rows, Path(folder), quick),  # of what the last round pushed
            ]


def _push(
    file: db.StoreFile, rows: Sequence[WireRow], ours: "_Hub", server: str, quick: bool
) -> Row:
    values = [_to_postgres(row) for row in rows]
    with closing(_Hub(server, "theirs")) as theirs:
        measured = compare(
            f"push of {len(rows):,} keys to a new hub",
            "binary COPY from memory, one INSERT … ON CONFLICT",
            Side(lambda: engine.push(file, ours.hub, "hub:", engine.Report("hub:")), ours.renew),
            Side(lambda: _copy_and_insert(theirs.conn, values), theirs.renew),
            goal=1.25,
            quick=quick,
        )
        _refuse_unequal(ours.count_keys(), theirs.count_keys())
    return measured


def _pull(ours: "_Hub", rows: Sequence[WireRow], folder: Path, quick: bool) -> Row:
    replica, bare = folder / "replica.db", _BareFile(folder / "bare.db", rows)

    def replicate() -> None:
        engine.replicate(ours.hub, "hub:", replica, engine.Report("hub:"))

    measured = compare(
        f"pull of {len(rows):,} keys into a new replica",
        "executemany from memory, same table and indexes",
        Side(replicate, lambda: db.remove_files(replica)),
        Side(bare.fill, bare.renew),
        goal=1 / 0.7,
        quick=quick,
    )
    _refuse_unequal(_count_keys(replica), _count_keys(bare.path))
    return measured


class _Hub:
    """An empty hub in a database of its own, with a bare connection to the same database."""

    def __init__(self, server: str, name: str) -> None:
        self._server, self._name = server, name
        self._url = urlsplit(server)._replace(path=f"/{name}").geturl()
        self._open()

    def _open(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {self._name}")
            admin.execute(f"CREATE DATABASE {self._name}")
        self.hub = PostgresHub(self._url)
        with targets.hub_admin(self._url) as admin:
            admin.init()
        self.conn: psycopg.Connection[Any] = psycopg.connect(self._url, autocommit=True)

    def renew(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.hub.close()
        self.conn.close()

    def count_keys(self) -> int:
        return len(self.conn.execute("SELECT FROM keystore.api_keys").fetchall())


def _copy_and_insert(conn: psycopg.Connection[Any], values: Sequence[Sequence[object]]) -> None:
    """Bring rows into the hub's own table in the fastest way that also updates what is there."""
    typed = ", ".join(f"{column.name} {column.kind.value}" for column in _KEYS.columns)
    updates = ", ".join(f"{column.name} = excluded.{column.name}" for column in _KEYS.columns[1:])
    with conn.transaction():
        conn.execute(f"CREATE TEMP TABLE bare ({typed}) ON COMMIT DROP")
        statement = f"COPY bare ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
        with conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([name.lower() for name in _TYPES])
            for value in values:
                copy.write_row(value)
        conn.execute(
            f"INSERT INTO keystore.api_keys (store_id, {_COLUMNS}, changed_at_id)"
            f" SELECT %s, {_COLUMNS}, 1 FROM bare"
            f" ON CONFLICT (store_id, {_KEYS.id}) DO UPDATE SET {updates}, changed_at_id = 1",
            (uuid.uuid4(),),
        )


def _to_postgres(row: WireRow) -> tuple[object, ...]:
    """Turn a wire row into what psycopg sends without a look at it: off the clock."""
    read: dict[Kind, Any] = {
        Kind.BIGINT: int,
        Kind.TEXT: str,
        Kind.UUID: uuid.UUID,
        Kind.BOOLEAN: bool,
        Kind.TIMESTAMPTZ: clock.parse_utc,
    }
    return tuple(
        None if value is None else read[column.kind](value)
        for column, value in zip(_KEYS.columns, row, strict=True)
    )


class _BareFile:
    """A file with the store's tables and no triggers, for one round."""

    def __init__(self, path: Path, rows: Sequence[WireRow]) -> None:
        self.path, self._rows = path, rows

    def renew(self) -> None:
        db.remove_files(self.path)
        self._file = db.StoreFile(self.path, db.connect(self.path, create=True))
        db.apply_pragmas(self._file.conn)
        self._file.conn.execute("PRAGMA foreign_keys = OFF")  # as in a replay
        self._file.conn.execute("PRAGMA journal_mode = WAL")
        self._file.conn.executescript(sql.read("schema"))

    def fill(self) -> None:
        marks = ", ".join("?" * len(_KEYS.columns))
        with self._file as file, file.write() as conn:
            conn.executemany(f"INSERT INTO APIKeys ({_COLUMNS}) VALUES ({marks})", self._rows)


def _count_keys(path: Path) -> int:
    with closing(db.connect(path)) as conn:
        return int(db.scalar(conn, "SELECT count(*) FROM APIKeys"))


def _refuse_unequal(ours: int, theirs: int) -> None:
    if ours != theirs:
        msg = f"we moved {ours} keys, they {theirs}: the times cannot be compared"
        raise RuntimeError(msg)


if __name__ == "__main__":
    main(measure)
