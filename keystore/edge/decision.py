"""The answer to a check, and the pure rule that finds it. No I/O here."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a check was answered as it was. The values are stable; clients match on them."""

    OK = "ok"
    MALFORMED = "malformed"
    """No token at all, or one of our shape with a wrong checksum: a typing error or a probe."""
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    ACCOUNT_INACTIVE = "account_inactive"
    STALE = "stale"
    """The data are older than the key's plan allows: not "no", but "not now"."""
    NOT_SYNCED = "not_synced"
    """A replica that has never pulled knows nothing."""
    UNAVAILABLE = "unavailable"
    """The store cannot be read: a damaged file, a disk error, a lock that does not end."""

    @property
    def is_not_now(self) -> bool:
        """Whether the answer is "I do not know" (HTTP 503) rather than "no"."""
        return self in _NOT_NOW


_NOT_NOW = frozenset({Reason.STALE, Reason.NOT_SYNCED, Reason.UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the data were: they are the origin's as of a change and a time.

    ``age_seconds`` is 0 at an origin. If this machine's clock is behind the origin's by more than
    a minute, it is the difference: one of the two is wrong by so much.
    """

    as_of_change: int
    as_of_at: str | None
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store knows of one token: the key, its account, its plan. Times are Unix seconds."""

    api_key_id: int
    api_key: str
    is_active: bool
    expires_at: float | None
    account_id: int
    account: str | None
    account_is_active: bool
    plan: str | None
    max_staleness_seconds: int | None
    stale_action: str | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a check. Identity fields are ``None`` where the token named nobody."""

    allowed: bool
    reason: Reason
    api_key: str | None = None
    api_key_id: int | None = None
    account: str | None = None
    account_id: int | None = None
    plan: str | None = None
    freshness: Freshness | None = None


def decide(entry: Entry, now: float, freshness: Freshness) -> Decision:
    """Apply the rules to what is known of a token; ``now`` is in Unix seconds.

    What says "no" for certain comes first: a revoked key is refused however old the data are,
    because a revocation is never taken back by being old.
    """
    reason = Reason.OK
    bound = entry.max_staleness_seconds
    if not entry.is_active:
        reason = Reason.REVOKED
    elif entry.expires_at is not None and now >= entry.expires_at:
        reason = Reason.EXPIRED
    elif not entry.account_is_active or entry.plan is None:
        reason = Reason.ACCOUNT_INACTIVE
    elif bound is not None and freshness.age_seconds > bound and entry.stale_action != "allow":
        reason = Reason.STALE
    return Decision(
        allowed=reason is Reason.OK,
        reason=reason,
        api_key=entry.api_key,
        api_key_id=entry.api_key_id,
        account=entry.account,
        account_id=entry.account_id,
        plan=entry.plan,
        freshness=freshness,
    )
