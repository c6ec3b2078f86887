"""Moves a store whose keys have their UUID as primary key to a new store with both kinds of id.

The old file is attached read-only: opened for writing, the last one to close it would checkpoint
its WAL into it. Its rows are checked while they are copied to a draft, in one transaction, so that
one snapshot of the old store is moved even while others write to it. What cannot be carried is
told, or set aside in a report, before anything stands at the new store's path.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from keystore import clock, db, migrate, sql
from keystore.errors import (
    InvalidInputError,
    NotAKeystoreError,
    StoreExistsError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("legacy")

Row = tuple[Any, ...]
Progress = Callable[[int, int], None]  # called with the number of rows read, and of all

_CHUNK, _NAMED = 5_000, 3  # rows at a time; rows that an error names
_STOPPING = {"status", "expires_at", "expired_at", "revoked_at", "deleted_at", "disabled_at"}
_UUID = re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_TEXT = re.compile("[^\0\ud800-\udfff]+")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?"
    r" ?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
# Smaller numbers are no plausible times: 20240131 would become a day in 1970.
_FIRST_SECOND, _LAST_SECOND = 10**8, 32_503_680_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did; ``read`` is ``carried`` plus ``set_aside``, table by table."""

    path: str
    store_id: str
    read: dict[str, int]
    carried: dict[str, int]
    set_aside: dict[str, int]
    reasons: dict[str, int]
    """Rows set aside: by ``orphaned``, ``invalid`` and ``duplicate``."""
    columns_not_carried: dict[str, list[str]]
    tables_not_carried: list[str]
    report: str | None = None


class _UnfitError(Exception):
    """A row cannot be carried."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Table:
    """How a table is moved.

    ``read`` makes the values for ``insert``: the two ``unique`` ones, then the parent's id.
    """

    name: str
    unique: tuple[str, str]
    others: tuple[str, ...]
    read: "Callable[[_Columns, Row], Row]"
    rows: str
    taken: str
    insert: str
    parent: tuple[str, str, str] | None = None  # table, column here, and the statement for orphans


@dataclass(slots=True)
class _Aside:
    """The rows that cannot be carried: counted, the first ones named, all written to ``file``."""

    file: TextIO | None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    ids: dict[str, set[int]] = field(default_factory=dict)

    def add(self, table: str, row_id: Any, row: dict[str, Any], kind: str, reason: str) -> None:
        self.counts[table, kind] += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{table} {_shown(row_id)}: {reason}")
        if isinstance(row_id, int) and table != "APIKeys":  # whose integer ids are new
            self.ids.setdefault(table, set()).add(row_id)
        if self.file is not None:
            line = {"table": table, "row": row, "reason": reason}
            self.file.write(json.dumps(line, default=lambda blob: {"hex": blob.hex()}) + "\n")

    def total(self, place: int) -> Counter[str]:
        """Return the counts by table (0) or by kind (1)."""
        found: Counter[str] = Counter()
        for key, number in self.counts.items():
            found[key[place]] += number
        return found


class _Columns:
    """Finds columns by name, in whatever order and spelling the old table has them."""

    def __init__(self, table: _Table, names: list[str], now: str) -> None:
        self.now = now
        self._at = {name.lower(): number for number, name in enumerate(names)}
        required = [*table.unique, *([table.parent[1]] if table.parent else [])]
        self.missing = [name for name in required if name not in self._at]
        known = {*required, *table.others, "created_at", "updated_at"}
        self.extra = [name for name in names if name.lower() not in known]

    def get(self, row: Row, name: str, default: Any = None) -> Any:
        at = self._at.get(name)
        return default if at is None else row[at]

    def as_dict(self, row: Row) -> dict[str, Any]:
        return {name: row[at] for name, at in self._at.items()}

    def integer(self, row: Row, name: str, kind: str = "invalid") -> int:
        value = self.get(row, name)
        if not isinstance(value, int) or value <= 0:
            raise _UnfitError(kind, f"{name} {_shown(value)} is not a positive integer")
        return value

    def text(self, row: Row, name: str, pattern: re.Pattern[str], what: str) -> str:
        value = self.get(row, name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise _UnfitError("invalid", f"{name} {_shown(value)} is not {what}")
        return value

    def is_active(self, row: Row) -> int:
        value = self.get(row, "is_active", 1)
        if value not in {0, 1}:
            raise _UnfitError("invalid", f"is_active {_shown(value)} is neither 0 nor 1")
        return int(value)

    def times(self, row: Row) -> tuple[str, str]:
        """Return ``created_at`` and ``updated_at``; one stands in for the other, now for both."""
        created = _time("created_at", self.get(row, "created_at"))
        updated = _time("updated_at", self.get(row, "updated_at"))
        return created or updated or self.now, updated or created or self.now


def _plan(columns: _Columns, row: Row) -> Row:
    name = columns.text(row, "name", _TEXT, "a text that can be kept")
    return columns.integer(row, "plan_id"), name, *columns.times(row)


def _account(columns: _Columns, row: Row) -> Row:
    email = columns.text(row, "email", _TEXT, "a text that can be kept")
    plan_id = columns.integer(row, "plan_id", "orphaned")
    is_active = columns.is_active(row)
    return columns.integer(row, "account_id"), email, plan_id, is_active, *columns.times(row)


def _key(columns: _Columns, row: Row) -> Row:
    api_key = columns.text(row, "api_key_id", _UUID, "a UUID").lower()
    api_key_hash = columns.text(row, "api_key_hash", _HASH, "a SHA-256 in hex").lower()
    account_id = columns.integer(row, "account_id", "orphaned")
    is_active = columns.is_active(row)
    status = "assigned" if is_active else "revoked"
    return api_key, api_key_hash, account_id, is_active, status, *columns.times(row)


_TABLES = (
    _Table(
        *("Plans", ("plan_id", "name"), (), _plan),
        *(_Q["old_plans"], _Q["taken_plans"], _Q["insert_plan"]),
    ),
    _Table(
        *("Accounts", ("account_id", "email"), ("is_active",), _account),
        *(_Q["old_accounts"], _Q["taken_accounts"], _Q["insert_account"]),
        parent=("Plans", "plan_id", _Q["missing_plans"]),
    ),
    _Table(
        *("APIKeys", ("api_key_id", "api_key_hash"), ("is_active",), _key),
        *(_Q["old_keys"], _Q["taken_keys"], _Q["insert_key"]),
        parent=("Accounts", "account_id", _Q["missing_accounts"]),
    ),
)


def import_legacy(
    old: Path, new: Path, *, report: Path | None = None, progress: Progress | None = None
) -> Imported:
    """Move the store at ``old`` to a new origin store at ``new``; ``old`` stays as it is.

    With ``report``, rows that cannot be carried are written to that file (mode 0600, JSON Lines);
    without, there must be none.

    Raises:
        StoreNotFoundError: there is no ``old``, or no folder for what is to be made.
        StoreExistsError: something is at ``new`` or ``report``.
        NotAKeystoreError: ``old`` is no SQLite file, or lacks a table or a column.
        InvalidInputError: ``old`` has the new schema already, or rows that cannot be carried.
    """
    if not old.is_file():
        raise StoreNotFoundError(f"{old}: no such file.", hint="Name the store to move.")
    draft = migrate.draft_path(new)
    try:
        with nullcontext() if report is None else _new_report(report) as notes:
            with migrate.create_origin(draft) as file:
                # the same connection under the names that errors should tell
                source, target = db.StoreFile(old, file.conn), db.StoreFile(new, file.conn)
                done = _move(source, target, notes, progress)
            if notes is not None:
                notes.flush()
                os.fsync(notes.fileno())
            migrate.publish(draft, new)
    finally:
        db.remove_files(draft)
    return replace(done, report=None if report is None else str(report))


@contextmanager
def _new_report(path: Path) -> Iterator[TextIO]:
    """Make the file for rows set aside; take it away again when the import fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StoreExistsError(f"{path}: already exists.", hint="Choose another path.") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield file
    except BaseException:
        path.unlink()
        raise


