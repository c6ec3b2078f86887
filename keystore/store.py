"""The admin side of a store, as the command line offers it.

sqlite-utils serves inserts and listings here; it is not on the path of a check. Every method is
one transaction, and what is wrong is said before anything is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from keystore import changelog, db, migrate, sql, tokens
from keystore.admin.accounts import AccountAdmin
from keystore.admin.bulk import BulkAdmin
from keystore.admin.clients import ClientAdmin
from keystore.admin.credits import CreditAdmin
from keystore.admin.keys import KeyAdmin
from keystore.admin.plan_quotas import PlanQuotaAdmin
from keystore.admin.plans import PlanAdmin
from keystore.admin.services import ServiceAdmin
from keystore.admin.usage import UsageAdmin
from keystore.tables import TRACKED

_Q = sql.named("store")


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """Where a store stands with one sync target (table SyncTargets)."""

    target_id: str
    url: str
    acknowledged_change: int
    acknowledged_usage: int
    usage_only: bool
    synced_at: str | None
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What ``keystore status`` shows; ``received_usage`` came in files from replicas, in units."""

    path: str
    info: db.StoreInfo
    schema_version: int
    records: dict[str, int]
    last_change: int
    last_usage: int
    usage_total: int
    received_usage: int
    received_rows: int
    targets: list[TargetStatus]


class Store(
    PlanAdmin,
    PlanQuotaAdmin,
    AccountAdmin,
    ServiceAdmin,
    KeyAdmin,
    ClientAdmin,
    BulkAdmin,
    CreditAdmin,
    UsageAdmin,
):
    """An open store. Use it in a ``with`` statement, from one thread at a time.

    ``docs/python.md`` shows it at work.
    """

    @classmethod
    def create(cls, path: Path | str, *, token_prefix: str = tokens.DEFAULT_PREFIX) -> Self:
        """Make a new origin store; see :func:`keystore.migrate.create_origin`."""
        return cls(migrate.create_origin(path, token_prefix=token_prefix))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an existing store; see :func:`keystore.db.open_store`."""
        return cls(db.open_store(path))

    def changes(self, *, after: int = 0, limit: int = -1) -> list[changelog.Change]:
        """Return the ChangeLog after change ``after``, oldest first."""
        with self.file.read() as conn:
            return list(changelog.since(conn, after, limit))

    def status(self) -> Status:
        """Return who this store is, what it holds, and where it stands with its targets."""
        with self.file.read() as conn:
            received, received_rows = conn.execute(_Q["received_total"]).fetchone()
            return Status(
                path=str(self.file.path),
                info=self.file.info(),
                schema_version=db.SCHEMA_VERSION,
                records={t.name: changelog.count_records(conn, t) for t in TRACKED},
                last_change=changelog.head(conn),
                last_usage=int(db.scalar(conn, _Q["usage_head"])),
                usage_total=int(db.scalar(conn, _Q["usage_total"])),
                received_usage=received,
                received_rows=received_rows,
                targets=[TargetStatus(**row) for row in self._query("sync_targets")],
            )
