"""The other process of ``test_never_stale``: does what it is told to a store, and says what holds.

Each line of its input is a JSON list of orders: SQL, or a word of :data:`ORDERS` and a path. Each
line of its output is what the rows say then, found by plain SQL.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keystore import backup, db

# What may pass, by the rows alone, and what is said of it.
PASSING = """
SELECT k.api_key_hash, k.api_key, k.label, a.email, p.name, p.rate_limit, p.rate_window_seconds,
       coalesce(p.rate_burst, p.rate_limit),
       (SELECT group_concat(v.name)
        FROM APIKeyServiceQuotas AS q JOIN Services AS v ON v.service_id = q.service_id
        WHERE q.api_key_id = k.api_key_id AND v.is_active)
FROM APIKeys AS k
JOIN APIKeyStatuses AS s ON s.name = k.status
JOIN Accounts AS a ON a.account_id = k.account_id
JOIN Plans AS p ON p.plan_id = a.plan_id
WHERE k.is_active AND s.allows_access AND s.is_active AND a.is_active
  AND k.api_key NOT IN (SELECT api_key FROM Revocations)
  AND (k.expires_at IS NULL OR k.expires_at > CURRENT_TIMESTAMP)
"""


class Writer:
    """One connection to a store that follows the path when the file is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self.conn = db.connect(self.path)
        self.conn.execute("PRAGMA synchronous = OFF")
        self.conn.execute("PRAGMA foreign_keys = ON")

    def do(self, order: str) -> None:
        word, _, rest = order.partition(" ")
        if word in ORDERS:
            ORDERS[word](self, rest)
        else:
            self.conn.execute(order).fetchall()

    def save(self, path: str) -> None:
        """Make a backup with SQLite's own means."""
        target = db.connect(Path(path), create=True)
        self.conn.backup(target)
        target.close()

    def load(self, path: str) -> None:
        """Write a backup into the file, as the shell's ``.restore`` does."""
        source = db.connect(Path(path))
        source.backup(self.conn)
        source.close()

    def shell(self, statement: str) -> None:
        """Have the ``sqlite3`` shell run a statement."""
        subprocess.run(["sqlite3", str(self.path), statement], check=True, capture_output=True)

    def restore(self, path: str) -> None:
        """Move the store away and put a backup in its place: ``keystore restore``."""
        self._move_away()
        backup.restore(path, self.path)
        self._open()

    def rename(self, statement: str) -> None:
        """Move the store away, and a copy of it that was changed into its place."""
        draft = Path(f"{self.path}.draft")
        self.save(str(draft))
        copy = db.connect(draft)
        copy.execute("PRAGMA journal_mode = WAL").fetchall()
        copy.execute(statement)
        copy.close()
        self._move_away()
        draft.rename(self.path)
        self._open()

    def _move_away(self) -> None:
        self.conn.close()
        for suffix in ("", "-wal", "-shm"):
            beside = Path(f"{self.path}{suffix}")
            if beside.exists():
                beside.rename(f"{self.path}.away{suffix}")

    def passing(self) -> list[list[Any]]:
        return [list(row) for row in self.conn.execute(PASSING)]


ORDERS: dict[str, Callable[[Writer, str], None]] = {
    "SAVE": Writer.save,
    "LOAD": Writer.load,
    "SHELL": Writer.shell,
    "RESTORE": Writer.restore,
    "RENAME": Writer.rename,
}

if __name__ == "__main__":
    writer = Writer(Path(sys.argv[1]))
    for line in sys.stdin:
        for order in json.loads(line):
            writer.do(order)
        print(json.dumps(writer.passing()), flush=True)
