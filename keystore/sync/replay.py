"""Applies a pull to a replica: all of it, in one transaction with the cursor, or nothing.

The pages are staged in temporary tables first, so that the write lock is not held while a network
is waited for. Then, in one transaction: the incoming records are deleted from the key tables, and
inserted as they are now. Deleting first, all of them, lets two records swap a unique value.

Foreign keys are off on the connection that replays. The cut is the origin's state as it is, which
may hold orphans that another client left there; refusing them would lose the changes beside them.
A validator denies a key without an account.
"""

from keystore import sql
from keystore.db import StoreFile, scalar
from keystore.errors import ConstraintError, IncompleteStateError, StaleTargetError
from keystore.sync.protocols import Pull
from keystore.tables import TRACKED, Table

_Q = sql.named("sync")


def replay(file: StoreFile, pull: Pull, target_id: str) -> int:
    """Bring the replica to the state of ``pull``; return how many records were written or deleted.

    Raises:
        StaleTargetError: the cut is older than what the replica has.
        IncompleteStateError: the pages do not add up to the announced counts, or contradict
            each other or the schema.
    """
    conn = file.conn
    _refuse_older(file, pull)
    with file.errors():
        conn.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction
        try:
            _stage(file, pull)
            with file.write():
                _refuse_older(file, pull)  # again: another process may have pulled meanwhile
                conn.execute(_Q["begin_replay"])
                written = _apply(file, pull)
                conn.execute(
                    _Q["end_replay"],
                    {
                        "token_prefix": pull.origin.token_prefix,
                        "as_of_change": pull.as_of_change,
                        "as_of_at": pull.as_of_at,
                    },
                )
                conn.execute(
                    _Q["acknowledge_pull"],
                    {
                        "source_state": pull.source_state,
                        "target_id": target_id,
                    },
                )
            for table in TRACKED:
                conn.execute(_fill("clear_incoming", table))
            conn.execute(_Q["clear_incoming_deleted"])
        except ConstraintError as error:
            raise IncompleteStateError(
                f"the target's rows do not fit together: {error.message}",
                hint="Nothing was changed here; run `keystore doctor` at the origin.",
            ) from error
        finally:
            conn.execute("PRAGMA foreign_keys = ON")
    return written


def _refuse_older(file: StoreFile, pull: Pull) -> None:
    held = file.info().as_of_change
    if held is not None and pull.as_of_change < held:
        raise StaleTargetError(
            f"the target holds the origin's change {pull.as_of_change}, "
            f"this replica has {held} already.",
            hint="Push from the origin to that target first; nothing was changed here.",
        )


def _stage(file: StoreFile, pull: Pull) -> None:
    conn = file.conn
    conn.execute(_Q["create_incoming_deleted"])
    conn.execute(_Q["clear_incoming_deleted"])
    for table in TRACKED:
        conn.execute(_fill("create_incoming", table))
        conn.execute(_fill("clear_incoming", table))
    for page in pull.pages:
        with file.read():  # one transaction a page: a temporary table pays per commit, too
            conn.executemany(_fill("insert_incoming", page.table), page.rows)
            gone = ((page.table.name, record_id) for record_id in page.deleted)
            conn.executemany(_Q["insert_incoming_deleted"], gone)


def _apply(file: StoreFile, pull: Pull) -> int:
    conn, written = file.conn, 0
    if pull.counts is not None:
        for table in TRACKED:
            staged = scalar(conn, _fill("count_incoming", table))
            if staged != pull.counts.get(table.name):
                raise IncompleteStateError(
                    f"the target announced {pull.counts.get(table.name)} {table.name} "
                    f"and sent {staged}.",
                    hint="Nothing was changed here; try again.",
                )
            # A record that is the same already is left alone: no log row, no eviction.
            written += conn.execute(_fill("delete_absent", table)).rowcount
            conn.execute(_fill("skip_unchanged", table))
    for table in TRACKED:
        written += conn.execute(_fill("delete_deleted", table)).rowcount
        conn.execute(_fill("delete_replaced", table))
    for table in TRACKED:
        written += conn.execute(_fill("insert_replaced", table)).rowcount
    return written


def _fill(name: str, table: Table) -> str:
    return _Q[name].format(
        table=table.name,
        id=table.id,
        columns=table.column_list,
        marks=", ".join("?" * len(table.columns)),
    )
