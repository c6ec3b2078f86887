"""Reads the ChangeLog: which records may have changed, and what they are now.

Replay is *state-based*. A ChangeLog row says only that a record changed; the reader looks at the
record as it is now: present means upsert, absent means delete. Many changes to one record cost
one look, replay is idempotent, and a spurious row is harmless.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from keystore import db, sql
from keystore.clock import utc_text
from keystore.db import StoreFile, scalar
from keystore.errors import CompactedLogError, DamagedStoreError
from keystore.tables import TRACKED, Table, WireRow

if TYPE_CHECKING:
    import sqlite3

Record = tuple[str, int]
"""Table name and internal id."""

PAGE_SIZE = 10_000
"""Records per page: bounds the memory of a push, about 4 MB of keys."""

_Q = sql.named("changelog")


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the ChangeLog."""

    change_id: int
    table_name: str
    record_id: int
    operation: str
    occurred_at: str


@dataclass(slots=True)
class Page:
    """Records of one table: what they are now, and the ids of those that are gone.

    ``repeats`` warns that an earlier page of the same read may have carried some of these
    records; the later page counts.
    """

    table: Table
    rows: list[WireRow]
    deleted: list[int] = field(default_factory=list)
    repeats: bool = False


def head(conn: "sqlite3.Connection") -> int:
    """Return the id of the latest change, 0 before the first."""
    return int(scalar(conn, _Q["head"]))


def since(conn: "sqlite3.Connection", after: int, limit: int = -1) -> Iterator[Change]:
    """Yield the changes after ``after``, oldest first; ``limit`` -1 means all."""
    for row in conn.execute(_Q["since"], {"after": after, "limit": limit}):
        yield Change(*row)


def count(conn: "sqlite3.Connection") -> int:
    """Return how many rows the log has."""
    return int(scalar(conn, _Q["count"]))


def count_records(conn: "sqlite3.Connection", table: Table) -> int:
    """Return how many rows a tracked table holds."""
    return int(scalar(conn, _fill("count_records", table)))


def all_records(conn: "sqlite3.Connection", table: Table) -> Iterator[WireRow]:
    """Yield the rows of a tracked table by id; call it in a read transaction."""
    yield from conn.execute(_fill("all_records", table), {"after": 0, "limit": -1})


def records_of(
    conn: "sqlite3.Connection", table: Table, first: int, last: int
) -> Iterator[WireRow]:
    """Yield the rows of a tracked table with ids from ``first`` to ``last``, both included."""
    yield from conn.execute(_fill("records_of", table), {"first": first, "last": last})


def changed_records(conn: "sqlite3.Connection", after: int) -> set[Record]:
    """Return the records that changes later than ``after`` name."""
    return set(conn.execute(_Q["changed_records"], (after,)))


def log_records(conn: "sqlite3.Connection", records: Iterable[Record]) -> None:
    """Log records as changed, so that the next push carries them as they are, or their absence."""
    conn.executemany(_Q["log_record"], records)


def distrust(conn: "sqlite3.Connection") -> None:
    """Declare that the log may lack changes: the next push to each target carries everything."""
    log_records(conn, [(TRACKED[0].name, 0)])  # so that no target has acknowledged the head
    conn.execute(_Q["set_horizon"], (head(conn),))


def keep_ids_above(conn: "sqlite3.Connection", highest: Mapping[str, int], change: int) -> None:
    """Give ids above ``highest`` (by table name) and change ids above ``change`` from now on.

    For a store that was put back to an earlier state: what it gave away since is not given again.
    """
    for name, value in {**highest, "ChangeLog": change}.items():
        conn.execute(_Q["add_sequence"], {"name": name, "value": value})
        conn.execute(_Q["raise_sequence"], {"name": name, "value": value})
    conn.execute(_Q["skip_ids"], {"change": change})


