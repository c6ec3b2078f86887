"""Counts usage in memory and writes it to the UsageLog in one transaction per flush.

What a crash can lose is what was counted since the last flush: at most ``max_pending`` checks, and
none that is older than ``max_seconds``. With ``max_pending=1`` nothing is buffered: each check's
usage is on disk before the check is answered, and a check whose usage cannot be written is not
answered with yes. With more, a store that cannot be written (locked, full) does not stop the
checks; their usage stays counted past the bound until it can. What is flushed is never lost and
never written twice.
"""

import time
from collections.abc import Sequence

from keystore import sql
from keystore.db import StoreFile
from keystore.edge.guard import ClockGuard

_Q = sql.named("edge")
_Row = tuple[int, int, int]
"""Key id, account id, amount."""


class UsageBuffer:
    """Usage by key since the last flush. The caller serialises access."""

    def __init__(
        self, file: StoreFile, guard: ClockGuard, *, max_pending: int, max_seconds: float
    ) -> None:
        self._file, self._guard = file, guard
        self._max_pending = max_pending
        self._max_seconds = max_seconds
        self._amounts: dict[tuple[int, int], int] = {}
        self._due_at = 0.0
        self._has_failed = False
        self.pending = 0

    def add(self, api_key_id: int, account_id: int, amount: int) -> None:
        """Count ``amount`` units for a key.

        Raises:
            KeystoreError: nothing is buffered (``max_pending=1``) and the store cannot be written.
        """
        if self._max_pending <= 1:
            self._write([(api_key_id, account_id, amount)])
            return
        if not self.pending:
            self._due_at = time.monotonic() + self._max_seconds
        principal = (api_key_id, account_id)
        self._amounts[principal] = self._amounts.get(principal, 0) + amount
        self.pending += 1

    @property
    def is_due(self) -> bool:
        """Whether a bound is reached; after a failed flush, whether it is time to try again."""
        if not self.pending:
            return False
        is_full = self.pending >= self._max_pending and not self._has_failed
        return is_full or time.monotonic() >= self._due_at

    def move_to(self, file: StoreFile) -> None:
        """Write to another file from now on."""
        self._file = file

    def flush(self) -> int:
        """Write everything counted so far; return how many checks that were.

        On any error nothing is written and everything stays counted, to be tried again.
        """
        flushed = self.pending
        if flushed:
            self._has_failed, self._due_at = True, time.monotonic() + self._max_seconds
            self._write([(*principal, amount) for principal, amount in self._amounts.items()])
            self._has_failed = False
            self._amounts.clear()
            self.pending = 0
        return flushed

    def _write(self, rows: Sequence[_Row]) -> None:
        with self._file.write() as conn:
            conn.executemany(_Q["insert_usage"], rows)
            self._guard.mark(conn)
