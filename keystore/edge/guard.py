"""The time that a replica is judged by, and for how long its data may be used.

A wall clock that is set back would revive expired keys, make old data look new, and give a replica
more time without contact. So a replica's time is the highest of what the wall clock shows and has
shown, of the mark that is kept in the file, and of what the data are as of; and it goes on by the
monotonic clock, which nobody can set. At an origin the wall clock is right: who sets it there sets
the expiry of the keys, too.

Only a pull that brings something newer starts this anew, from the mark that the pull has left. So a
clock that was far ahead once does not end a replica for ever.
"""

import math
import time
from typing import TYPE_CHECKING

from keystore import clock, sql
from keystore.db import StoreInfo
from keystore.edge.decision import Entry, Freshness, Limit
from keystore.errors import DamagedStoreError

if TYPE_CHECKING:
    import sqlite3

CLOCK_TOLERANCE_SECONDS = 60.0
"""How far this machine's clock may be behind a replica's time before it counts as wrong."""
MARK_SECONDS = 600.0
"""How old the mark may grow where no usage is written: each one is a commit that wakes others."""

_Q = sql.named("edge")


class ClockGuard:
    """A replica's time, once it has looked at the replica. The caller serialises access."""

    def __init__(self) -> None:
        self._info: StoreInfo | None = None
        self._since: float | None = None
        self._as_of = (0, "")
        self._valid_until = self._usable_until = math.inf
        self._limits: tuple[Limit | None, ...] = (None, None, None)
        self._lead = -math.inf  # this time is the monotonic clock's and so much
        self._retry_at = -math.inf
        self.mark_due = math.inf

    def look(self, info: StoreInfo) -> None:
        """Take over what the file says now.

        Raises:
            DamagedStoreError: it has a time that is none.
        """
        as_of = (info.as_of_change or 0, info.as_of_at or "")
        try:
            # None at an origin, and at a replica that has never synced: there is nothing to guard
            since = clock.seconds(info.as_of_at) if info.as_of_at else None
            mark = clock.seconds(info.clock_mark) if info.clock_mark else -math.inf
            limits: tuple[Limit | None, ...] = (None, None, None)
            valid_until = usable_until = math.inf
            if info.valid_until is not None:
                valid_until = clock.seconds(info.valid_until)
                usable_until = valid_until + max(0, info.max_offline_seconds or 0)
                ends = (info.valid_until, clock.utc_text(usable_until))
                limits = (
                    Limit(*ends, is_in_grace=False, is_over=False),
                    Limit(*ends, is_in_grace=True, is_over=False),
                    Limit(*ends, is_in_grace=False, is_over=True),
                )
        except (ValueError, TypeError, OverflowError, OSError) as error:  # the CHECKs were off
            raise DamagedStoreError(
                f"StoreInfo has a time that cannot be read: {error}.", hint="Restore a backup."
            ) from error
        if as_of > self._as_of:
            self._lead = self._retry_at = -math.inf
        self._info, self._since, self._as_of = info, since, as_of
        self._valid_until, self._usable_until, self._limits = valid_until, usable_until, limits
        self._lead = max(self._lead, max(mark, since or -math.inf) - time.monotonic())
        self.mark_due = mark + MARK_SECONDS if since else math.inf

    def now(self) -> tuple[float, float]:
        """Return the time, in Unix seconds, and how far the wall clock is behind it."""
        wall = time.time()
        if self._since is None:
            return wall, 0.0
        # In this order: who is stopped in between has less of a lead afterwards, not more.
        ticks = time.monotonic()
        lead = wall - ticks
        if lead >= self._lead:
            self._lead = lead
            return wall, 0.0
        now = ticks + self._lead
        return now, now - wall

    def freshness(self, now: float, behind: float) -> Freshness | None:
        """How current a replica's data are at a time that :meth:`now` gave; ``None``: it has none.

        If the wall clock is behind, that or another clock is off: the data may be so much older.
        """
        if self._info is None or self._since is None:
            return None
        age = max(0.0, now - self._since)
        if behind > CLOCK_TOLERANCE_SECONDS:
            age = max(age, behind)
        # (made beforehand: this is done for every check)
        limit = self._limits[(now > self._valid_until) + (now > self._usable_until)]
        return Freshness(self._as_of[0], self._info.as_of_at, age, limit)

    def holds_until(self, entry: Entry, now: float, freshness: Freshness) -> float:
        """Return when a decision made now may turn out otherwise, for being offline or stale."""
        until = self._valid_until if now <= self._valid_until else self._usable_until
        if entry.max_staleness_seconds is None or entry.stale_action == "allow":
            return until
        return min(until, now + entry.max_staleness_seconds - freshness.age_seconds)

    def should_mark(self, now: float) -> bool:
        """Whether the mark is so old that it is to be written without any usage."""
        return now >= self.mark_due and time.monotonic() >= self._retry_at

    def mark(self, conn: "sqlite3.Connection") -> None:
        """Write the mark inside the caller's transaction.

        It is not written over that of a pull that this guard has not looked at yet: that may have
        put a clock right.
        """
        self._retry_at = time.monotonic() + MARK_SECONDS  # if this fails
        if self._info is None or self._since is None:
            return
        now, _ = self.now()
        conn.execute(
            _Q["set_clock_mark"],
            {
                "mark": clock.utc_text(now),
                "as_of_change": self._info.as_of_change,
                "as_of_at": self._info.as_of_at,
            },
        )
