"""What is left of a quota, in a store that may not have been told yet.

The origin says in ``remaining_quota`` what is left in the period that began at ``renewed_at``, as
far as it has settled usage (``UsageSettlements``). What a store has used itself since, and what its
processes have taken to spend, is in ``QuotaUse``. In a later period the initial quota is there
again, whether the origin has said so or not: when a quota renews is a matter of the calendar (UTC),
so an edge without contact renews it by itself.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from keystore import clock, sql

if TYPE_CHECKING:
    import sqlite3

LARGEST_LEASE = 1_000
"""Units that a process takes at once, at most: what a crash may leave unspent until the renewal."""
SHARE = 16
"""A process takes one of so many parts of what is left, so that all of it can be spent."""

_Q = sql.named("quotas")


def period_of(renewal: str, now: float, renewed_at: str) -> str:
    """Return when the period began that ``now`` (Unix seconds) is in, as UTC text."""
    if renewal == "never":
        return renewed_at
    today = clock.utc_text(now)
    began = f"{today[:10]} 00:00:00" if renewal == "daily" else f"{today[:7]}-01 00:00:00"
    return max(began, renewed_at)


def renews_at(renewal: str, now: float) -> float | None:
    """Return when the next period begins, in Unix seconds; ``None``: never."""
    if renewal == "never":
        return None
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if renewal == "daily":
        return (today + timedelta(days=1)).timestamp()
    return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


class Left(NamedTuple):
    """What is left of a quota here, in units."""

    quota_id: int
    initial: int
    remaining: int
    period: str
    renews_at: float | None


def left(conn: "sqlite3.Connection", quota_id: int, store_id: str, now: float) -> Left | None:
    """Return what is left of a quota; ``None``: there is no such quota.

    Brings QuotaUse up to date, so it needs a write transaction.
    """
    row = conn.execute(_Q["quota"], {"quota_id": quota_id, "store_id": store_id}).fetchone()
    if row is None:
        return None
    initial, remaining, renewal, renewed_at, settled, known_period, known_settled, used = row
    period = period_of(renewal, now, renewed_at)
    if period > renewed_at:
        remaining = initial
    if (known_period, known_settled) != (period, settled):
        conn.execute(
            _Q["count_use"],
            {"quota_id": quota_id, "period": period, "settled": settled},
        )
        (used,) = conn.execute(_Q["used"], (quota_id,)).fetchone()
    return Left(quota_id, initial, max(0, remaining - used), period, renews_at(renewal, now))


def lease(
    conn: "sqlite3.Connection", quota_id: int, store_id: str, now: float, units: int, most: int
) -> tuple[int, Left] | None:
    """Take at least ``units`` of a quota, if there are so many, and up to ``most``; else none.

    Returns what was taken, and what is left after that; ``None``: there is no such quota. Part of
    the caller's write transaction.
    """
    found = left(conn, quota_id, store_id, now)
    if found is None:
        return None
    if found.remaining < units:
        return 0, found
    taken = max(units, min(most, found.remaining // SHARE))
    conn.execute(_Q["lease"], (taken, quota_id))
    return taken, found._replace(remaining=found.remaining - taken)


def spend(conn: "sqlite3.Connection", quota_id: int, units: int, period: str) -> None:
    """Note that leased units were spent: they are in the UsageLog now."""
    conn.execute(_Q["spend"], {"quota_id": quota_id, "units": units, "period": period})


def give_back(conn: "sqlite3.Connection", quota_id: int, units: int, period: str) -> None:
    """Give back leased units that were not spent, if their period lasts."""
    conn.execute(_Q["give_back"], {"quota_id": quota_id, "units": units, "period": period})


class Consumed(NamedTuple):
    """Units of a service that a key has used in the hour that begins at ``hour``, UTC text."""

    api_key_id: int
    service_id: int
    hour: str
    amount: int


def settle_own(conn: "sqlite3.Connection", store_id: str, now: float) -> None:
    """At an origin: deduct what was used here. Part of the caller's write transaction."""
    (head,) = conn.execute(_Q["usage_head"]).fetchone()
    (settled,) = conn.execute(_Q["settled"], (store_id,)).fetchone()
    rows = [Consumed(*row) for row in conn.execute(_Q["own_use"], (settled, head))]
    settle(conn, store_id, head, rows, now)


def settle(
    conn: "sqlite3.Connection",
    store_id: str,
    up_to: int,
    rows: Iterable[Consumed],
    now: float,
) -> None:
    """At an origin: deduct what a store has used, up to a row of its UsageLog.

    Renews what is due first, and sets and lifts the status ``exhausted`` of the keys. Part of the
    caller's write transaction.
    """
    for renewal in ("daily", "monthly"):
        conn.execute(_Q["renew"], {"renewal": renewal, "period": period_of(renewal, now, "")})
    for row in rows:
        conn.execute(_Q["deduct"], row._asdict())
    if up_to:
        conn.execute(_Q["note_settled"], {"replica_id": store_id, "usage_id": up_to})
    conn.execute(_Q["lift_exhausted"])
    conn.execute(_Q["set_exhausted"])
