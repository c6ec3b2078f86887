"""What the rooms share: the open file, transactions, listings, and how a record is looked up."""

from collections.abc import Iterator
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
            raise NotFoundError(f"there is no {kind} {name!r}.", hint=_HOW[kind])
        return int(found)

    def _is_taken(self, kind: str, name: str) -> bool:
        return db.scalar(self.file.conn, _Q[f"{kind}_id"], name) is not None

    def _set(self, table: str, record_id: int, values: dict[str, object]) -> None:
        """Update a record's given columns, and its ``updated_at``."""
        if values:
            now = clock.utc_text()
            self._db.table(table).update(record_id, {**values, "updated_at": now})
