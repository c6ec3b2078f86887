"""Reads the rows of one account or of one service, for a repository that carries no others.

What belongs to a scope depends on rows that did not change: an account that moves to another plan
brings that plan's row along. So the rows of a scope are always read all, in one snapshot, and the
target compares.
"""

from collections.abc import Generator

from keystore import sql
from keystore.changelog import PAGE_SIZE, Page, head, naming_undecodable
from keystore.clock import utc_text
from keystore.db import StoreFile, scalar, scratch
from keystore.tables import TRACKED, Table, WireRow

_Q = sql.named("scope")


class ScopedReader:
    """Reads everything in a scope; iterate once, as over :class:`keystore.changelog.Reader`.

    Args:
        file: the store.
        kind: ``account`` or ``service``.
        record_id: its internal id.
    """

    def __init__(self, file: StoreFile, kind: str, record_id: int) -> None:
        self._file, self._kind, self._record_id = file, kind, record_id
        self.up_to, self.as_of_at = 0, ""
        self.counts: dict[str, int] = {}
        self.expected: int | None = None

    def __iter__(self) -> Generator[Page]:
        conn = self._file.conn
        with self._file.errors(), scratch(conn, "scoped"):
            with self._file.read():
                self.as_of_at, self.up_to = utc_text(), head(conn)
                conn.execute(_Q["create_ids"])
                of_scope = _Q["of_account"] if self._kind == "account" else _Q["of_service"]
                conn.execute(of_scope, {"record_id": self._record_id})
                for table in TRACKED:
                    conn.execute(_fill("create", table))
                    conn.execute(_fill("copy", table))
                    self.counts[table.name] = scalar(conn, _fill("count", table))
            self.expected = sum(self.counts.values())
            # The copy is ours: nobody's snapshot is held while a target takes its time.
            for table in TRACKED:
                after: int | str | None = 0
                while found := self._window(table, after):
                    after = found[-1][0]
                    yield Page(table, found)

    def _window(self, table: Table, after: int | str | None) -> list[WireRow]:
        window = {"after": after, "limit": PAGE_SIZE}
        with naming_undecodable(self._file, table):
            return self._file.conn.execute(_fill("rows", table), window).fetchall()


def _fill(name: str, table: Table) -> str:
    return _Q[name].format(
        table=table.name,
        id=table.id,
        columns=table.column_list,
        other_columns=", ".join(column.name for column in table.columns[1:]),
    )
