"""Maps a request to a decision to a response; the servers only carry it. No I/O here.

What proxies need: 200 for yes and never 204, 401 and 403 for no, 503 with ``Retry-After`` for "not
now" and nothing else, any method on any path below ``/check``. Every identity header is in every
answer, empty where there is no identity: a proxy that copies them must overwrite what a client
sent under the same name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple, Protocol
from urllib.parse import quote

from keystore.edge.decision import Decision, Reason

CHECK_PATH = "/check"
RETRY_AFTER_SECONDS = 5
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_PRINTABLE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"

Headers = Mapping[str, str]
"""Header values by lower-case name."""


class Checker(Protocol):
    """What answers checks; a :class:`keystore.edge.Validator` does."""

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide on a token."""


class Request(NamedTuple):
    """An HTTP request, as far as an answer depends on it.

    ``target`` is the request target, query string included; ``peer`` the address that connected,
    ``None`` for a Unix socket; ``body`` is empty unless :func:`wants_body` says that it is read.
    """

    method: str
    target: str
    headers: Headers
    peer: str | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator has decided about requests."""

    trusted: tuple[IPv4Network | IPv6Network, ...] = LOOPBACK
    """Proxies whose ``X-Forwarded-For`` is believed; a Unix socket's peer always is."""
    query_token: str | None = None
    """Name of a query parameter that may hold the token; ``None``: none may."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response with a JSON body."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes


def wants_body(method: str, target: str) -> bool:
    """Whether the answer depends on the request's body; all others are read past."""
    return False


def respond(checker: Checker, request: Request, settings: Settings | None = None) -> Response:
    """Answer one request.

    The client's address is what the proxy says: the last entry of ``X-Forwarded-For``, which is the
    one that the proxy added itself, else ``peer``.
    """
    path = request.target.partition("?")[0]
    if path != CHECK_PATH and not path.startswith(CHECK_PATH + "/"):
        return _json(HTTPStatus.NOT_FOUND, {"error": f"not found; ask {CHECK_PATH}"}, ())
    token = token_of(request.headers)
    if token is None:
        challenge = (("WWW-Authenticate", "Bearer"),)
        return _answer(Decision(allowed=False, reason=Reason.MALFORMED), challenge)
    return _answer(checker.check(token, ip=_client(request.headers) or request.peer), ())


def token_of(headers: Headers) -> str | None:
    """Find the token: ``Authorization: Bearer …`` or ``X-API-Key``, never the query string."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None


def _client(headers: Headers) -> str:
    return headers.get("x-forwarded-for", "").rpartition(",")[2].strip()


def _answer(decision: Decision, headers: tuple[tuple[str, str], ...]) -> Response:
    status = _status(decision)
    if status is HTTPStatus.UNAUTHORIZED and not headers:
        headers = (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
    elif status is HTTPStatus.FORBIDDEN:
        headers = (("WWW-Authenticate", 'Bearer error="insufficient_scope"'),)
    elif status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = (("Retry-After", str(RETRY_AFTER_SECONDS)),)
    who = decision if decision.allowed else None
    fresh = decision.freshness
    limit = fresh.limit if fresh else None
    identity = (
        ("X-Auth-Reason", decision.reason.value),
        ("X-Auth-Key", _text(who and who.api_key)),
        ("X-Auth-Account", _text(who and who.account)),
        ("X-Auth-Plan", _text(who and who.plan)),
        ("X-Auth-As-Of-Change", _text(fresh and fresh.as_of_change)),
        ("X-Auth-Age-Seconds", _text(fresh and int(fresh.age_seconds))),
        ("X-Auth-Grace-Until", _text(limit.usable_until if limit and limit.is_in_grace else None)),
    )
    body = {"allowed": decision.allowed, "reason": decision.reason.value}
    return _json(status, body, headers + identity)


def _status(decision: Decision) -> HTTPStatus:
    if decision.allowed:
        return HTTPStatus.OK
    if decision.reason.is_not_now:
        return HTTPStatus.SERVICE_UNAVAILABLE
    if decision.reason is Reason.RATE_LIMITED:
        return HTTPStatus.TOO_MANY_REQUESTS
    if decision.reason in {Reason.ACCOUNT_INACTIVE, Reason.NETWORK, Reason.SERVICE}:
        return HTTPStatus.FORBIDDEN
    return HTTPStatus.UNAUTHORIZED


def _text(value: object) -> str:
    """Write a header value; what could break or split a header is percent-encoded."""
    return "" if value is None else quote(str(value), safe=_PRINTABLE)


def _json(status: HTTPStatus, body: object, headers: tuple[tuple[str, str], ...]) -> Response:
    fixed = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
    return Response(status, fixed + headers, json.dumps(body).encode() + b"\n")