def _move(
    old: db.StoreFile, new: db.StoreFile, notes: TextIO | None, progress: Progress | None
) -> Imported:
    conn = old.conn
    # A text that is not UTF-8 makes its row invalid; it must not stop the reading.
    conn.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    with old.errors():
        conn.execute(_Q["attach"], (f"{old.path.absolute().as_uri()}?mode=ro",))
    aside = _Aside(notes)
    read: Counter[str] = Counter()
    extra: dict[str, list[str]] = {}
    with new.write():
        with old.errors():
            others = _refuse_others(old)
            total = db.scalar(conn, _Q["old_total"])
            now = clock.utc_text()
            for table in _TABLES:
                cursor = conn.execute(table.rows)
                columns = _Columns(table, [item[0] for item in cursor.description], now)
                _refuse_columns(old.path, table, columns)
                if columns.extra:
                    extra[table.name] = columns.extra
                while rows := cursor.fetchmany(_CHUNK):
                    read[table.name] += len(rows)
                    fit = _fit(conn, table, columns, rows, aside)
                    with new.errors():
                        conn.executemany(table.insert, fit)
                    if progress is not None:
                        progress(read.total(), total)
        if aside.counts and notes is None:
            raise _refused(old.path, aside)
        _reserve_ids(conn, aside)
    set_aside = {table.name: aside.total(0)[table.name] for table in _TABLES}
    return Imported(
        path=str(new.path),
        store_id=new.info().store_id,
        read={name: read[name] for name in set_aside},
        carried={name: read[name] - number for name, number in set_aside.items()},
        set_aside=set_aside,
        reasons=dict(aside.total(1)),
        columns_not_carried=extra,
        tables_not_carried=others,
    )


