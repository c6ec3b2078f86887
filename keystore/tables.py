"""The tracked tables: what travels from an origin to its replicas, column by column.

One description serves the push, the pull, the hub's statements and the digests, so that a column
cannot be carried in one direction and forgotten in another; a test compares it with ``schema.sql``.

A *wire row* is a tuple of ``int | str | None`` in the order of :attr:`Table.columns`: booleans as
0 or 1, times as UTC text ``YYYY-MM-DD HH:MM:SS``, UUIDs as text.
"""

from dataclasses import dataclass
from enum import Enum

WireValue = int | str | None
WireRow = tuple[WireValue, ...]


class Kind(Enum):
    """What a column holds, named after its type at the hub."""

    BIGINT = "BIGINT"
    TEXT = "TEXT"
    UUID = "UUID"
    BOOLEAN = "BOOLEAN"
    TIMESTAMPTZ = "TIMESTAMPTZ"


@dataclass(frozen=True, slots=True)
class Column:
    """A column; it has the same name in SQLite and at the hub."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False)  # a hash of all columns is no key of a cache
class Table:
    """A tracked table; the first column is its internal id. Equal is only the very same."""

    name: str
    hub_name: str
    columns: tuple[Column, ...]

    @property
    def id(self) -> str:
        """Name of the internal id."""
        return self.columns[0].name

    @property
    def column_list(self) -> str:
        """The column names, separated by commas, as they go into a statement."""
        return ", ".join(column.name for column in self.columns)


def _table(name: str, hub_name: str, columns: dict[str, Kind]) -> Table:
    times = {"created_at": Kind.TIMESTAMPTZ, "updated_at": Kind.TIMESTAMPTZ}
    return Table(name, hub_name, tuple(Column(*pair) for pair in (columns | times).items()))


TRACKED: tuple[Table, ...] = (
    _table(
        "Plans",
        "plans",
        {
            "plan_id": Kind.BIGINT,
            "name": Kind.TEXT,
            "max_staleness_seconds": Kind.BIGINT,
            "stale_action": Kind.TEXT,
            "rate_limit": Kind.BIGINT,
            "rate_window_seconds": Kind.BIGINT,
            "rate_burst": Kind.BIGINT,
        },
    ),
    _table(
        "Accounts",
        "accounts",
        {
            "account_id": Kind.BIGINT,
            "email": Kind.TEXT,
            "plan_id": Kind.BIGINT,
            "is_active": Kind.BOOLEAN,
        },
    ),
    _table(
        "Services",
        "services",
        {"service_id": Kind.BIGINT, "name": Kind.TEXT, "is_active": Kind.BOOLEAN},
    ),
    _table(
        "APIKeyStatuses",
        "api_key_statuses",
        {
            "status_id": Kind.BIGINT,
            "name": Kind.TEXT,
            "description": Kind.TEXT,
            "is_active": Kind.BOOLEAN,
            "allows_access": Kind.BOOLEAN,
        },
    ),
    _table(
        "APIKeys",
        "api_keys",
        {
            "api_key_id": Kind.BIGINT,
            "api_key": Kind.UUID,
            "account_id": Kind.BIGINT,
            "api_key_hash": Kind.TEXT,
            "is_active": Kind.BOOLEAN,
            "status": Kind.TEXT,
            "status_reason": Kind.TEXT,
            "label": Kind.TEXT,
            "expires_at": Kind.TIMESTAMPTZ,
            "allowed_networks": Kind.TEXT,
            "metadata": Kind.TEXT,
        },
    ),
    _table(
        "APIKeyServiceQuotas",
        "api_key_service_quotas",
        {
            "quota_id": Kind.BIGINT,
            "api_key_id": Kind.BIGINT,
            "service_id": Kind.BIGINT,
            "initial_quota": Kind.BIGINT,
            "remaining_quota": Kind.BIGINT,
            "renewal": Kind.TEXT,
            "renewed_at": Kind.TIMESTAMPTZ,
        },
    ),
    _table(
        "PlanServiceQuotas",
        "plan_service_quotas",
        {
            "plan_quota_id": Kind.BIGINT,
            "plan_id": Kind.BIGINT,
            "service_id": Kind.BIGINT,
            "initial_quota": Kind.BIGINT,
            "renewal": Kind.TEXT,
        },
    ),
    Table(
        "APIKeyStatusEvents",
        "api_key_status_events",
        (
            Column("event_id", Kind.BIGINT),
            Column("api_key_id", Kind.BIGINT),
            Column("api_key", Kind.UUID),
            Column("old_status", Kind.TEXT),
            Column("status", Kind.TEXT),
            Column("reason", Kind.TEXT),
            Column("occurred_at", Kind.TIMESTAMPTZ),
        ),
    ),
    _table(
        "OAuthClients",
        "oauth_clients",
        {
            "oauth_client_id": Kind.BIGINT,
            "client_id": Kind.TEXT,
            "account_id": Kind.BIGINT,
            "client_secret_hash": Kind.TEXT,
            "is_active": Kind.BOOLEAN,
        },
    ),
    _table("Providers", "providers", {"provider_id": Kind.BIGINT, "name": Kind.TEXT}),
    _table(
        "Models",
        "models",
        {
            "model_id": Kind.BIGINT,
            "provider_id": Kind.BIGINT,
            "name": Kind.TEXT,
            "is_active": Kind.BOOLEAN,
        },
    ),
    _table(
        "ModelPricing",
        "model_pricing",
        {
            "model_pricing_id": Kind.BIGINT,
            "model_id": Kind.BIGINT,
            "input_nano_per_1k": Kind.BIGINT,
            "output_nano_per_1k": Kind.BIGINT,
            "effective_from": Kind.TIMESTAMPTZ,
        },
    ),
    _table(
        "UsageSettlements",
        "usage_settlements",
        {"settlement_id": Kind.BIGINT, "replica_id": Kind.UUID, "usage_id": Kind.BIGINT},
    ),
)
"""Parents before children."""

BY_NAME: dict[str, Table] = {table.name: table for table in TRACKED}

LOGS = (("ChangeLog", "change_id"), ("UsageLog", "usage_id"), ("CreditLedger", "ledger_id"))
"""What is only ever appended to, and the column that numbers it."""
