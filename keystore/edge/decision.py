"""The answer to a check, and the pure rule that finds it. No I/O here.

What is made anew for each check is a named tuple: it takes a third of the time that a frozen
dataclass takes, and cannot be changed by one caller under the eyes of another.
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, NamedTuple, Protocol


class Reason(StrEnum):
    """Why a check was answered as it was. The values are stable; clients match on them."""

    OK = "ok"
    MALFORMED = "malformed"
    """No token at all, or one of our shape with a wrong checksum: a typing error or a probe."""
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    """The key has another status that allows no access, or the client is not active; it may come
    back."""
    EXPIRED = "expired"
    ACCOUNT_INACTIVE = "account_inactive"
    NETWORK = "network"
    """The client's address is not in the key's networks, or not known where it must be."""
    SERVICE = "service"
    """The key has no quota for the service, or the service is not active, or unknown. An OAuth
    client has no quotas, so it may be used for no service."""
    QUOTA_EXCEEDED = "quota_exceeded"
    """The key has used up its quota for the service, or all of its quotas."""
    RATE_LIMITED = "rate_limited"
    """The key has used up the rate of its plan for the moment; :attr:`RateLimit.retry_after`."""
    STALE = "stale"
    """The data are older than the key's plan allows: not "no", but "not now"."""
    OFFLINE = "offline"
    """The signatures of a replica's data have expired, and the grace after that is over."""
    NOT_SYNCED = "not_synced"
    """A replica that has never pulled knows nothing."""
    UNAVAILABLE = "unavailable"
    """The store cannot be read: a damaged file, a disk error, a lock that does not end."""

    @property
    def is_not_now(self) -> bool:
        """Whether the answer is "I do not know" (HTTP 503) rather than "no"."""
        return self in _NOT_NOW


_STATUS_REASONS = {"revoked": Reason.REVOKED, "exhausted": Reason.QUOTA_EXCEEDED}
_NOT_NOW = frozenset({Reason.STALE, Reason.OFFLINE, Reason.NOT_SYNCED, Reason.UNAVAILABLE})


Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Limit:
    """How long data from signed files may be used without contact; times are UTC text.

    At ``valid_until`` their signatures expire, at ``usable_until`` the grace after that has ended,
    too. ``is_in_grace``: it is between the two. ``is_over``: it is past both.
    """

    valid_until: str
    usable_until: str
    is_in_grace: bool
    is_over: bool


class Freshness(NamedTuple):
    """How current the data were: they are the origin's as of a change and a time.

    ``age_seconds`` is 0 at an origin. If this machine's clock is behind the origin's, or behind
    what it has shown itself, by more than a minute, it is at least the difference.

    ``limit`` is how long data from signed files may be used; others have no such end.
    """

    as_of_change: int
    as_of_at: str | None
    age_seconds: float
    limit: Limit | None = None


class Rate(NamedTuple):
    """What a plan allows each of its keys: so many checks in so many seconds.

    ``burst`` of them may come at once; then one comes back every ``window_seconds / limit``.
    """

    limit: int
    window_seconds: int
    burst: int


class RateLimit(NamedTuple):
    """What is left of a key's rate, after this check.

    ``remaining`` checks may follow at once; in ``reset_seconds`` all of the burst is there again.
    ``retry_after`` is how many seconds to wait, and 0 for a check that has passed.
    """

    rate: Rate
    remaining: int
    reset_seconds: float
    retry_after: float


class Held(Protocol):
    """Units of a quota that are left, as far as is known."""

    @property
    def remaining(self) -> int:
        """How many."""


class QuotaLeft:
    """What is left of a key's quota for a service.

    ``remaining`` goes on counting after the answer: it is what is left when it is read, in the file
    as far as it is known and in this process. ``renews_at`` is in Unix seconds; ``None``: never.
    """

    __slots__ = ("_held", "initial", "renews_at", "service")

    def __init__(self, held: Held, service: str, initial: int, renews_at: float | None) -> None:
        self._held, self.service = held, service
        self.initial, self.renews_at = initial, renews_at

    @property
    def remaining(self) -> int:
        """Units that are left."""
        return self._held.remaining

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {
            name: getattr(self, name) for name in ("service", "initial", "remaining", "renews_at")
        }


