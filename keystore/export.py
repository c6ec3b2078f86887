"""Rows as text for people and for other programs: JSON Lines, or CSV.

All rows are read in one snapshot, row by row. The snapshot pins the WAL, so write to a file of this
machine, never to a pipe: its reader may stop reading.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import IO, TYPE_CHECKING, Any, Literal

from keystore import changelog, db, sql
from keystore.admin.bulk import strict_json
from keystore.errors import CompactedLogError, InvalidInputError
from keystore.tables import TRACKED, Kind

if TYPE_CHECKING:
    import sqlite3

Format = Literal["jsonl", "csv"]
Progress = Callable[[int, int | None], None]

_USED = (
    "principal_type",
    "principal_id",
    "account_id",
    "service_id",
    "amount",
    "request_id",
    "occurred_at",
)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    **{table.name: tuple(column.name for column in table.columns) for table in TRACKED},
    "UsageLog": ("usage_id", *_USED, "nonce"),
    "UsageHours": ("hour", *_USED[:4], "amount", "rows"),
    "ReceivedUsage": ("store_id", "usage_id", "nonce", *_USED, "received_at"),
    "Revocations": ("revocation_id", "api_key", "reason", "revoked_at", "received_at"),
}
"""The columns of each table that can be exported, its key first."""

HASHES = frozenset({"api_key_hash", "client_secret_hash"})
"""No secrets, as tokens have 160 random bits; but exports are mailed around: ask for them."""

_CHANGE = ("change_id", "table_name", "record_id", "operation", "occurred_at")
_BOOLEANS = {
    column.name for table in TRACKED for column in table.columns if column.kind is Kind.BOOLEAN
}
_EXECUTED = tuple(
    "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
)  # the last four: full-width, for East Asian locales
_STEP = 1_000
_Q = sql.named("export")
_SINCE = sql.named("changelog")["since"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What was exported: the state right after change ``up_to`` of this store's ChangeLog.

    Up to ``compacted_to`` the log had only the latest change of each record. A store that was put
    back to an earlier state has another ``incarnation``, and its numbers mean other changes.
    """

    rows: dict[str, int]
    up_to: int
    compacted_to: int
    with_hashes: bool
    store_id: str
    incarnation: str


def export_tables(
    file: db.StoreFile,
    out: IO[bytes],
    names: Sequence[str],
    kind: Format,
    *,
    with_hashes: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Write the rows of tables, each in the order of its ids; CSV holds one table.

    ``on_progress`` is told now and then how many rows are done, and how many there are.

    Raises:
        KeyError: a table is not in :data:`COLUMNS`.
        OSError: of ``out``.
    """
    with file.read() as conn, db.any_text(conn):
        parts = []
        for name in names:
            columns = [c for c in COLUMNS[name] if with_hashes or c not in HASHES]
            statement = _Q["rows"].format(columns=", ".join(columns), table=name)
            parts.append(_Part(name, columns, statement, {}))
        return _export(file, out, parts, kind, on_progress, with_hashes=with_hashes)


def export_changes(
    file: db.StoreFile,
    out: IO[bytes],
    after: int,
    kind: Format,
    *,
    on_progress: Progress | None = None,
) -> Summary:
    """Write the rows of the ChangeLog after change ``after``, oldest first.

    Raises:
        CompactedLogError: the log no longer tells all that changed since.
        InvalidInputError: the log has not come as far as ``after``.
        OSError: of ``out``.
    """
    with file.read() as conn, db.any_text(conn):
        horizon, head = file.info().log_horizon, changelog.head(conn)
        if after < horizon:
            raise CompactedLogError(
                f"{file.path}: the ChangeLog tells nothing of the changes up to {horizon}.",
                hint="Export the tables; the summary says from where to go on.",
            )
        if after > head:
            raise InvalidInputError(
                f"{file.path}: there is no change {after}; the ChangeLog ends at {head}.",
                hint="Was the store restored from a backup? Export the tables; go on from there.",
            )
        part = _Part("ChangeLog", _CHANGE, _SINCE, {"after": after, "limit": -1})
        return _export(file, out, [part], kind, on_progress, with_hashes=False)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    columns: Sequence[str]
    statement: str
    parameters: Mapping[str, int]

    def count(self, conn: "sqlite3.Connection") -> int:
        statement = _Q["count"].format(rows=self.statement)
        return int(conn.execute(statement, self.parameters).fetchone()[0])

    def lines(self, conn: "sqlite3.Connection", kind: Format) -> Iterator[str]:
        rows = conn.execute(self.statement, self.parameters)
        if kind == "csv":
            yield ",".join(self.columns) + "\r\n"
            for row in rows:
                values = map(_plain, self.columns, row)
                yield ",".join(map(cell, values)) + "\r\n"
        else:
            for row in rows:
                values = map(_embedded, self.columns, map(_plain, self.columns, row))
                line = {"table": self.name, **dict(zip(self.columns, values, strict=True))}
                yield json.dumps(line, ensure_ascii=False) + "\n"


def _export(
    file: db.StoreFile,
    out: IO[bytes],
    parts: Sequence[_Part],
    kind: Format,
    on_progress: Progress | None,
    *,
    with_hashes: bool,
) -> Summary:
    info, head = file.info(), changelog.head(file.conn)
    rows = {part.name: part.count(file.conn) for part in parts}
    done, total = 0, sum(rows.values())
    for part in parts:
        for line in part.lines(file.conn, kind):
            out.write(line.encode())
            done += 1
            if on_progress and done % _STEP == 0:
                on_progress(done, total)
    return Summary(rows, head, info.compacted_to, with_hashes, info.store_id, info.incarnation)


def _plain(column: str, value: Any) -> Any:
    """Return what a value means. Rows that someone has damaged come along as well as they can."""
    if column in _BOOLEANS and value in (0, 1):
        return bool(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no such number
    return value


def _embedded(column: str, value: Any) -> Any:
    """Return metadata as the JSON object that it is; what cannot be told as one stays text."""
    if column != "metadata" or not isinstance(value, str):
        return value
    try:
        found = strict_json(value)
        json.dumps(
            found, ensure_ascii=False, allow_nan=False
        ).encode()  # half a character: no UTF-8
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def cell(value: Any) -> str:
    """Quote every text, and nothing else: so that an empty text differs from none.

    Labels and e-mails come from outsiders, and a spreadsheet executes a text that starts with "=",
    quoted or not. A "'" in front makes it text; those that start with one get another, so that
    taking one away always gives the value back.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    guard = "'" if value.startswith((*_EXECUTED, "'")) else ""
    return f'"{guard}{value.replace(chr(34), chr(34) * 2)}"'
