"""Usage of any kind of principal: logged by one call, and summed by the hour when it is old.

The UsageLog is the store's own, at a replica too, and names its subject by kind and internal id. No
foreign key ties it to one table, so what the subject is, or whether it still is, never keeps usage
from being logged.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from keystore import clock, db, models, quotas, sql
from keystore.admin.reports import ReportAdmin, as_number
from keystore.errors import ConflictingRequestError, InvalidInputError, NotFoundError

ROWS_PER_STEP = 10_000
"""Rows that a roll-up sums in one transaction: others may write between two."""

_Q = sql.named("usage")
_SUBJECTS = {
    "api_key": (
        _Q["key_subject"],
        _Q["account_of_key"],
        "Name it by its UUID (`keystore key list`) or its internal id, not by its token.",
    ),
    "oauth_client": (
        _Q["client_subject"],
        _Q["account_of_client"],
        "Name it by its client_id (`keystore client list`); one that is gone by its internal id.",
    ),
}


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """A row of the UsageLog."""

    usage_id: int
    principal_type: str
    principal_id: int
    account_id: int | None
    service_id: int | None
    amount: int
    request_id: str | None
    occurred_at: str


@dataclass(slots=True)
class UsageCompaction:
    """What a roll-up has done: rows summed, all of them before ``before`` (UTC text).

    ``held`` rows are as old and were kept, because ``held_by`` still needs them one by one.
    """

    before: str
    summed: int = 0
    held: int = 0
    held_by: str | None = None


class UsageAdmin(ReportAdmin):
    """Logs usage, and keeps the log short."""

    def log_usage(
        self,
        principal_type: str,
        principal: str | int,
        amount: int = 1,
        *,
        service: str | None = None,
        request_id: str | None = None,
        account: str | None = None,
    ) -> UsageEntry:
        """Log units that an ``api_key``, an ``oauth_client`` or a ``session`` has used.

        ``amount`` is 0 to 2**40.

        ``principal`` is a key's UUID, a client's client_id, a session's number; or the internal id,
        which is taken as it is: what it names need not exist. ``account`` is the e-mail address of
        a session's account. A request id of a principal counts once: asked again, the row that is
        there is returned, as long as it was not summed up (see :meth:`compact_usage`).

        Works at replicas, too.

        Raises:
            NotFoundError: no such service or account, or a name that nothing has, or had.
            ConflictingRequestError: the request id was used for another amount or service.
            InvalidInputError
        """
        wanted = models.validated(
            models.UsageInput,
            "usage",
            principal_type=principal_type,
            principal=principal,
            amount=amount,
            request_id=request_id,
        )
        if account is not None and wanted.principal_type != "session":
            raise InvalidInputError(
                "an account is said of a session only; others have theirs.",
                hint="Nothing was written; leave it out.",
            )
        with self.file.write() as conn:
            principal_id, account_id = self._subject(wanted)
            if account is not None:
                account_id = self._find("account", account)
            service_id = None if service is None else self._find("service", service)
            values = {
                "principal_type": wanted.principal_type,
                "principal_id": principal_id,
                "account_id": account_id,
                "service_id": service_id,
                "amount": wanted.amount,
                "request_id": wanted.request_id,
            }
            logged = self._logged_before(values)
            if logged is not None:
                return logged
            (row,) = sql.dicts(conn.execute(_Q["log"], values))
            if wanted.principal_type == "api_key" and service_id is not None:
                found = db.scalar(conn, _Q["quota_of"], principal_id, service_id)
                if found is not None:
                    quotas.use(conn, found, wanted.amount)
            return UsageEntry(**row)

    def compact_usage(self, older_than: timedelta) -> UsageCompaction:
        """Sum usage that is older by the hour (table UsageHours), and remove its rows.

        No total changes by it, for reports go by whole hours. What happened since this month began
        stays, and so does what a target, a usage file or the origin's settling still needs row by
        row. With its row a request id is forgotten.

        Raises:
            InvalidInputError: the age is negative.
        """
        if older_than < timedelta():
            raise InvalidInputError("an age is not negative.", hint="Give it like 90d or 12h.")
        now = time.time()
        hour = clock.utc_text(max(0.0, now - older_than.total_seconds()))[:13] + ":00:00"
        done = UsageCompaction(before=min(hour, quotas.period_of("monthly", now, "")))
        where = {"before": done.before, "limit": ROWS_PER_STEP}
        if self.info.is_origin:
            with self.file.write() as conn:
                quotas.settle_own(conn, self.info.store_id, now, is_whole=True)
        while True:
            with self.file.write() as conn:
                last = int(db.scalar(conn, _Q["last_usage"]))
                (holder, floor), *_ = conn.execute(
                    _Q["holders"], {"store_id": self.info.store_id}
                ).fetchall()
                # Never the row that a target acknowledged last: by it the target is recognised.
                step = {**where, "below": min(floor, last)}
                conn.execute(_Q["begin_summing"])
                conn.execute(_Q["sum_hours"], step)
                summed = conn.execute(_Q["remove_summed"], step).rowcount
                conn.execute(_Q["end_summing"])
                if summed < ROWS_PER_STEP:
                    done.held = int(
                        conn.execute(_Q["held"], {"before": done.before, "last": last}).fetchone()[
                            0
                        ]
                    )
            done.summed += summed
            if summed < ROWS_PER_STEP:
                done.held_by = holder if done.held else None
                return done

    def _subject(self, wanted: models.UsageInput) -> tuple[int, int | None]:
        """Return the internal id of a principal and its account's, if that is known."""
        name = wanted.principal
        if wanted.principal_type == "session":
            number = as_number(name)
            if number is None:
                raise InvalidInputError(
                    f"session {name!r}: a session goes by a number.",
                    hint="Nothing was written; name it by a whole number.",
                )
            return number, None
        by_name, account_of, hint = _SUBJECTS[wanted.principal_type]
        if isinstance(name, str):
            said = name.lower() if wanted.principal_type == "api_key" else name
            row = self.file.conn.execute(by_name, {"name": said}).fetchone()
            if row is not None:
                principal_id, account_id = row
                return principal_id, account_id
        number = as_number(name)
        if number is None:
            # (what was typed may be a token or a secret, so it is not repeated)
            what = wanted.principal_type.replace("_", " ")
            raise NotFoundError(f"there is no {what} of that name.", hint=hint)
        return number, db.scalar(self.file.conn, account_of, number)

    def _logged_before(self, values: dict[str, Any]) -> UsageEntry | None:
        if values["request_id"] is None:
            return None
        found = sql.dicts(self.file.conn.execute(_Q["usage_of_request"], values))
        if not found:
            return None
        row = found[0]
        if (row["amount"], row["service_id"]) != (values["amount"], values["service_id"]):
            raise ConflictingRequestError(
                f"request {values['request_id']} was another one: usage {row['usage_id']}, "
                f"{row['amount']} units.",
                hint="A request id stands for one request; take a new one.",
            )
        return UsageEntry(**row)