class ClientCredentials(NamedTuple):
    """What an OAuth client sends; the secret is not in its ``repr``."""

    client_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ClientCredentials(client_id={self.client_id!r})"


class Entry(NamedTuple):
    """What a store knows of one key or OAuth client, its account, its plan. Times: Unix seconds.

    ``principal`` is the id of a key, and that of a client times -1: key 13 is never client 13.
    """

    principal: int
    api_key: str | None
    is_active: bool
    status: str
    expires_at: float | None
    networks: tuple[Network, ...] | None
    label: str | None
    metadata: str | None
    account_id: int
    account: str | None
    account_is_active: bool
    plan: str | None
    max_staleness_seconds: int | None
    stale_action: str | None
    rate: Rate | None
    client_id: str | None = None


class Decision(NamedTuple):
    """The answer to a check. Identity fields are ``None`` where the token named nobody.

    ``principal_type`` is ``"api_key"`` or ``"oauth_client"``; a client has a ``client_id`` and no
    ``api_key``.

    ``expires_at`` is in Unix seconds, ``metadata`` the JSON text that the key was given, ``quota``
    is that of the service that was asked for. ``rate`` is ``None`` where the plan has no rate, and
    where the answer did not depend on it.
    """

    allowed: bool
    reason: Reason
    api_key: str | None = None
    api_key_id: int | None = None
    account: str | None = None
    account_id: int | None = None
    plan: str | None = None
    label: str | None = None
    metadata: str | None = None
    expires_at: float | None = None
    freshness: Freshness | None = None
    quota: QuotaLeft | None = None
    principal_type: str | None = None
    client_id: str | None = None
    rate: RateLimit | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, nested ones too, for JSON."""
        fresh, rate = self.freshness, self.rate
        return self._asdict() | {
            "freshness": fresh and fresh._asdict(),
            "quota": self.quota and self.quota.as_dict(),
            "rate": rate and rate._asdict() | {"rate": rate.rate._asdict()},
        }

    def with_rate(self, rate: RateLimit) -> "Decision":
        """Return the same answer with what is left of the rate; "no" if there is to be a wait."""
        if rate.retry_after:
            return self._replace(allowed=False, reason=Reason.RATE_LIMITED, rate=rate)
        # (a third of what _replace takes: this is done for every check of such a key)
        return tuple.__new__(Decision, (*self[:-1], rate))


def decide(
    entry: Entry,
    now: float,
    freshness: Freshness,
    ip: str | None = None,
    *,
    has_service: bool = True,
) -> Decision:
    """Apply the rules to what is known of who asks; ``now`` is in Unix seconds.

    ``has_service``: the key may be used for the service that is asked for, or none is. What is left
    of the rate is not looked at here.

    What says "no" for certain comes first: a revoked key is refused however old the data are,
    because a revocation is never taken back by being old.
    """
    reason = Reason.OK
    bound, limit = entry.max_staleness_seconds, freshness.limit
    if not entry.is_active:
        reason = _STATUS_REASONS.get(entry.status, Reason.SUSPENDED)
    elif entry.expires_at is not None and now >= entry.expires_at:
        reason = Reason.EXPIRED
    elif not entry.account_is_active or entry.plan is None:
        reason = Reason.ACCOUNT_INACTIVE
    elif entry.networks is not None and not _is_within(ip, entry.networks):
        reason = Reason.NETWORK
    elif not has_service:
        reason = Reason.SERVICE
    elif limit is not None and limit.is_over:
        reason = Reason.OFFLINE
    elif bound is not None and freshness.age_seconds > bound and entry.stale_action != "allow":
        reason = Reason.STALE
    is_client = entry.client_id is not None
    # (a third of what Decision(…) takes)
    return tuple.__new__(
        Decision,
        (
            reason is Reason.OK,
            reason,
            entry.api_key,
            None if is_client else entry.principal,
            entry.account,
            entry.account_id,
            entry.plan,
            entry.label,
            entry.metadata,
            entry.expires_at,
            freshness,
            None,
            "oauth_client" if is_client else "api_key",
            entry.client_id,
            None,
        ),
    )


def _is_within(ip: str | None, networks: tuple[Network, ...]) -> bool:
    if ip is None:
        return False
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    # ::ffff:192.0.2.1 is what a dual-stack socket calls the IPv4 client 192.0.2.1
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in networks)
