"""Push and pull of a whole store, and of a few changes, against the bare drivers."""

import uuid
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from benchmarks import samples
from benchmarks.harness import Side, compare, main
from benchmarks.hubs import FreshHub
from benchmarks.results import Row
from keystore import clock, db, sql
from keystore.sync import engine
from keystore.tables import BY_NAME, Kind, WireRow
from keystore.testing.postgres import running

REPEATED_KEYS = 100

_KEYS = BY_NAME["APIKeys"]
_COLUMNS = _KEYS.column_list
_TYPES = [column.kind.value for column in _KEYS.columns]
_UPDATES = ", ".join(f"{c.name} = excluded.{c.name}" for c in _KEYS.columns[1:])
_MARKS = ", ".join("?" * len(_KEYS.columns))


def measure(quick: bool) -> list[Row]:
    """Measure with 20,000 keys of which 2,000 change (quick), or 1,000,000 and 10,000."""
    keys, changes = (20_000, 2_000) if quick else (1_000_000, 10_000)
    with (
        TemporaryDirectory(prefix="keystore-bench-") as folder,
        running() as server,
        samples.origin(Path(folder) / "origin.db", samples.random_hashes(keys)) as file,
        FreshHub(server.url, "ours") as ours,
        FreshHub(server.url, "theirs") as theirs,
    ):
        rows = _rows(file)
        pushed = _push(file, rows, ours, theirs, quick)
        replica, bare = Path(folder) / "replica.db", _BareFile(Path(folder) / "bare.db")
        pulled = _pull(ours, rows, replica, bare, quick)  # of what the last round pushed
        del rows
        return [
            pushed,
            _push_changes(file, ours, theirs, changes, quick),
            _push_repeated(file, ours, keys, quick),
            pulled,
            _pull_changes(file, ours, replica, bare, changes, quick),
        ]


def _push(
    file: db.StoreFile, rows: Sequence[WireRow], ours: FreshHub, theirs: FreshHub, quick: bool
) -> Row:
    values = [_to_postgres(row) for row in rows]
    measured = compare(
        f"push of {len(rows):,} keys to a new hub",
        "binary COPY from memory, one INSERT … ON CONFLICT",
        Side(lambda: _send(file, ours), ours.renew),
        Side(lambda: _copy_and_insert(theirs.conn, values), theirs.renew),
        goal=1.25,
        quick=quick,
    )
    _refuse_unequal(ours.count_keys(), theirs.count_keys())
    return measured


def _push_changes(
    file: db.StoreFile, ours: FreshHub, theirs: FreshHub, changes: int, quick: bool
) -> Row:
    """Measure with keys that lie apart, in hubs that hold all of them."""
    change = _Changes(file, changes)
    values: list[tuple[object, ...]] = []

    def push() -> None:
        _refuse_unequal(_send(file, ours), changes)

    def look() -> None:
        values[:] = (_to_postgres(row) for row in change.rows())

    return compare(
        f"push of {changes:,} changed keys among {change.keys:,}",
        "binary COPY from memory, one INSERT … ON CONFLICT",
        Side(push, change.make),
        Side(lambda: _copy_and_insert(theirs.conn, values), look),
        goal=1.25,
        quick=quick,
    )


