"""What the rooms share: the open file, transactions, listings, and how a record is looked up."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database

from keystore import clock, db, sql
from keystore.errors import NotFoundError, WrongRoleError

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager

_Q = sql.named("store")
_HOW = {
    "plan": "`keystore plan list` shows the plans; `keystore plan add` adds one.",
    "account": "`keystore account list` shows the accounts; `keystore account add` adds one.",
    "client": "`keystore client list` shows the clients; `keystore client add` adds one.",
    "service": "`keystore service list` shows the services; `keystore service add` adds one.",
    "status": "`keystore key statuses` shows the statuses; INSERT INTO APIKeyStatuses adds one.",
}
_NAMES = {
    "plan": _Q["plan_names"],
    "account": _Q["account_names"],
    "client": _Q["client_names"],
    "service": _Q["service_names"],
    "status": _Q["status_names"],
}
_MOST_NAMES = 5_000
"""Of more than these none is suggested: others may be waiting for the lock meanwhile."""


class Admin(db.Closing):
    """An open store. Every public method is one transaction."""

    def __init__(self, file: db.StoreFile) -> None:
        self.file = file
        self.info = file.info()
        # recursive_triggers is the writer's own choice (ours is off), and plugins are foreign code
        self._db = Database(file.conn, recursive_triggers=False, execute_plugins=False)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _write(self) -> "AbstractContextManager[sqlite3.Connection]":
        if not self.info.is_origin:
            raise WrongRoleError(
                f"{self.file.path} is a read-only replica of store {self.info.origin_id}.",
                hint="Make the change at its origin, then run `keystore sync` here.",
            )
        return self.file.write()

    def _query(self, name: str, **values: object) -> Iterator[dict[str, Any]]:
        return self._db.query(_Q[name], values)

    def _find(self, kind: str, name: str) -> int:
        """Return the internal id of a plan, account, client, service or status by its name."""
        found = db.scalar(self.file.conn, _Q[f"{kind}_id"], name)
        if found is None:
            near = self._near(name, _NAMES[kind])
            raise NotFoundError(f"there is no {kind} {name!r}.{near}", hint=_HOW[kind])
        return int(found)

    def _near(self, name: str, names: str) -> str:
        """Return a sentence with those of some names that are spelled nearly so, if any."""
        found = self.file.conn.execute(names).fetchmany(_MOST_NAMES + 1)
        if len(found) > _MOST_NAMES:
            return ""
        spelled = {row[0].lower(): row[0] for row in found}
        near = [spelled[low] for low in get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)]
        return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""

    def _is_taken(self, kind: str, name: str) -> bool:
        return db.scalar(self.file.conn, _Q[f"{kind}_id"], name) is not None

    def _set(self, table: str, record_id: int, values: dict[str, object]) -> None:
        """Update a record's given columns, and its ``updated_at``."""
        if values:
            now = clock.utc_text()
            self._db.table(table).update(record_id, {**values, "updated_at": now})