def _refuse_others(old: db.StoreFile) -> list[str]:
    """Return the tables that are not carried; refuse a file that is no old store."""
    if db.scalar(old.conn, _Q["application_id"]) == db.APPLICATION_ID:
        hint = f"`keystore migrate --db {old.path}` brings an older one up to date."
        raise InvalidInputError(f"{old.path}: is a keystore already.", hint=hint)
    known = {table.name.lower(): table.name for table in _TABLES}
    tables = {name.lower(): name for (name,) in old.conn.execute(_Q["old_tables"])}
    missing = [name for key, name in known.items() if key not in tables]
    if missing:
        hint = "Name a store with the tables Plans, Accounts and APIKeys."
        raise NotAKeystoreError(f"{old.path}: has no table {', '.join(missing)}.", hint=hint)
    return [name for key, name in tables.items() if key not in known]


def _refuse_columns(path: Path, table: _Table, columns: _Columns) -> None:
    if columns.missing:
        what = f"{path}: {table.name} has no column {', '.join(columns.missing)}."
        raise NotAKeystoreError(what, hint="docs/legacy.md lists the columns that it must have.")
    if table.name == "APIKeys" and "api_key" in map(str.lower, columns.extra):
        hint = "Only a store whose api_key_id is the UUID can be moved."
        raise InvalidInputError(f"{path}: its keys have both kinds of id already.", hint=hint)
    if stops := sorted({*map(str.lower, columns.extra)} & _STOPPING):  # they would pass again
        what = f"{path}: {table.name} has {', '.join(stops)}, which may stop keys."
        raise InvalidInputError(what, hint="Write what it means into is_active, then drop it.")


def _fit(
    conn: "sqlite3.Connection", table: _Table, columns: _Columns, rows: list[Row], aside: _Aside
) -> list[Row]:
    """Return the values of the rows that can be carried; set the others aside."""
    pairs: list[tuple[Row, Row]] = []

    def drop(row: Row, kind: str, reason: str) -> None:
        row_id = columns.get(row, table.unique[0])
        aside.add(table.name, row_id, columns.as_dict(row), kind, reason)

    for row in rows:
        try:
            pairs.append((row, table.read(columns, row)))
        except _UnfitError as error:
            drop(row, error.kind, str(error))
    if table.parent is not None:
        name, column, missing = table.parent
        gone = {at for (at,) in conn.execute(missing, (_json_column(pairs, 2),))}
        for at in sorted(gone):
            row, values = pairs[at]
            why = "not carried either" if values[2] in aside.ids.get(name, ()) else "not there"
            drop(row, "orphaned", f"its {column} {values[2]} is {why}")
        pairs = [pair for at, pair in enumerate(pairs) if at not in gone]
    unique = (_json_column(pairs, 0), _json_column(pairs, 1))
    taken: dict[int, str] = dict(conn.execute(table.taken, unique).fetchall())
    seen = set()
    fit = []
    for at, (row, values) in enumerate(pairs):
        # bytes.lower() folds ASCII only, as NOCASE does
        second = values[1].encode().lower() if table.name == "Accounts" else values[1]
        identities = list(zip(table.unique, (values[0], second), strict=True))
        name = taken.get(at) or next((item[0] for item in identities if item in seen), "")
        if name:
            drop(row, "duplicate", f"an earlier row has {name} {_shown(columns.get(row, name))}")
        else:
            seen.update(identities)
            fit.append(values)
    return fit


def _json_column(pairs: list[tuple[Row, Row]], place: int) -> str:
    return json.dumps([values[place] for _, values in pairs])


def _reserve_ids(conn: "sqlite3.Connection", aside: _Aside) -> None:
    """Keep the ids of what was set aside from being given to somebody else."""
    for name, ids in aside.ids.items():
        highest = max(*ids, db.scalar(conn, _Q["sequence"], name) or 0)
        conn.execute(_Q["forget_sequence"], (name,))
        conn.execute(_Q["set_sequence"], (name, highest))


def _refused(path: Path, aside: _Aside) -> InvalidInputError:
    counts = ", ".join(
        f"{number} {kind} {'row' if number == 1 else 'rows'} of {table}"
        for (table, kind), number in aside.counts.items()
    )
    more = "; ..." if aside.counts.total() > len(aside.first) else ""
    hint = "Nothing was written; mend them, or add --orphans set-aside --report FILE."
    return InvalidInputError(f"{path}: {counts}: {'; '.join(aside.first)}{more}.", hint=hint)


def _time(name: str, value: Any) -> str | None:
    """Read a time as ``YYYY-MM-DD HH:MM:SS`` or ISO 8601 (UTC if it names no zone) or Unix seconds.

    Fractions of a second are cut off: the store has whole seconds.
    """
    if value is None:
        return None
    with suppress(ValueError, OverflowError):  # no such day
        if isinstance(value, (int, float)) and _FIRST_SECOND <= value < _LAST_SECOND:
            return clock.utc_text(value)
        if isinstance(value, str) and _TIME.fullmatch(value):
            moment = datetime.fromisoformat(value.replace(" ", "T", 1).replace(" ", ""))
            if moment.tzinfo is not None:
                moment = moment.astimezone(UTC).replace(tzinfo=None)
            if 1000 <= moment.year < 3000:
                return moment.isoformat(" ", "seconds")
    raise _UnfitError("invalid", f"{name} {_shown(value)} is not a time that can be read")


def _shown(value: Any) -> str:
    text = "NULL" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
