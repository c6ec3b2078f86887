"""What a hub knows of those who sync with it: the fleet, and who has which revocation."""

from dataclasses import dataclass

from keystore.errors import InvalidInputError, NotFoundError
from keystore.sync.hub_connection import HubConnection, hub_errors
from keystore.tokens import key_names

STALE_AFTER_SECONDS = 86_400
"""For how long a store may be silent before it counts as stale."""


@dataclass(frozen=True, slots=True)
class Member:
    """One store that syncs with a hub, as of its last call there.

    Times are UTC text. ``age_seconds`` is how old its data are, ``silent_seconds`` how long ago it
    called, both by the hub's clock. ``behind`` counts the changes that its origin has pushed since
    and it has not; ``None`` if the origin pushes elsewhere, below 0 if it has some that the hub has
    not. Of an origin ``as_of_…`` tell what it
    has pushed; ``None`` before its first push is done.
    """

    store_id: str
    incarnation: str
    role: str
    origin_id: str
    program_version: str
    schema_version: int
    as_of_change: int | None
    as_of_at: str | None
    behind: int | None
    age_seconds: float | None
    last_seen_at: str
    silent_seconds: float
    seen_revocation: int
    missing_revocations: int
    is_stale: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """A store that has a revocation, or should have; ``last_seen_at`` is when it last called."""

    store_id: str
    incarnation: str
    role: str
    last_seen_at: str
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Receipt:
    """A revocation, who has it, and who has not; ``age_seconds`` ago by the hub's clock."""

    origin_id: str
    revocation_id: int
    api_key: str
    reason: str | None
    revoked_at: str
    age_seconds: float
    have: list[Holder]
    lack: list[Holder]


def fleet(hub: HubConnection, *, stale_after_seconds: int = STALE_AFTER_SECONDS) -> list[Member]:
    """Return every store and replica that has called, each origin before its replicas.

    Stale is whose data are older than the strictest ``max_staleness_seconds`` of its origin's
    plans, or who has been silent for longer than ``stale_after_seconds``.

    Raises:
        TargetError: whatever the hub says.
    """
    _ = hub.target_id
    with hub_errors():
        return [Member(*row) for row in hub.rows("fleet", stale_after=stale_after_seconds)]


def receipts(hub: HubConnection, key: str | None = None) -> list[Receipt]:
    """Return the revocations, newest first, or those of one key, and who has them.

    Who has not called since a revocation has not got it, as far as is known.

    Raises:
        NotFoundError: that key was not revoked here.
        TargetError: whatever the hub says.
    """
    members = fleet(hub)  # first: who calls in between is told of as before, never as too good
    names = dict.fromkeys(("api_key", "api_key_hash")) if key is None else key_names(key)
    with hub_errors():
        rows = hub.rows("receipts", **names)
    if key is not None and not rows:
        raise NotFoundError(
            "that key was not revoked at this hub.",
            hint="`keystore revoke` does it; an origin's own revocations come with its rows.",
        )
    holders: dict[str, list[tuple[int, Holder]]] = {}
    for member in members:
        holders.setdefault(member.origin_id, []).append((member.seen_revocation, _holder(member)))
    found = []
    for origin_id, number, api_key, reason, revoked_at, age in rows:
        known = holders.get(origin_id, [])
        have = [holder for seen, holder in known if seen >= number]
        lack = [holder for seen, holder in known if seen < number]
        found.append(Receipt(origin_id, number, api_key, reason, revoked_at, age, have, lack))
    return found


def forget(hub: HubConnection, replica_id: str) -> int:
    """Take a retired replica off the list; return how many incarnations of it there were.

    It appears again should it call again.

    Raises:
        NotFoundError: the hub knows no such replica.
        InvalidInputError: it is an origin.
    """
    _ = hub.target_id
    with hub_errors():
        gone = hub.rows("forget_replica", store_id=replica_id)
        if gone:
            return len(gone)
        if hub.row("is_origin", store_id=replica_id)[0]:
            raise InvalidInputError(
                f"{replica_id} is an origin: its rows are at the hub.",
                hint="Only replicas are forgotten.",
            )
    raise NotFoundError(
        f"the hub knows no replica {replica_id}.", hint="`keystore fleet` lists them."
    )


def _holder(member: Member) -> Holder:
    return Holder(
        member.store_id,
        member.incarnation,
        member.role,
        member.last_seen_at,
        member.silent_seconds,
    )
