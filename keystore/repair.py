"""Mends what the doctor finds and what can be mended without a guess, in one transaction.

Rows are never invented and never dropped: orphans and unreadable text are the operator's to decide.
Where triggers were missing, changes may be missing from the ChangeLog; the next push to each target
carries everything.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from keystore import changelog, db, migrate, sql
from keystore.db import StoreFile
from keystore.errors import DamagedStoreError
from keystore.tables import BY_NAME, LOGS, TRACKED

if TYPE_CHECKING:
    import sqlite3

_Q = sql.named("doctor")


def mend(file: StoreFile) -> list[str]:
    """Mend a store and say what was done, a sentence each; nothing to do is an empty list.

    Raises:
        KeystoreError: the store could not be written; nothing was changed.
    """
    with file.write() as conn:
        role = db.scalar(conn, _Q["role"])
        if role not in {"origin", "replica"}:
            raise DamagedStoreError(
                f"{file.path}: StoreInfo does not say what this store is.", hint="Restore a backup."
            )
        is_origin = role == "origin"
        done = [*_replaying(conn), *_schema(conn, is_origin=is_origin), *_sequences(conn)]
        if is_origin:
            done += [*_contradictions(conn), *_events(conn)]
    if file.path.stat().st_mode & 0o077:
        file.path.chmod(0o600)
        done.append("Took the rights of others to the file away.")
    with file.errors():
        if db.scalar(file.conn, _Q["journal_mode"]) != "wal":
            migrate.use_wal(file.conn)
            if db.scalar(file.conn, _Q["journal_mode"]) == "wal":
                done.append("Set the journal mode to WAL.")
    return done


def _replaying(conn: "sqlite3.Connection") -> Iterator[str]:
    if db.scalar(conn, _Q["replaying"]):
        conn.execute(_Q["end_replaying"])
        yield "Cleared StoreInfo.replaying."


def _schema(conn: "sqlite3.Connection", *, is_origin: bool) -> Iterator[str]:
    have, want = migrate.schema_of(conn), migrate.expected_schema(is_replica=not is_origin)
    touched = set()
    for (kind, name), text in want.items():
        if kind not in {"trigger", "index"} or have.get((kind, name)) == text:
            continue
        if (kind, name) in have:
            conn.execute(f'DROP {kind} "{name}"')
        conn.execute(text)
        touched.add(text.partition(" ON ")[2].split()[0] if kind == "trigger" else "")
        yield f"Made the {kind} {name} anew."
    if is_origin and touched & set(BY_NAME):
        changelog.distrust(conn)
        yield "The next push to each target carries everything."


def _sequences(conn: "sqlite3.Connection") -> Iterator[str]:
    for table, column in (*((table.name, table.id) for table in TRACKED), *LOGS):
        sequence, highest = conn.execute(_Q["sequence"].format(table=table, id=column)).fetchone()
        if not isinstance(sequence, int) or sequence < highest:
            conn.execute(_Q["forget_sequence"], (table,))
            conn.execute(_Q["set_sequence"], (table, highest))
            yield f"Set the sequence of {table} to {highest}."


def _contradictions(conn: "sqlite3.Connection") -> Iterator[str]:
    count = conn.execute(_Q["close"]).rowcount
    if count:
        yield f"Closed {count} keys that were active though their status allows no access."


def _events(conn: "sqlite3.Connection") -> Iterator[str]:
    """Make text of the timeline UTF-8 that is not; nobody can correct it in another way."""
    table = BY_NAME["APIKeyStatusEvents"]
    while (event_id := changelog.undecodable(conn, table)) is not None:
        with db.any_text(conn):
            texts = conn.execute(_Q["event_texts"], (event_id,)).fetchone()
        conn.execute(_Q["begin_replaying"])
        conn.execute(_Q["set_event_texts"], (*texts, event_id))
        conn.execute(_Q["end_replaying"])
        conn.execute(_Q["log_event"], (event_id,))
        yield f"Replaced what is not UTF-8 in event {event_id} of the timeline."