def _push_repeated(file: db.StoreFile, ours: FreshHub, changes: int, quick: bool) -> Row:
    """Compare by what is sent: the same few rows, after many changes and after one of each."""

    def change(times: int) -> None:
        labels = ((f"change {uuid.uuid4()}",) for _ in range(times))
        statement = f"UPDATE APIKeys SET label = ? WHERE {_KEYS.id} <= {REPEATED_KEYS}"
        with file.write() as conn:
            conn.executemany(statement, labels)

    def push() -> None:
        _refuse_unequal(_send(file, ours), REPEATED_KEYS)

    return compare(
        f"push after {changes:,} changes to {REPEATED_KEYS} keys: {REPEATED_KEYS} rows are sent",
        f"push after {REPEATED_KEYS} changes to {REPEATED_KEYS} keys",
        Side(push, lambda: change(changes // REPEATED_KEYS)),
        Side(push, lambda: change(1)),
        goal=None,
        quick=quick,
    )


def _pull(
    ours: FreshHub, rows: Sequence[WireRow], replica: Path, bare: "_BareFile", quick: bool
) -> Row:
    def replicate() -> None:
        engine.replicate(ours.hub, "hub:", replica, engine.Report("hub:"))

    measured = compare(
        f"pull of {len(rows):,} keys into a new replica",
        "executemany from memory, same table and indexes",
        Side(replicate, lambda: db.remove_files(replica)),
        Side(lambda: bare.fill(rows), bare.renew),
        goal=1 / 0.7,
        quick=quick,
    )
    _refuse_unequal(_count_keys(replica), _count_keys(bare.path))
    return measured


def _pull_changes(
    file: db.StoreFile,
    ours: FreshHub,
    replica: Path,
    bare: "_BareFile",
    changes: int,
    quick: bool,
) -> Row:
    """Measure with a replica's triggers on: they tell its validators what has changed."""
    change = _Changes(file, changes)
    rows: list[WireRow] = []

    def push() -> None:
        change.make()
        _send(file, ours)
        rows[:] = change.rows()

    with db.open_store(replica) as mirror, closing(bare.open()) as other:

        def pull(expected: int = changes) -> None:
            report = engine.Report("hub:")
            engine.pull(mirror, ours.hub, "hub:", report)
            _refuse_unequal(report.pulled or 0, expected)

        engine.pull(mirror, ours.hub, "hub:", engine.Report("hub:"))
        return compare(
            f"pull of {changes:,} changed keys among {change.keys:,}",
            "executemany from memory, INSERT … ON CONFLICT, no triggers",
            Side(pull, push),
            Side(lambda: bare.upsert(other, rows)),
            goal=None,
            quick=quick,
        )


class _Changes:
    """Changes the same number of keys each time: others than the last time, and far apart."""

    def __init__(self, file: db.StoreFile, number: int) -> None:
        self._file, self._number = file, number
        self.keys = int(db.scalar(file.conn, "SELECT count(*) FROM APIKeys"))
        self._offsets = count()
        self._where = ""

    def make(self) -> None:
        step = self.keys // self._number
        self._where = f"{_KEYS.id} % {step} = {next(self._offsets) % step}"
        label = f"changed {uuid.uuid4()}"
        with self._file.write() as conn:
            conn.execute(f"UPDATE APIKeys SET label = ? WHERE {self._where}", (label,))

    def rows(self) -> list[WireRow]:
        return _rows(self._file, self._where)


class _BareFile:
    """A file with the store's tables and no triggers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def renew(self) -> None:
        db.remove_files(self.path)
        with closing(db.connect(self.path, create=True)) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.executescript(sql.read("schema"))

    def open(self) -> db.StoreFile:
        file = db.StoreFile(self.path, db.connect(self.path))
        db.apply_pragmas(file.conn)
        file.conn.execute("PRAGMA foreign_keys = OFF")  # as in a replay
        return file

    def fill(self, rows: Sequence[WireRow]) -> None:
        with self.open() as file, file.write() as conn:
            conn.executemany(f"INSERT INTO APIKeys ({_COLUMNS}) VALUES ({_MARKS})", rows)

    def upsert(self, file: db.StoreFile, rows: Sequence[WireRow]) -> None:
        with file.write() as conn:
            conn.executemany(
                f"INSERT INTO APIKeys ({_COLUMNS}) VALUES ({_MARKS})"
                f" ON CONFLICT ({_KEYS.id}) DO UPDATE SET {_UPDATES}",
                rows,
            )


def _send(file: db.StoreFile, hub: FreshHub) -> int:
    report = engine.Report("hub:")
    engine.push(file, hub.hub, "hub:", report)
    return report.pushed or 0


_THEIRS = uuid.uuid4()
"""The origin that the rows of the bare push belong to."""
_STAMPS = count(1)
"""The bare push stamps its rows anew each time, too: a replica has to find them by an index."""


def _copy_and_insert(conn: psycopg.Connection[Any], values: Sequence[Sequence[object]]) -> None:
    """Bring rows into the hub's own table in the fastest way that also updates what is there."""
    typed = ", ".join(f"{column.name} {column.kind.value}" for column in _KEYS.columns)
    with conn.transaction():
        conn.execute(f"CREATE TEMP TABLE bare ({typed}) ON COMMIT DROP")
        statement = f"COPY bare ({_COLUMNS}) FROM STDIN (FORMAT BINARY)"
        with conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([name.lower() for name in _TYPES])
            for value in values:
                copy.write_row(value)
        conn.execute(
            f"INSERT INTO keystore.api_keys (store_id, {_COLUMNS}, changed_at_id)"
            f" SELECT %s, {_COLUMNS}, %s FROM bare ON CONFLICT (store_id, {_KEYS.id})"
            f" DO UPDATE SET {_UPDATES}, changed_at_id = excluded.changed_at_id",
            (_THEIRS, next(_STAMPS)),
        )


def _rows(file: db.StoreFile, where: str = "TRUE") -> list[WireRow]:
    select = f"SELECT {_COLUMNS} FROM APIKeys WHERE {where} ORDER BY {_KEYS.id}"
    return file.conn.execute(select).fetchall()


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


def _count_keys(path: Path) -> int:
    with closing(db.connect(path)) as conn:
        return int(db.scalar(conn, "SELECT count(*) FROM APIKeys"))


def _refuse_unequal(ours: int, theirs: int) -> None:
    if ours != theirs:
        msg = f"{ours} keys were moved, not {theirs}: the times cannot be compared"
        raise RuntimeError(msg)


if __name__ == "__main__":
    main(measure)
