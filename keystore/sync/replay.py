"""Applies a pull to a replica: all of it, in one transaction with the cursor, or nothing.

The pages are staged in a scratch database first, so that the write lock is not held while a network
is waited for. Then, in one transaction, they replace what the key tables hold of them.

Foreign keys are off on the connection that replays. The cut is the origin's state as it is, which
may hold orphans that another client left there; refusing them would lose the changes beside them.
A validator denies a key without an account.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from keystore import clock, migrate, sql
from keystore.db import StoreFile, scalar
from keystore.errors import ConstraintError, IncompleteStateError, StaleTargetError
from keystore.failpoint import reached
from keystore.sync.progress import OnProgress, nobody
from keystore.sync.protocols import Pull
from keystore.sync.staging import Staging, staged
from keystore.tables import TRACKED, Table

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("sync")


def replay(file: StoreFile, pull: Pull, target_id: str, on_progress: OnProgress = nobody) -> int:
    """Bring the replica to the state of ``pull``; return how many records were written or deleted.

    A cut at the very change that the replica has, but as of an earlier time, says nothing new:
    what is held stays, how long it may be used included.

    Raises:
        StaleTargetError: the cut is older than what the replica has.
        IncompleteStateError: the pages do not add up to the announced counts, or contradict
            each other or the schema.
    """
    if _is_older(file, pull):
        raise StaleTargetError(
            f"the target holds the origin's change {pull.as_of_change}, "
            f"this replica has {file.info().as_of_change} already.",
            hint="Push from the origin to that target first; nothing was changed here.",
        )
    with _rows_fit(file), staged(file.conn) as staging:
        conn, written = file.conn, 0
        _stage(file, staging, pull, on_progress)
        reached("pull.staged")
        with file.write():
            if _is_held(file, pull):
                _acknowledge("acknowledge_same", conn, pull, target_id)
            elif not _is_older(file, pull):  # unless another process has pulled meanwhile
                conn.execute(_Q["begin_replay"])
                if pull.is_everything:
                    staging.reduce_to_differences()
                written = staging.apply()
                for table in TRACKED:
                    _refuse_other_count(pull, table, scalar(conn, _fill("count_records", table)))
                _finish(conn, pull, target_id)
        reached("pull.applied")
    return written


def fill_draft(
    file: StoreFile, pull: Pull, target_id: str, on_progress: OnProgress = nobody
) -> int:
    """Fill the empty draft of a replica with a whole cut; return how many records that were.

    Nobody else knows the file yet. So the rows go straight into their tables, and the triggers,
    which have nobody to tell, are made afterwards. And there is no state to go back to: with the
    journal in memory each page is written to disk once, not to the WAL first. A commit waits for
    the disk in either mode.

    Raises:
        IncompleteStateError: as :func:`replay`.
    """
    with _rows_fit(file):
        written = 0
        file.conn.execute("PRAGMA journal_mode = MEMORY")
        with file.write() as conn:
            for page in pull.pages:
                conn.executemany(_fill("insert_record", page.table), page.rows)
                written += len(page.rows)
                on_progress(written, _expected(pull))
            for table in TRACKED:
                _refuse_other_count(pull, table, scalar(conn, _fill("count_records", table)))
            migrate.add_triggers(conn, is_replica=True)
            _finish(conn, pull, target_id)
        migrate.use_wal(file.conn)
    return written


def adopt_draft(file: StoreFile, pull: Pull, target_id: str) -> int:
    """Make a draft that the target has filled a replica; return how many records it holds.

    Raises:
        IncompleteStateError: as :func:`replay`.
    """
    with file.errors():
        file.conn.execute("PRAGMA journal_mode = MEMORY")  # see fill_draft
        with file.write() as conn:
            counts = [scalar(conn, _fill("count_records", table)) for table in TRACKED]
            for table, count in zip(TRACKED, counts, strict=True):
                _refuse_other_count(pull, table, count)
            migrate.take_identity(conn)
            _finish(conn, pull, target_id)
        migrate.use_wal(file.conn)
    return sum(counts)


def _is_older(file: StoreFile, pull: Pull) -> bool:
    held = file.info().as_of_change
    return held is not None and pull.as_of_change < held


def _is_held(file: StoreFile, pull: Pull) -> bool:
    """Whether the replica has these rows as of a later time."""
    held = file.info()
    is_other_part = pull.scope is not None and pull.is_everything
    return (
        not is_other_part
        and held.as_of_change == pull.as_of_change
        and held.origin_incarnation == pull.origin.incarnation
        and (held.as_of_at or "") > pull.as_of_at
    )


@contextmanager
def _rows_fit(file: StoreFile) -> Iterator[None]:
    """Turn foreign keys off, and say of rows that break another rule where they come from."""
    with file.errors():
        file.conn.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction
        try:
            yield
        except ConstraintError as error:
            raise IncompleteStateError(
                f"the target's rows do not fit together: {error.message}",
                hint="Nothing was changed here; run `keystore doctor` at the origin.",
            ) from error
        finally:
            file.conn.execute("PRAGMA foreign_keys = ON")


def _finish(conn: "sqlite3.Connection", pull: Pull, target_id: str) -> None:
    """Write down what the rows are as of, in the transaction that brings them."""
    conn.execute(
        _Q["end_replay"],
        {
            "token_prefix": pull.origin.token_prefix,
            "as_of_change": pull.as_of_change,
            "as_of_at": pull.as_of_at,
            "origin_incarnation": pull.origin.incarnation,
            "valid_until": pull.valid_until,
            "max_offline_seconds": pull.max_offline_seconds,
            "now": clock.utc_text(),
        },
    )
    _acknowledge("acknowledge_pull", conn, pull, target_id)
    conn.execute(_Q["note_overtaken"], {"target_id": target_id})


def _acknowledge(name: str, conn: "sqlite3.Connection", pull: Pull, target_id: str) -> None:
    conn.execute(_Q[name], {"source_state": pull.source_state, "target_id": target_id})


def _expected(pull: Pull) -> int | None:
    return sum(pull.counts.values()) if pull.is_everything and pull.counts else None


def _refuse_other_count(pull: Pull, table: Table, found: int) -> None:
    """Notice rows that got lost on the way, at the target, or here."""
    announced = found if pull.counts is None else pull.counts.get(table.name)
    if found != announced:
        raise IncompleteStateError(
            f"the origin has {announced} {table.name}, and from the target there would be {found}.",
            hint="Nothing was changed here; try again.",
        )


def _stage(file: StoreFile, staging: Staging, pull: Pull, on_progress: OnProgress) -> None:
    count = 0
    for page in pull.pages:
        with file.read():
            staging.add(page)
        count += len(page.rows) + len(page.deleted)
        on_progress(count, _expected(pull))
        reached("pull.page")


@cache
def _fill(name: str, table: Table) -> str:
    return _Q[name].format(
        table=table.name, columns=table.column_list, marks=", ".join("?" * len(table.columns))
    )
