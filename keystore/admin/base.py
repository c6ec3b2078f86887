"""What the rooms share: the open file, transactions, listings, and how a record is looked up."""

from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from keystore import clock, db, sql
from keystore.errors import NotFoundError, WrongRoleError

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager

    from sqlite_utils import Database

_Q = sql.named("store")
_HOW = {
    "plan": "`keystore plan list` shows the plans; `keystore plan add` adds one.",
    "account": "`keystore account list` shows the accounts; `keystore account add` adds one.",
    "client": "`keystore client list` shows the clients; `keystore client add` adds one.",
    "service": "`keystore service list` shows the services; `keystore service add` adds one.",
    "provider": "`keystore provider list` shows the providers; `keystore provider add` adds one.",
    "model": "`keystore model list` shows the models; `keystore model add` adds one.",
    "status": "`keystore key statuses` shows the statuses; INSERT INTO APIKeyStatuses adds one.",
}
_MOST_NAMES = 5_000
"""Of more than these none is suggested: it would take longer than a second."""


class _UnknownNameError(NotFoundError):
    """Nothing has that name.

    What is spelled nearly so is looked for when somebody asks what the error says. Among thousands
    of names that takes long, and checks elsewhere wait only 0.05 s for the lock that is held where
    the error is raised.
    """

    def __init__(self, kind: str, name: str, names: list[str]) -> None:
        super().__init__("", hint=_HOW[kind])
        del self.message
        self._kind, self._name, self._names = kind, name, names

    @cached_property
    def message(self) -> str:  # type: ignore[override]  # (it can be assigned to)
        spelled = {name.lower(): name for name in self._names}
        near = get_close_matches(self._name.lower(), spelled, n=3, cutoff=0.5)
        which = " or ".join(repr(spelled[low]) for low in near)
        asks = f" Did you mean {which}?" if near else ""
        return f"there is no {self._kind} {self._name!r}.{asks}"


class Admin(db.Closing):
    """An open store. Every public method is one transaction."""

    def __init__(self, file: db.StoreFile) -> None:
        self.file = file
        self.info = file.info()

    @cached_property
    def _db(self) -> "Database":
        # (0.2 s, where there is numpy, too; what only reads does without)
        from sqlite_utils import Database

        # recursive_triggers is the writer's own choice (ours is off), and plugins are foreign code
        return Database(self.file.conn, recursive_triggers=False, execute_plugins=False)

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

    def _query(self, name: str, **values: object) -> list[dict[str, Any]]:
        return sql.dicts(self.file.conn.execute(_Q[name], values))

    def _find(self, kind: str, name: str) -> int:
        """Return the internal id of what has a name.

        Raises:
            NotFoundError: says which names are spelled nearly so.
        """
        found = db.scalar(self.file.conn, _Q[f"{kind}_id"], name)
        if found is None:
            names = [row[0] for row in self.file.conn.execute(_Q[f"{kind}_names"])]
            raise _UnknownNameError(kind, name, names if len(names) <= _MOST_NAMES else [])
        return int(found)

    def _is_taken(self, kind: str, name: str) -> bool:
        return db.scalar(self.file.conn, _Q[f"{kind}_id"], name) is not None

    def _set(self, table: str, record_id: int, values: dict[str, object]) -> None:
        """Update a record's given columns, and its ``updated_at``."""
        if values:
            now = clock.utc_text()
            self._db.table(table).update(record_id, {**values, "updated_at": now})
