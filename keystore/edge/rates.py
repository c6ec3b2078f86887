"""What is left of each key's rate: GCRA, one time per key.

The generic cell rate algorithm (ITU-T I.371) keeps for each key the time at which its burst would
be whole again, if no check came. A check moves it on by one interval, and is refused if that would
be further ahead than the burst is long. Times are the monotonic clock's, so no clock that is set
changes what is left.
"""

import threading
import time
from typing import Protocol

from keystore.edge.decision import Rate, RateLimit

MOST_KEYS = 100_000
"""Times kept before those that are over are dropped."""


class Rates(Protocol):
    """Where the times are kept. Safe to share between threads."""

    def take(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Count one check of a key, if its rate allows one."""

    def look(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Say what is left for a key, and count nothing."""

    def clear(self, origin_id: str) -> None:
        """Forget all keys, unless their ids are this origin's already."""


class LocalRates:
    """The times of one process."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._lock = threading.Lock()
        self._most = MOST_KEYS

    def take(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Count one check of a key, if its rate allows one."""
        with self._lock:
            now = time.monotonic()
            left, whole_at = spend(self._times.get(api_key_id, now), now, rate)
            if not left.retry_after:
                self._times[api_key_id] = whole_at
                if len(self._times) > self._most:
                    self._drop_whole(now)
        return left

    def look(self, api_key_id: int, rate: Rate) -> RateLimit:
        """Say what is left for a key, and count nothing."""
        now = time.monotonic()
        return peek(self._times.get(api_key_id, now), now, rate)

    def clear(self, origin_id: str) -> None:  # noqa: ARG002 - only who is moved asks for it
        """Forget all keys."""
        with self._lock:
            self._times.clear()

    def _drop_whole(self, now: float) -> None:
        """Drop the keys whose burst is whole: they are as if they had never come."""
        self._times = {key: at for key, at in self._times.items() if at > now}
        self._most = max(MOST_KEYS, 2 * len(self._times))


def spend(whole_at: float, now: float, rate: Rate) -> tuple[RateLimit, float]:
    """Take one check from a burst that would be whole at ``whole_at``.

    Returns what is left, and when the burst will be whole then, in the seconds of ``now``.
    """
    limit, window, burst = rate
    interval = window / limit
    length = interval * burst
    whole_at = max(whole_at, now)
    waits = whole_at + interval - now
    # (a millionth: sums of intervals are not exact, and none of the burst is to be lost by it)
    slack = interval * 1e-6
    if waits > length + slack:
        return RateLimit(rate, 0, whole_at - now, waits - length), whole_at
    return RateLimit(rate, int((length - waits + slack) / interval), waits, 0.0), now + waits


def peek(whole_at: float, now: float, rate: Rate) -> RateLimit:
    """Say what :func:`spend` would, and what is left without it."""
    left, _ = spend(whole_at, now, rate)
    if left.retry_after:
        return left
    return left._replace(remaining=left.remaining + 1, reset_seconds=max(0.0, whole_at - now))
