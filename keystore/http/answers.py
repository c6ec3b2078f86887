"""Maps a decision to a response: status, headers, body. No I/O here.

Proxies get 200 for yes and never 204, 401, 403 and 429 for no, 503 with ``Retry-After`` for "not
now" and nothing else. Every identity header is in every answer, empty where there is no identity: a
proxy that copies them must overwrite what a client sent under the same name.

nginx's auth_request makes 500 of all that is not 200, 401 or 403. For it 429 and 503 become 403,
and ``X-Auth-Status`` says what they were.
"""

import json
import re
import time
from dataclasses import dataclass, field
from functools import cache, lru_cache
from http import HTTPStatus
from math import ceil
from urllib.parse import quote

from keystore.edge.decision import Decision, QuotaLeft, RateLimit, Reason

Pairs = tuple[tuple[str, str], ...]
"""Header names and values, in order."""

RETRY_AFTER_SECONDS = 5
MOST_KEPT = 16_384
"""Answers kept, about 2 KB each, before all are dropped."""

_DETAILS = {
    Reason.MALFORMED: "There is no key in the request, or it has a typing error.",
    Reason.UNKNOWN: "No such key.",
    Reason.REVOKED: "The key is revoked.",
    Reason.SUSPENDED: "The key's status allows no access.",
    Reason.EXPIRED: "The key has expired.",
    Reason.ACCOUNT_INACTIVE: "The key's account is not active.",
    Reason.NETWORK: "The key may not be used from this address.",
    Reason.SERVICE: "The key may not be used for this service.",
    Reason.QUOTA_EXCEEDED: "The key has used up its quota.",
    Reason.RATE_LIMITED: "The key has used up its rate for now.",
    Reason.STALE: "The data are older than the key's plan allows.",
    Reason.OFFLINE: "This replica was without contact for longer than it may be.",
    Reason.NOT_SYNCED: "This replica has never synced.",
    Reason.UNAVAILABLE: "The store cannot be read.",
}
_CLIENT_DETAILS = {
    Reason.MALFORMED: "The Basic credentials cannot be read.",
    Reason.UNKNOWN: "No such client, or another secret.",
    Reason.SUSPENDED: "The client is not active.",
    Reason.ACCOUNT_INACTIVE: "The client's account is not active.",
    Reason.SERVICE: "An OAuth client has no quotas, so it may be used for no service.",
    Reason.RATE_LIMITED: "The client has used up its rate for now.",
    Reason.STALE: "The data are older than the client's plan allows.",
}
_FORBIDDEN = frozenset({Reason.ACCOUNT_INACTIVE, Reason.NETWORK, Reason.SERVICE})
_TOO_MANY = frozenset({Reason.RATE_LIMITED, Reason.QUOTA_EXCEEDED})
_NGINX = frozenset({HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_INVALID = ("WWW-Authenticate", 'Bearer error="invalid_token"')
# In one header, for proxies and frameworks that keep one value for a name.
_BASIC = ("WWW-Authenticate", 'Basic realm="keystore", charset="UTF-8", Bearer')
_INSUFFICIENT = ("WWW-Authenticate", 'Bearer error="insufficient_scope"')
_NO_STORE = ("Cache-Control", "no-store")
# Unless a value is printable ASCII without a space at its ends, it is percent-encoded.
_PLAIN = re.compile(r"[!-$&-~](?:[ -$&-~]*[!-$&-~])?")
_UNENCODED = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; the body is JSON, Prometheus' text, or empty.

    The answer for a key may be the same object for as long as the decision is; a server may put
    into ``wire`` what it has made of it, to send that again.
    """

    status: HTTPStatus
    headers: Pairs
    body: bytes
    wire: dict[bool, bytes] = field(default_factory=dict, compare=False, repr=False)


# By the decision's identity: to hash its fields would take longer than all the rest. The decision
# is held, so that no other one can have its id.
_kept: dict[tuple[int, str | None, bool], tuple[Decision, Response]] = {}


def answer(
    decision: Decision,
    service: str | None = None,
    *,
    is_nginx: bool = False,
    is_basic: bool = False,
) -> Response:
    """Answer a check for ``service`` with ``decision``; the identity is left out of a denial.

    ``is_basic``: an OAuth client has asked, with Basic credentials.
    """
    if not decision.allowed or decision.rate is not None:
        return _made(decision, service, is_nginx=is_nginx, is_basic=is_basic)
    key = (id(decision), service, is_nginx)
    kept = _kept.get(key)
    if kept is None:
        kept = (decision, _made(decision, service, is_nginx=is_nginx, is_basic=is_basic))
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        _kept[key] = kept
    return kept[1]


@cache
def absent(*, is_nginx: bool = False) -> Response:
    """Answer a request without a key: the challenge names no error then (RFC 6750, section 3)."""
    made = answer(Decision(allowed=False, reason=Reason.MALFORMED), is_nginx=is_nginx)
    challenge = ("WWW-Authenticate", "Bearer")
    headers = tuple(challenge if pair == _INVALID else pair for pair in made.headers)
    return Response(made.status, headers, made.body)


def problem(
    status: HTTPStatus, detail: str, *more: tuple[str, str], reason: Reason | None = None
) -> Response:
    """Make a response with an RFC 9457 problem as its body, and ``more`` headers."""
    body: dict[str, object] = {"type": "about:blank", "title": status.phrase}
    body |= {"status": status.value, "detail": detail}
    if reason is not None:
        body["reason"] = reason.value
    headers = (("Content-Type", "application/problem+json"), _NO_STORE, *more)
    return Response(status, headers, json.dumps(body).encode() + b"\n")


def status_of(decision: Decision) -> HTTPStatus:
    """Return the status that a decision has."""
    if decision.allowed:
        return HTTPStatus.OK
    reason = decision.reason
    if reason.is_not_now:
        return HTTPStatus.SERVICE_UNAVAILABLE
    if reason in _TOO_MANY:
        return HTTPStatus.TOO_MANY_REQUESTS
    return HTTPStatus.FORBIDDEN if reason in _FORBIDDEN else HTTPStatus.UNAUTHORIZED


def is_identity(name: str) -> bool:
    """Whether a request header is named as only answers may name one, to an app behind CGI too."""
    return name.lower().replace("_", "-").startswith("x-auth-")


def _made(decision: Decision, service: str | None, *, is_nginx: bool, is_basic: bool) -> Response:
    start = _start(decision.allowed, decision.reason, is_nginx=is_nginx, is_basic=is_basic)
    fresh, limit = decision.freshness, decision.freshness and decision.freshness.limit
    if decision.allowed:
        identity = _identity(
            decision.api_key, decision.client_id, decision.account, decision.plan, service
        )
    else:
        identity = _NOBODY
    headers = (
        *start.headers,
        *identity,
        ("X-Auth-As-Of-Change", str(fresh.as_of_change) if fresh else ""),
        ("X-Auth-Age-Seconds", str(int(fresh.age_seconds)) if fresh else ""),
        ("X-Auth-Grace-Until", _text(limit.usable_until if limit and limit.is_in_grace else None)),
    )
    if decision.rate is not None:
        headers += _rate(decision.rate)
    elif decision.quota is not None and decision.reason is Reason.QUOTA_EXCEEDED:
        headers += _quota(decision.quota)
    return Response(start.status, headers, start.body)


@lru_cache(MOST_KEPT)
def _identity(
    api_key: str | None,
    client_id: str | None,
    account: str | None,
    plan: str | None,
    service: str | None,
) -> Pairs:
    """Write an identity; of keys with a rate each answer is another, but this part is not."""
    return (
        ("X-Auth-Key", _text(api_key)),
        ("X-Auth-Client", _text(client_id)),
        ("X-Auth-Account", _text(account)),
        ("X-Auth-Plan", _text(plan)),
        ("X-Auth-Service", _text(service)),
    )


@cache
def _start(allowed: bool, reason: Reason, *, is_nginx: bool, is_basic: bool) -> Response:
    """Return what is the same in all answers with a reason."""
    real = status_of(Decision(allowed, reason))
    status = HTTPStatus.FORBIDDEN if is_nginx and real not in _NGINX else real
    named: Pairs = (("X-Auth-Status", str(real.value)), ("X-Auth-Reason", reason.value))
    if allowed:
        # Without a body: all is said in the headers, and proxies that do not read one (nginx, Caddy
        # 2.6) would close the connection after each check.
        return Response(status, (_NO_STORE, *named), b"")
    if real is HTTPStatus.UNAUTHORIZED:
        named = (_BASIC if is_basic else _INVALID, *named)
    elif real is HTTPStatus.FORBIDDEN and not is_basic:
        named = (_INSUFFICIENT, *named)
    elif real is HTTPStatus.SERVICE_UNAVAILABLE:
        named = (("Retry-After", str(RETRY_AFTER_SECONDS)), *named)
    details = _DETAILS | _CLIENT_DETAILS if is_basic else _DETAILS
    return problem(status, details[reason], *named, reason=reason)


def _rate(left: RateLimit) -> Pairs:
    """Write what is left of a rate (draft-ietf-httpapi-ratelimit-headers); in whole seconds."""
    limit, window, burst = left.rate
    headers: Pairs = (
        ("RateLimit-Policy", f'"burst";q={burst};w={-(-window * burst // limit)}'),
        ("RateLimit", f'"burst";r={left.remaining};t={ceil(left.reset_seconds)}'),
    )
    if left.retry_after:
        headers += (("Retry-After", str(ceil(left.retry_after))),)
    return headers


def _quota(left: QuotaLeft) -> Pairs:
    """Write what is left of a quota that does not suffice; a yes is kept, and names no number."""
    policy, limit = f'"quota";q={left.initial}', f'"quota";r={left.remaining}'
    if left.renews_at is None:  # nothing to wait for
        return (("RateLimit-Policy", policy), ("RateLimit", limit))
    seconds = max(1, ceil(left.renews_at - time.time()))
    return (
        ("RateLimit-Policy", policy),
        ("RateLimit", f"{limit};t={seconds}"),
        ("Retry-After", str(seconds)),
    )


def _text(value: str | None) -> str:
    """Write a header value; what could break, split or change one is percent-encoded."""
    if not value or _PLAIN.fullmatch(value):
        return value or ""
    return quote(value, safe=_UNENCODED, errors="surrogatepass")


_NOBODY = _identity(None, None, None, None, None)
