"""What a hub knows of accounts: what they have used at all edges, and what they have."""

from dataclasses import dataclass, field

from keystore.sync.hub_connection import HubConnection, hub_errors


@dataclass(frozen=True, slots=True)
class ServiceTotal:
    """What an account has used of a service, at so many stores; ``None``: of no service.

    ``service`` is also ``None`` if its origin has deleted it.
    """

    service_id: int | None
    service: str | None
    units: int
    stores: int


@dataclass(slots=True)
class AccountTotal:
    """What an account of an origin has used, in units, and what its ledger sums to.

    ``account`` is its e-mail; ``None`` if it is deleted. ``account_id`` is ``None`` for usage of
    principals without an account. ``balance_nano`` is in nano-credits, ``None`` without a ledger.
    """

    origin_id: str
    account_id: int | None
    account: str | None
    balance_nano: int | None
    units: int = 0
    services: list[ServiceTotal] = field(default_factory=list)


def totals(hub: HubConnection) -> list[AccountTotal]:
    """Return the totals of each account, across all stores that have handed usage up.

    Raises:
        TargetError: whatever the hub says.
    """
    _ = hub.target_id
    with hub_errors():
        rows = hub.rows("account_totals")
    found: dict[tuple[str, int | None], AccountTotal] = {}
    for origin_id, account_id, account, service_id, service, units, stores, balance in rows:
        nano = None if balance is None else int(balance)
        total = found.setdefault(
            (origin_id, account_id), AccountTotal(origin_id, account_id, account, nano)
        )
        if stores:
            total.units += int(units)
            total.services.append(ServiceTotal(service_id, service, int(units), stores))
    return list(found.values())
