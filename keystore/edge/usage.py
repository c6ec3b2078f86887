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
from math import inf

from keystore import sql
from keystore.db import StoreFile
from keystore.edge.guard import ClockGuard

_Q = sql.named("edge")
_Row = tuple[int, int, int]
"""Key id, account id, amount."""


class UsageBuffer:
    """Usage by key since the last flush. The caller serialises access, :attr:`uses` apart."""

    def __init__(
        self, file: StoreFile, guard: ClockGuard, *, max_pending: int, max_seconds: float
    ) -> None:
        self._file, self._guard = file, guard
        self._max_pending = max_pending
        self._max_seconds = max_seconds
        self._amounts: dict[tuple[int, int], int] = {}
        self._counted = 0
        self._due_at: float | None = None
        self._has_failed = False
        self.uses: list[tuple[int, int]] = []
        """Key id and account id of checks that cost one unit each. Any thread may append without
        a lock, and answers its check if the list is shorter than :attr:`room` then."""

    @property
    def is_buffered(self) -> bool:
        """Whether a check may be answered before its usage is on disk."""
        return self._max_pending > 1

    @property
    def pending(self) -> int:
        """How many checks are counted and not flushed."""
        return self._counted + len(self.uses)

    @property
    def room(self) -> int:
        """How long :attr:`uses` may become before it is to be looked at."""
        return 0 if self._has_failed else self._max_pending - self._counted

    @property
    def due_at(self) -> float:
        """When the oldest usage has waited long enough, by the monotonic clock."""
        if not self.pending:
            return inf
        if self._due_at is None:
            self._due_at = time.monotonic() + self._max_seconds
        return self._due_at

    def add(self, api_key_id: int, account_id: int, amount: int) -> None:
        """Count ``amount`` units for a key.

        Raises:
            KeystoreError: nothing is buffered (``max_pending=1``) and the store cannot be written.
        """
        if not self.is_buffered:
            self._write([(api_key_id, account_id, amount)])
            return
        principal = (api_key_id, account_id)
        self._amounts[principal] = self._amounts.get(principal, 0) + amount
        self._counted += 1

    @property
    def is_due(self) -> bool:
        """Whether a bound is reached; after a failed flush, whether it is time to try again."""
        is_full = self.pending >= self._max_pending and not self._has_failed
        return is_full or time.monotonic() >= self.due_at

    def move_to(self, file: StoreFile) -> None:
        """Write to another file from now on."""
        self._file = file

    def flush(self) -> int:
        """Write everything counted so far; return how many checks that were.

        On any error nothing is written and everything stays counted, to be tried again.
        """
        self._take_uses()
        flushed = self._counted
        if flushed:
            self._has_failed, self._due_at = True, time.monotonic() + self._max_seconds
            self._write([(*principal, amount) for principal, amount in self._amounts.items()])
            self._has_failed, self._due_at = False, None
            self._amounts.clear()
            self._counted = 0
        return flushed

    def _take_uses(self) -> None:
        count = len(self.uses)  # those that other threads append meanwhile come behind
        for principal in self.uses[:count]:
            self._amounts[principal] = self._amounts.get(principal, 0) + 1
        del self.uses[:count]
        self._counted += count

    def _write(self, rows: Sequence[_Row]) -> None:
        with self._file.write() as conn:
            conn.executemany(_Q["insert_usage"], rows)
            self._guard.mark(conn)
