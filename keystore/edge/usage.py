"""Counts usage in memory and writes it to the UsageLog in one transaction per flush.

What a crash can lose is what was counted since the last flush: at most ``max_pending`` checks, and
none that is older than ``max_seconds``. With ``max_pending=1`` nothing is buffered: each check's
usage is on disk before the check is answered, and a check whose usage cannot be written is not
answered with yes. With more, a store that cannot be written (locked, full) does not stop the
checks; their usage stays counted past the bound until it can. Where it was another's lock, that is
until the first check after its end: several workers on a slow disk hold it nearly all the time, and
who came again after a quarter of a second would seldom find it free. What is flushed is never lost
and never written twice.
"""

import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from keystore import quotas, sql
from keystore.db import StoreFile, scalar
from keystore.edge.guard import ClockGuard
from keystore.errors import KeystoreError, StoreBusyError

if TYPE_CHECKING:
    import sqlite3

RETRY_SECONDS = 0.25
"""How soon after a flush that has failed the next one is tried: until then the bound is passed."""
Use = tuple[int, int, int | None, int | None, str | None, int]
"""Key id (or -client id), account id, service id, the quota's id and period, amount."""

_Q = sql.named("edge")


class _Batch(NamedTuple):
    """Stands before the uses that a flush is writing: so many, with this nonce, after this row."""

    size: int
    nonce: int
    after: int


class UsageBuffer:
    """Usage by key since the last flush. The caller serialises access, :attr:`uses` apart."""

    def __init__(
        self, file: StoreFile, guard: ClockGuard, *, max_pending: int, max_seconds: float
    ) -> None:
        self._file, self._guard = file, guard
        self._max_pending = max_pending
        self._max_seconds = max_seconds
        self._due_at: float | None = None
        self._merged = 0
        self._has_failed = False
        self.waits_for_lock = False
        """Whether the last flush has failed because another process held the write lock."""
        self.uses: list[Use | _Batch] = []
        """What was counted. Any thread may append a use without a lock, and answers its check if
        the list is shorter than :attr:`room` then."""

    @property
    def is_buffered(self) -> bool:
        """Whether a check may be answered before its usage is on disk."""
        return self._max_pending > 1

    @property
    def pending(self) -> int:
        """How many checks are counted and not flushed."""
        return self._merged + len(self.uses) - (self._batch() is not None)

    @property
    def room(self) -> int:
        """How long :attr:`uses` may become before it is to be looked at."""
        return 0 if self._has_failed else self._max_pending - self._merged

    @property
    def due_at(self) -> float:
        """When the oldest usage has waited long enough, by the monotonic clock."""
        if not self.uses:
            return inf
        if self._due_at is None:
            self._due_at = time.monotonic() + self._max_seconds
        return self._due_at

    @property
    def is_due(self) -> bool:
        """Whether a bound is reached; after a failed flush, whether it is time to try again."""
        is_full = self.pending >= self._max_pending and not self._has_failed
        return is_full or time.monotonic() >= self.due_at

    def add(self, use: Use) -> None:
        """Count usage.

        Raises:
            KeystoreError: nothing is buffered (``max_pending=1``) and the store cannot be written.
        """
        if self.is_buffered:
            self.uses.append(use)
        else:
            self._write([use], secrets.randbits(63))

    def move_to(self, file: StoreFile) -> None:
        """Write to another file from now on, but for what an interrupted flush has written."""
        with suppress(KeystoreError), self._file.errors():
            self._settle()
        self._file = file

    def forget(self) -> None:
        """Drop what was counted: it is somebody else's to write."""
        del self.uses[:]
        self._merged, self._has_failed, self.waits_for_lock, self._due_at = 0, False, False, None

    def flush(self) -> int:
        """Write everything counted so far; return how many checks that were.

        On any error nothing is written and everything stays counted, to be tried again.
        """
        if not self.uses:
            return 0
        flushed, had_failed = self.pending, self._has_failed
        retry = min(self._max_seconds, RETRY_SECONDS)
        self._has_failed, self._due_at = True, time.monotonic() + retry
        try:
            with self._file.errors():
                self._settle()
                if had_failed:
                    self._merge()
                uses = self._uses()
                if uses:
                    batch = _Batch(len(uses), secrets.randbits(63), self._last_id())
                    # An exception may come from a signal, after the commit and before the next
                    # line. So the mark goes in one step with what it marks, and is looked for if it
                    # is still there. Until then the list stays as long as it is: who appends sees
                    # how much may be lost.
                    self.uses.insert(0, batch)
                    self._write(_sums(uses), batch.nonce)
                    self._drop(batch.size + 1)
        except KeystoreError as error:
            self.waits_for_lock = isinstance(error, StoreBusyError)
            raise
        self._has_failed, self.waits_for_lock, self._due_at = False, False, None
        return flushed

    def _settle(self) -> None:
        """Find out what became of a flush that was interrupted."""
        batch = self._batch()
        if batch is not None:
            found = self._file.conn.execute(_Q["usage_written"], (batch.after, batch.nonce))
            if found.fetchone():
                self._drop(batch.size + 1)
            else:
                del self.uses[0]

    def _merge(self) -> None:
        """Keep one sum for each key, so that a store that is locked for hours fills no memory."""
        uses = self._uses()
        merged = _sums(uses)
        self.uses[: len(uses)] = merged
        self._merged += len(uses) - len(merged)

    def _uses(self) -> list[Use]:
        # those that others append meanwhile come behind
        return [use for use in self.uses[:] if not isinstance(use, _Batch)]

    def _drop(self, count: int) -> None:
        del self.uses[:count]
        self._merged = 0

    def _last_id(self) -> int:
        return int(scalar(self._file.conn, _Q["last_usage_id"]))

    def _batch(self) -> _Batch | None:
        first = self.uses[0] if self.uses else None
        return first if isinstance(first, _Batch) else None

    def _write(self, uses: Sequence[Use], nonce: int) -> None:
        with self._file.write() as conn:
            rows = [(*use[:3], use[5], _spend(conn, use), nonce) for use in uses]
            conn.executemany(_Q["insert_usage"], rows)
            self._guard.mark(conn)


def _spend(conn: "sqlite3.Connection", use: Use) -> str | None:
    """Take usage from its quota; return when it was, if its period is not the present one."""
    _, _, _, quota_id, period, amount = use
    if quota_id is None or period is None:
        return None
    return quotas.spend(conn, quota_id, period, amount)


def _sums(uses: Iterable[Use]) -> list[Use]:
    sums: dict[tuple[int, int, int | None, int | None, str | None], int] = {}
    for principal, account_id, service_id, quota_id, period, amount in uses:
        whose = (principal, account_id, service_id, quota_id, period)
        sums[whose] = sums.get(whose, 0) + amount
    return [(*whose, amount) for whose, amount in sums.items()]
