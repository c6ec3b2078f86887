"""Reports of usage: totals by whom, for what, and when.

Counted are the rows of the UsageLog, what they were summed to by the hour when they were old, and
at an origin what replicas have handed up in files; each row is in one of them. Windows are of
whole hours, so that a total is the same before a roll-up and after it.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from keystore import db, sql
from keystore.admin.base import Admin
from keystore.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    import sqlite3

By = Literal["key", "account", "service", "principal"]
Per = Literal["hour", "day"]
Group = tuple[str | None, str | None, int | None]
"""Period, kind and internal id; ``None`` where a report does not tell them apart."""

_Q = sql.named("usage")
_ROWS = "count(*)"
_SOURCES = (
    ("UsageLog", "occurred_at", _ROWS),
    ("UsageHours", "hour", "sum(rows)"),
    ("ReceivedUsage", "occurred_at", _ROWS),
)
_KINDS = {
    "key": ("'api_key'", "principal_id"),
    "account": ("'account'", "account_id"),
    "service": ("'service'", "service_id"),
    "principal": ("principal_type", "principal_id"),
}
_CONSTANTS = {"NULL", "'api_key'", "'account'", "'service'"}
_PERIODS = {"hour": _Q["by_hour"], "day": _Q["by_day"]}
_NAMES = {
    "api_key": _Q["api_key_name"],
    "oauth_client": _Q["oauth_client_name"],
    "account": _Q["account_name"],
    "service": _Q["service_name"],
}


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """Units that were used, in so many rows, of one period, kind and internal id.

    ``None`` is what the report does not tell apart; ``name`` also that of what is gone.
    """

    period: str | None
    kind: str | None
    id: int | None
    name: str | None
    amount: int
    rows: int

    @property
    def label(self) -> str:
        """What to call it."""
        if self.kind is None:
            return "all"
        if self.name is None:
            return f"no {self.kind}" if self.id is None else f"{self.kind} {self.id}"
        return self.name if self.kind in {"account", "service"} else f"{self.kind} {self.name}"


class ReportAdmin(Admin):
    """Adds usage up."""

    def usage_report(
        self,
        *,
        by: By | None = None,
        per: Per | None = None,
        key: str | None = None,
        account: str | None = None,
        service: str | None = None,
        request_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        top: int | None = None,
    ) -> list[UsageTotal]:
        """Return totals of usage, the largest first; with ``per`` the earliest period first.

        ``by`` and ``per`` say what is told apart, the others what is counted. Names may be internal
        ids, for what is gone. ``since`` and ``until`` (without a zone: UTC) are widened to whole
        hours. ``top`` keeps so many of the largest groups, each with all its periods. A request id
        is known as long as its row was not summed by the hour.

        Raises:
            NotFoundError: a name that nothing has.
            InvalidInputError
        """
        if top is not None and top < 1:
            raise InvalidInputError("top must be at least 1.", hint="Leave it out for all.")
        if since is not None and until is not None and _hour(since, "") > _hour(until, ""):
            raise InvalidInputError(
                f"usage from {_hour(since, '')} on and until {_hour(until, '')}: no time is both.",
                hint="`since` is the earlier one: --since 7d --until 1d.",
            )
        with self.file.read() as conn:
            values: dict[str, object] = {}
            if key is not None or by == "key":
                values["principal_type"] = "api_key"
            if key is not None:
                values["principal_id"] = self._named("key", key)
            if account is not None:
                values["account_id"] = self._named("account", account)
            if service is not None:
                values["service_id"] = self._named("service", service)
            if request_id is not None:
                # (the others with a +: without statistics, SQLite would rather read all of a key)
                values = {f"+{name}": value for name, value in values.items()}
                values["request_id"] = request_id
            amounts, rows = _totals(conn, by, per, values, since, until)
            names = _Names(conn)
            found = [
                UsageTotal(
                    period=period,
                    kind=kind,
                    id=number,
                    name=names.of(kind, number),
                    amount=amount,
                    rows=rows[period, kind, number],
                )
                for (period, kind, number), amount in _top(amounts, top).items()
            ]
        if by is None and per is None and not found:
            found = [UsageTotal(period=None, kind=None, id=None, name=None, amount=0, rows=0)]
        return sorted(found, key=lambda item: (item.period or "", -item.amount, item.label))

    def _named(self, kind: str, name: str) -> int:
        """Return an internal id: of what has that name, else the number that it is."""
        number = as_number(name)
        if kind == "key":
            where = {"name": name.lower()}
            row = self.file.conn.execute(_Q["key_subject"], where).fetchone()
            if row is not None:
                return int(row[0])
        elif number is None or self._is_taken(kind, name):
            return self._find(kind, name)
        if number is None:
            raise NotFoundError(
                "there never was such a key.", hint="Name it by its UUID (`keystore key list`)."
            )
        return number


def as_number(name: str | int) -> int | None:
    """Read an internal id; ``None``: it is a name."""
    if isinstance(name, int):
        return name
    return int(name) if name.isdecimal() and len(name) < 19 else None


def _totals(
    conn: "sqlite3.Connection",
    by: By | None,
    per: Per | None,
    values: dict[str, object],
    since: datetime | None,
    until: datetime | None,
) -> tuple[Counter[Group], Counter[Group]]:
    """Return the units and the rows of each group; each table is grouped by its own indexes."""
    amounts: Counter[Group] = Counter()
    rows: Counter[Group] = Counter()
    # (a bound that reads as a number would be compared as one: columns of times are NUMERIC)
    window = {
        "since": _hour(since, "1000-01-01"),
        "until": _hour(until, "3000-01-01", is_end=True),
    }
    kind, number = _KINDS[by] if by else ("NULL", "NULL")
    for table, time, count in _SOURCES:
        if table == "UsageHours" and "request_id" in values:
            continue
        where = [f"{column} = :{column.lstrip('+')}" for column in values]
        if since is not None or until is not None:
            where.append(_Q["within"].format(time=time))
        period = _PERIODS[per].format(time=time) if per else "NULL"
        told_apart = [item for item in (period, kind, number) if item not in _CONSTANTS]
        parts = {
            "columns": f"{period}, {kind}, {number}",
            "rows": count,
            "table": table,
            "where": " AND ".join(where) or "TRUE",
            "groups": f"GROUP BY {', '.join(told_apart)}" if told_apart else "",
        }
        named = {column.lstrip("+"): value for column, value in values.items()}
        for *group, high, low, number_of_rows in _summed(conn, parts, {**window, **named}):
            if number_of_rows:  # (without groups, one row says that there are none)
                amounts[tuple(group)] += (high << 32) + low
                rows[tuple(group)] += number_of_rows
    return amounts, rows


def _summed(
    conn: "sqlite3.Connection", parts: dict[str, str], values: dict[str, object]
) -> list[Any]:
    """Add up; a sum of what anybody may have logged can be past 64 bits, but seldom is."""
    statement = _Q["totals"]
    try:
        return conn.execute(statement.format(sums=_Q["sum"], **parts), values).fetchall()
    except db.Error as error:
        if str(error) != "integer overflow":
            raise
    return conn.execute(statement.format(sums=_Q["sum_in_halves"], **parts), values).fetchall()


def _hour(moment: datetime | None, bound: str, *, is_end: bool = False) -> str:
    """Return the beginning of an hour as the store writes it, at or before, or after for an end."""
    if moment is None:
        return bound
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    whole = utc.replace(minute=0, second=0, microsecond=0)
    if is_end and whole < utc:
        whole += timedelta(hours=1)
    return whole.strftime("%Y-%m-%d %H:%M:%S")


def _top(amounts: Counter[Group], top: int | None) -> Counter[Group]:
    if top is None:
        return amounts
    sums: Counter[tuple[str | None, int | None]] = Counter()
    for (_, kind, number), amount in amounts.items():
        sums[kind, number] += amount
    largest = {group for group, _ in sums.most_common(top)}
    return Counter({group: amount for group, amount in amounts.items() if group[1:] in largest})


class _Names:
    """External identities by internal ids; of keys that are gone, too."""

    def __init__(self, conn: "sqlite3.Connection") -> None:
        self._conn = conn
        self._known: dict[tuple[str, int], str | None] = {}
        self._deleted: dict[int, str] | None = None

    def of(self, kind: str | None, number: int | None) -> str | None:
        """Return a name; ``None``: it has none, or it is gone."""
        if kind is None or number is None or kind not in _NAMES:
            return None
        if (kind, number) not in self._known:
            found = db.scalar(self._conn, _NAMES[kind], number)
            if found is None and kind == "api_key":
                if self._deleted is None:
                    self._deleted = dict(self._conn.execute(_Q["deleted_keys"]).fetchall())
                found = self._deleted.get(number)
            self._known[kind, number] = found
        return self._known[kind, number]