def skip_usage_ids(conn: "sqlite3.Connection") -> None:
    """Go on with usage ids that no other copy of this replica has given.

    Its origin knows by an id up to where this store's usage is settled. From the clock, because
    nobody here knows how far the other copy has come.
    """
    values = {"name": "UsageLog", "value": time.time_ns() // 1000}
    conn.execute(_Q["add_sequence"], values)
    conn.execute(_Q["raise_sequence"], values)


def compact(conn: "sqlite3.Connection", floor: int) -> int:
    """Remove the log rows that no target needs; return how many. Call it in a write transaction.

    Those up to ``floor``, the lowest change that any live target has acknowledged, go; of the later
    ones the latest of each record stays.
    """
    horizon = min(floor, head(conn))
    conn.execute(_Q["begin_compaction"])
    removed = conn.execute(_Q["remove_acknowledged"], (horizon,)).rowcount
    removed += conn.execute(_Q["remove_repeated"]).rowcount
    conn.execute(_Q["end_compaction"], {"horizon": horizon, "head": head(conn)})
    return int(removed)


def undecodable(conn: "sqlite3.Connection", table: Table) -> int | None:
    """Return the id of the first record whose text is not UTF-8, which no CHECK can refuse."""
    text_factory, conn.text_factory = conn.text_factory, bytes
    try:
        for row in conn.execute(_fill("all_records", table), {"after": 0, "limit": -1}):
            try:
                for value in row:
                    if isinstance(value, bytes):
                        value.decode()
            except UnicodeDecodeError:
                return int(row[0])
        return None
    finally:
        conn.text_factory = text_factory


@contextmanager
def naming_undecodable(file: StoreFile, table: Table) -> Iterator[None]:
    """Say which record of a table it was that could not be read.

    Raises:
        DamagedStoreError: it holds text that is not UTF-8.
    """
    try:
        yield
    except db.Error as error:
        record_id = undecodable(file.conn, table)
        if record_id is None:
            raise
        raise DamagedStoreError(
            f"{file.path}: {table.name} {record_id} holds text that is not UTF-8.",
            hint="Correct that row; nothing was pushed.",
        ) from error


class Reader:
    """Reads everything that changed after ``after``, or everything there is (``after=None``).

    Iterate once over the pages; then ``up_to`` and ``as_of_at`` tell the *cut*: the pages
    together carry the store's state exactly as it was right after change ``up_to``, and at
    ``as_of_at`` (UTC text) no later change had been made. ``counts`` holds the number of rows by
    table at the cut.

    No read transaction is open between two pages, so the consumer may wait for a network without
    pinning the WAL. Records that change meanwhile are read again in a next round; the last round
    is one that fits into one page and is therefore read in one snapshot.
    """

    def __init__(self, file: StoreFile, after: int | None, *, page_size: int = PAGE_SIZE) -> None:
        self._file = file
        self._after = after
        self._page_size = page_size
        self.up_to = 0
        self.as_of_at = ""
        self.counts: dict[str, int] = {}
        self.expected: int | None = None
        """Records to come, as far as the first round can tell; ``None`` before it."""

    def __iter__(self) -> Generator[Page]:
        with self._file.errors():
            self._file.conn.execute(_Q["create_pending"])
        after, repeats = self._after, False
        if after is None:
            with self._file.read() as conn:
                after = head(conn)
                self.expected = sum(count_records(conn, table) for table in TRACKED)
            for table in TRACKED:
                yield from (Page(table, rows) for rows in self._windows("all_records", table))
            repeats = True
        while True:
            with self._file.read() as conn:
                self.as_of_at, self.up_to = utc_text(), head(conn)
                pending = self._fill_pending(conn, after)
                if self.expected is None:
                    self.expected = pending
                is_last = pending <= self._page_size
                final = [
                    (t, self._window(conn, "pending_records", t, 0)) for t in TRACKED if is_last
                ]
                if is_last:
                    self.counts = {table.name: count_records(conn, table) for table in TRACKED}
            if is_last:
                yield from (_page(table, found, repeats) for table, found in final if found)
                return
            for table in TRACKED:
                for found in self._windows("pending_records", table):
                    yield _page(table, found, repeats)
            after, repeats = self.up_to, True

    def _fill_pending(self, conn: "sqlite3.Connection", after: int) -> int:
        horizon = int(scalar(conn, _Q["horizon"]))
        if after < horizon:
            raise CompactedLogError(
                f"{self._file.path}: the ChangeLog was shortened up to change {horizon} meanwhile.",
                hint="Nothing was sent; run the same command again.",
            )
        conn.execute(_Q["clear_pending"])
        conn.execute(_Q["fill_pending"], {"after": after, "up_to": self.up_to})
        return int(scalar(conn, _Q["count_pending"]))

    def _windows(self, name: str, table: Table) -> Iterator[list[tuple[Any, ...]]]:
        """Yield one statement's rows page by page, each in a read transaction of its own."""
        last = 0  # ids are positive, by CHECK
        while True:
            with self._file.read() as conn:
                found = self._window(conn, name, table, last)
            if not found:
                return
            yield found
            last = found[-1][0]

    def _window(
        self, conn: "sqlite3.Connection", name: str, table: Table, after: int
    ) -> list[tuple[Any, ...]]:
        window = {"after": after, "limit": self._page_size}
        with naming_undecodable(self._file, table):
            return conn.execute(_fill(name, table), window).fetchall()


def _page(table: Table, found: list[tuple[Any, ...]], repeats: bool) -> Page:
    """Sort rows of ``pending_records`` (id, whether it is gone, columns) into a page."""
    rows = [row for _, is_gone, *row in found if not is_gone]
    deleted = [record_id for record_id, is_gone, *_ in found if is_gone]
    return Page(table, [tuple(row) for row in rows], deleted, repeats)


@cache
def _fill(name: str, table: Table) -> str:
    columns = ", ".join(f"t.{column.name}" for column in table.columns)
    return _Q[name].format(table=table.name, id=table.id, columns=columns)
