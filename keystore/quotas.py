"""What is left of a quota, in a store that may not have been told yet.

The origin says in ``remaining_quota`` what is left in the period that began at ``renewed_at``, as
far as it has settled usage (``UsageSettlements``). What a store has used itself since, and what its
processes have taken to spend, is in ``QuotaUse``. In a later period the initial quota is there
again, whether the origin has said so or not: when a quota renews is a matter of the calendar (UTC),
so an edge without contact renews it by itself.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from keystore import clock, sql

if TYPE_CHECKING:
    import sqlite3

LARGEST_LEASE = 1_000
"""Units that a process takes at once, at most: what a crash may leave unspent until the renewal."""
SHARE = 16
"""A process takes one of so many parts of what is left, so that all of it can be spent."""
MOST_UNSETTLED = 10_000
"""Rows of usage without a quota that an origin passes over again and again before it notes them."""

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


def of_key(
    conn: "sqlite3.Connection", api_key_id: int, store_id: str, now: float
) -> list[dict[str, Any]]:
    """Return what a key may use and what is left of it here, by service. Reads only."""
    who = {"api_key_id": api_key_id, "store_id": store_id}
    periods = {"day": _day(now), "month": _month(now)}
    return sql.dicts(conn.execute(_Q["of_key"], {**who, **periods}))


def lease(conn: "sqlite3.Connection", found: Left, units: int, most: int) -> tuple[int, Left]:
    """Take at least ``units`` of a quota, if there are so many, and up to ``most``; else none.

    Returns what was taken, and what is left after that. Part of the write transaction in which
    :func:`left` has found it.
    """
    if found.remaining < units:
        return 0, found
    taken = max(units, min(most, found.remaining // SHARE))
    conn.execute(_Q["lease"], (taken, found.quota_id))
    return taken, found._replace(remaining=found.remaining - taken)


def spend(conn: "sqlite3.Connection", quota_id: int, period: str, units: int) -> str | None:
    """Note that leased units were spent, whose usage is being written.

    Returns when that was, as UTC text, if it was in a period that is over or is yet to begin; else
    ``None``.
    """
    values = {"quota_id": quota_id, "units": units, "period": period}
    row = conn.execute(_Q["spend"], values).fetchone()
    if row is None:
        row = conn.execute(_Q["before_period"], (quota_id,)).fetchone()
    return row[0] if row else None


def use(conn: "sqlite3.Connection", quota_id: int, units: int) -> None:
    """Note that units were used without a lease, whose usage is being written."""
    conn.execute(_Q["use"], (units, quota_id))


def give_back(conn: "sqlite3.Connection", found: Left, units: int) -> None:
    """Give back leased units that were not spent, if their period lasts."""
    values = {"quota_id": found.quota_id, "units": units, "period": found.period}
    conn.execute(_Q["give_back"], values)


class Consumed(NamedTuple):
    """Units of a service that a key has used in the hour that begins at ``hour``, UTC text."""

    api_key_id: int
    service_id: int
    hour: str
    amount: int


def settled(conn: "sqlite3.Connection") -> dict[str, int]:
    """Return up to which row of its UsageLog each store is settled, by store id."""
    return dict(conn.execute(_Q["all_settled"]).fetchall())


def is_own_due(conn: "sqlite3.Connection", store_id: str, now: float) -> bool:
    """At an origin: whether :func:`settle_own` would write. Reads only."""
    if any(
        conn.execute(_Q["is_renewal_due"], {"renewal": renewal, "period": period}).fetchone()[0]
        for renewal, period in (("daily", _day(now)), ("monthly", _month(now)))
    ):
        return True
    if conn.execute(_Q["is_lift_due"]).fetchone()[0]:
        return True
    after, head, rows = _own_use(conn, store_id, now)
    return bool(rows) or head - after >= MOST_UNSETTLED


def settle_own(
    conn: "sqlite3.Connection", store_id: str, now: float, *, is_whole: bool = False
) -> None:
    """At an origin: deduct what was used here. Part of the caller's write transaction.

    Usage without a quota is noted as settled only now and then, unless ``is_whole``: each note is
    a change that travels.
    """
    _renew(conn, now)
    after, head, rows = _own_use(conn, store_id, now)
    if rows or head - after >= (1 if is_whole else MOST_UNSETTLED):
        settle(conn, store_id, after, head, rows, now)
    else:
        mark_exhausted(conn)


def settle(
    conn: "sqlite3.Connection",
    store_id: str,
    after: int,
    up_to: int,
    rows: Iterable[Consumed],
    now: float,
) -> None:
    """At an origin: deduct what a store has used, after a row of its UsageLog and up to another.

    If the store is not settled up to just ``after``, somebody else has done it meanwhile, and
    nothing happens. Part of the caller's write transaction.
    """
    (known,) = conn.execute(_Q["settled"], (store_id,)).fetchone()
    if known == after < up_to:
        deduct(conn, rows, now)
        note_settled(conn, store_id, up_to)


def deduct(conn: "sqlite3.Connection", rows: Iterable[Consumed], now: float) -> None:
    """At an origin: deduct what was used, whoever has to see that it is deducted once.

    Renews what is due first, and sets and lifts the status ``exhausted`` of the keys. Part of the
    caller's write transaction.
    """
    _renew(conn, now)
    periods = {"day": _day(now), "month": _month(now)}
    for row in rows:
        found = conn.execute(_Q["used_quota"], row._asdict()).fetchone()
        if found is not None:
            used = {"quota_id": found[0], "hour": row.hour, "amount": row.amount, **periods}
            conn.execute(_Q["begin_period"], used)
            conn.execute(_Q["deduct"], used)
    mark_exhausted(conn)


def note_settled(conn: "sqlite3.Connection", store_id: str, up_to: int) -> None:
    """At an origin: note up to which row a store is settled; it never goes back."""
    (known,) = conn.execute(_Q["settled"], (store_id,)).fetchone()
    if known < up_to:
        conn.execute(_Q["note_settled"], {"replica_id": store_id, "usage_id": up_to})


def _own_use(
    conn: "sqlite3.Connection", store_id: str, now: float
) -> tuple[int, int, list[Consumed]]:
    (head,) = conn.execute(_Q["usage_head"]).fetchone()
    (after,) = conn.execute(_Q["settled"], (store_id,)).fetchone()
    where = {"settled": after, "head": head, "day": _day(now), "month": _month(now)}
    return after, head, [Consumed(*row) for row in conn.execute(_Q["own_use"], where)]


def _day(now: float) -> str:
    return period_of("daily", now, "")


def _month(now: float) -> str:
    return period_of("monthly", now, "")


def _renew(conn: "sqlite3.Connection", now: float) -> None:
    for renewal, period in (("daily", _day(now)), ("monthly", _month(now))):
        conn.execute(_Q["renew"], {"renewal": renewal, "period": period})


def mark_exhausted(conn: "sqlite3.Connection") -> None:
    """At an origin: set and lift the status ``exhausted`` of the keys, by what is left to them."""
    conn.execute(_Q["lift_exhausted"])
    conn.execute(_Q["set_exhausted"])
