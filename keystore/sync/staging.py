"""A scratch database of records on their way: attached to a connection, and applied to its tables.

Deleting first, all of them, and inserting then, lets two records swap a unique value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from keystore import sql
from keystore.changelog import PAGE_SIZE, Page
from keystore.db import scratch
from keystore.tables import TRACKED, Table

if TYPE_CHECKING:
    import sqlite3

_STEP_SIZE = 2_000
_BELOW_ALL = -(1 << 63)
"""An id that none is below: ids that cannot be are refused by the tables, not left out here."""
_Q = sql.named("staging")


@contextmanager
def staged(conn: "sqlite3.Connection") -> Iterator["Staging"]:
    """Attach an empty scratch database on disk, and let it go.

    A pull of everything stages every row. Temporary tables would be in memory, as ours are, and
    keep theirs for ever; and who follows uses one connection for months.
    """
    with scratch(conn, "incoming"):
        conn.execute(_Q["create_deleted"])
        for table in TRACKED:
            conn.execute(_fill("create", table))
        yield Staging(conn)


class Staging:
    """Records that a connection has staged; of one that comes twice, the later counts."""

    def __init__(self, conn: "sqlite3.Connection") -> None:
        self._conn = conn
        self._touched = set[str]()  # a pull of a few rows is about one table or two

    def add(self, page: Page) -> None:
        """Stage one page. Call it in a transaction: scratch pays per commit, too."""
        conn, table = self._conn, page.table
        if page.rows or page.deleted:
            self._touched.add(table.name)
        if page.repeats:
            ids = [(i,) for i in (*page.deleted, *(row[0] for row in page.rows))]
            conn.executemany(_fill("forget", table), ids)
            conn.executemany(_fill("forget_deleted", table), ids)
        conn.executemany(_fill("insert", table), page.rows)
        conn.executemany(_fill("insert_deleted", table), [(i,) for i in page.deleted])

    def reduce_to_differences(self) -> None:
        """Take what is staged for everything, and keep what differs from the tables.

        A record that is the same already is left alone: no log row, no eviction, no bytes.
        """
        for table in TRACKED:
            self._touched.add(table.name)
            self._conn.execute(_fill("note_absent", table))
            self._conn.execute(_fill("skip_unchanged", table))

    def apply(self) -> int:
        """Write what is staged to the tables; return how many records were written or deleted."""
        written = 0
        touched = [table for table in TRACKED if table.name in self._touched]
        for table in touched:
            written += self._in_steps("apply_deleted", "deleted_step", table)
            self._in_steps("delete_replaced", "step", table)
        for table in touched:
            written += self._in_steps("insert_replaced", "step", table)
        return written

    def _in_steps(self, name: str, step: str, table: Table) -> int:
        """Run a statement for some ids at a time: what it touches can be taken back while it runs,
        and until then all those pages are in memory.
        """
        after, written = _BELOW_ALL, 0
        while True:
            window = {"after": after, "size": _STEP_SIZE}
            (last,) = self._conn.execute(_fill(step, table), window).fetchone()
            if last is None:
                return written
            ids = {"after": after, "last": last}
            written += self._conn.execute(_fill(name, table), ids).rowcount
            after = last

    def pages(self) -> Iterator[Page]:
        """Yield what is staged."""
        for table in TRACKED:
            for name in ("rows", "deleted"):
                after = _BELOW_ALL
                window = {"limit": PAGE_SIZE}
                while found := self._conn.execute(
                    _fill(name, table), window | {"after": after}
                ).fetchall():
                    after = found[-1][0]
                    if name == "rows":
                        yield Page(table, found)
                    else:
                        yield Page(table, [], [record_id for (record_id,) in found])


@cache
def _fill(name: str, table: Table) -> str:
    return _Q[name].format(
        table=table.name,
        id=table.id,
        columns=table.column_list,
        other_columns=", ".join(column.name for column in table.columns[1:]),
        incoming=", ".join(f"i.{column.name}" for column in table.columns),
        held=", ".join(f"t.{column.name}" for column in table.columns),
        marks=", ".join("?" * len(table.columns)),
    )
