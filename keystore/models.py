"""What comes from outside, validated: command-line input, imports, request bodies.

The models check form only (an e-mail looks like one, a name is not blank). Whether a plan exists
is the store's to say.
"""

import re
import unicodedata
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from keystore.clock import utc_text
from keystore.errors import InvalidInputError

_OVERRIDES = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def _plain(text: str) -> str:
    # Control characters move terminals' cursors, bidirectional overrides forge what is read, lone
    # surrogates and NUL cannot be stored.
    if any(unicodedata.category(char) in {"Cc", "Cs"} or char in _OVERRIDES for char in text):
        msg = "must not contain control characters"
        raise ValueError(msg)
    return text


def _looks_like_an_address(text: str) -> str:
    if re.fullmatch(r"[^@\s]+@[^@\s]+", text) is None:
        msg = "must be an e-mail address, like ada@example.org"
        raise ValueError(msg)
    return text


def _network(text: str) -> str:
    try:
        return str(ip_network(text.strip()))
    except ValueError:
        msg = "must be a network like 192.0.2.0/24, with no bits set behind its mask, or an address"
        raise ValueError(msg) from None


def _to_utc(moment: datetime) -> datetime:
    # A time without a zone is read as UTC: what the store shows can be typed back in.
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        msg = "must be in the years 1000 to 2999"
        raise ValueError(msg) from None
    if not 1000 <= moment.year < 3000:
        msg = "must be in the years 1000 to 2999"
        raise ValueError(msg)
    return moment


Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_plain),
]
Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=254),
    AfterValidator(_looks_like_an_address),
    AfterValidator(_plain),
]
Moment = Annotated[datetime, AfterValidator(_to_utc)]
Network = Annotated[str, AfterValidator(_network)]
Units = Annotated[int, Field(ge=0, lt=2**63)]
Rated = Annotated[int, Field(gt=0, le=1_000_000_000)]
Renewal = Literal["never", "daily", "monthly"]


class Input(BaseModel):
    """Something from outside: nothing that is not known, nothing that changes, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PlanInput(Input):
    """A plan to add."""

    name: Text
    max_staleness_seconds: Annotated[int, Field(gt=0, lt=2**63)] | None = None
    stale_action: Literal["deny", "allow"] = "deny"
    rate_limit: Rated | None = None
    rate_window_seconds: Rated | None = None
    rate_burst: Rated | None = None

    @model_validator(mode="after")
    def _rate_is_whole(self) -> Self:
        if (self.rate_limit is None) != (self.rate_window_seconds is None):
            msg = "a rate is a number of checks and a number of seconds"
            raise ValueError(msg)
        if self.rate_burst is not None and self.rate_limit is None:
            msg = "a burst needs a rate"
            raise ValueError(msg)
        return self


class AccountInput(Input):
    """An account to add; e-mail addresses that differ only in ASCII case are the same."""

    email: Email
    plan: Text


class KeyInput(Input):
    """A key to issue; ``expires_at`` without a zone is UTC."""

    account: Email
    label: Text | None = None
    expires_at: Moment | None = None
    networks: tuple[Network, ...] = ()
    metadata: dict[str, JsonValue] | None = None
    quotas: dict[Text, Units] = Field(default_factory=dict)
    renewal: Renewal = "never"


class ExpiryInput(Input):
    """A key's expiry, or none."""

    expires_at: Moment | None


class ReasonInput(Input):
    """Why a key changes its status."""

    reason: Text | None


class QuotaInput(Input):
    """Units of a service for a key."""

    service: Text
    quota: Units
    renewal: Renewal = "never"


class ServiceInput(Input):
    """A service to add."""

    name: Text


class StatusInput(Input):
    """A status to add."""

    name: Text
    description: Text | None = None
    allows_access: bool = False


class UsageKeyInput(Input):
    """A key for usage files, to enroll."""

    label: Text | None = None


class UsageInput(Input):
    """Usage to log; the principal is named by its external identity, or its internal id."""

    principal_type: Literal["api_key", "oauth_client", "session"]
    principal: Annotated[int, Field(ge=-(2**63), lt=2**63)] | Text
    # (no more than a check may cost: an hour of it can be summed within 64 bits)
    amount: Annotated[int, Field(ge=0, le=1 << 40)]
    request_id: Text | None = None


class Plan(BaseModel):
    """A plan as the store holds it; ``accounts`` counts those on it."""

    plan_id: int
    name: str
    max_staleness_seconds: int | None
    stale_action: str
    rate_limit: int | None
    rate_window_seconds: int | None
    rate_burst: int | None
    accounts: int
    created_at: str
    updated_at: str

    @property
    def rate(self) -> str:
        """The rate as ``plan add --rate`` takes it, with the burst; ``any`` without one."""
        if self.rate_limit is None:
            return "any"
        burst = f", {self.rate_burst} at once" if self.rate_burst else ""
        return f"{self.rate_limit}/{self.rate_window_seconds}s{burst}"


class Account(BaseModel):
    """An account as the store holds it, with its plan's name, and how many keys and clients."""

    account_id: int
    email: str
    plan_id: int
    plan: str | None
    is_active: bool
    keys: int
    clients: int
    created_at: str
    updated_at: str


class APIKey(BaseModel):
    """A key as the store holds it, without its hash; ``account`` is the account's e-mail."""

    api_key_id: int
    api_key: str
    account_id: int
    account: str | None
    is_active: bool
    status: str
    status_reason: str | None
    label: str | None
    expires_at: str | None
    allowed_networks: str | None
    metadata: str | None
    created_at: str
    updated_at: str

    @property
    def state(self) -> str:
        """The status, or ``expired`` for a key that would pass if its time were not over."""
        is_over = self.expires_at is not None and self.expires_at <= utc_text()
        return "expired" if self.is_active and is_over else self.status

    @property
    def expires(self) -> str:
        """The day on which the key expires, or ``never``."""
        return self.expires_at[:10] if self.expires_at else "never"


class Service(BaseModel):
    """A service as the store holds it; ``keys`` counts those with a quota for it."""

    service_id: int
    name: str
    is_active: bool
    keys: int
    created_at: str
    updated_at: str


class Status(BaseModel):
    """A status that keys may have; ``keys`` counts those that have it."""

    status_id: int
    name: str
    description: str | None
    is_active: bool
    allows_access: bool
    keys: int
    created_at: str
    updated_at: str


class StatusEvent(BaseModel):
    """One change of a key's status."""

    status: str
    old_status: str | None
    reason: str | None
    occurred_at: str


class Quota(BaseModel):
    """What a key may use of a service; ``remaining_quota`` is what the origin has written down.

    ``left`` is without what was used here since or taken to be spent, with a renewal that is due.
    """

    service: str
    initial_quota: int
    remaining_quota: int
    left: int
    renewal: str
    renews_at: str | None
    updated_at: str


class PlanQuota(BaseModel):
    """What a key that is issued on a plan gets of a service."""

    plan: str
    service: str
    initial_quota: int
    renewal: str
    updated_at: str


class IssuedKey(BaseModel):
    """A fresh key with its token, which exists here and nowhere else."""

    key: APIKey
    token: str = Field(repr=False)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], what: str, **values: object) -> _Model:
    """Build ``model`` from outside values.

    Raises:
        InvalidInputError: names the first field that is wrong, and why, on one line.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise InvalidInputError(
            f"{what}: {where} {first['input']!r}: {why}.",
            hint="Nothing was written; correct it and try again.",
        ) from None
