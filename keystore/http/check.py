"""Maps a request to a decision to a response; the servers only carry it. No I/O here.

===============================  ==================================================
``/check``                       may this key pass?
``/services/NAME/check``         may it be used for this service?
``/nginx/…`` before either       the same, for nginx's auth_request
``POST /v2/keys.verifyKey``      what Unkey's clients ask (:mod:`keystore.http.unkey`)
===============================  ==================================================

Any method, and any path below: Envoy appends the client's. What is asked for stands in the path,
which the operator of the proxy has written, and never in the query or in a header: with Envoy the
former is the client's, with the others the latter are.
"""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote

from keystore.edge.decision import ClientCredentials, Decision
from keystore.http.answers import Response, absent, answer, problem

CHECK_PATH = "/check"
SERVICES_PATH = "/services/"
NGINX_PATH = "/nginx"
VERIFY_PATH = "/v2/keys.verifyKey"
MAX_BODY_BYTES = 65_536
"""A body that is wanted may not be larger."""
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_MOST_PEERS = 1_000

Headers = Mapping[str, str]
"""Header values by lower-case name."""


class Checker(Protocol):
    """What answers checks; a :class:`keystore.edge.Validator` does."""

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide on a token."""

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide on an OAuth client."""


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
    _peers: dict[str, bool] = field(default_factory=dict, init=False, compare=False, repr=False)

    def trusts(self, peer: str | None) -> bool:
        """Whether what a peer says of others is believed."""
        if peer is None:
            return True
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= _MOST_PEERS:
                self._peers.clear()
            known = self._peers[peer] = self._is_trusted(peer)
        return known

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        # ::ffff:127.0.0.1 is what a dual-stack socket calls the IPv4 peer 127.0.0.1
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.trusted)


_DEFAULT = Settings()
_NOT_FOUND = problem(
    HTTPStatus.NOT_FOUND, f"There is nothing here; ask {CHECK_PATH} or {SERVICES_PATH}NAME/check."
)


def wants_body(method: str, target: str) -> bool:
    """Whether the answer depends on the request's body; all others are read past."""
    return method == "POST" and target.partition("?")[0] == VERIFY_PATH


def respond(checker: Checker, request: Request, settings: Settings = _DEFAULT) -> Response:
    """Answer one request."""
    asked = _asked(request.target.partition("?")[0])
    if asked is None:
        if not wants_body(request.method, request.target):
            return _NOT_FOUND
        from keystore.http.unkey import verify  # pydantic, for those who need it

        return verify(checker, request.body, client_of(request, settings))
    is_nginx, service = asked
    sent = credentials_of(request, settings)
    if sent is None:
        return absent(is_nginx=is_nginx)
    ip = client_of(request, settings)
    if isinstance(sent, str):
        decision = checker.check(sent, service=service, ip=ip)
        return answer(decision, service, is_nginx=is_nginx)
    decision = checker.check_client(*sent, service=service, ip=ip)
    return answer(decision, service, is_nginx=is_nginx, is_basic=True)


def credentials_of(
    request: Request, settings: Settings = _DEFAULT
) -> str | ClientCredentials | None:
    """Find the token; or else what ``Authorization: Basic …`` says, which may be nonsense."""
    return token_of(request, settings) or _basic_of(request)


def _basic_of(request: Request) -> ClientCredentials | None:
    """Read Basic credentials (RFC 7617), in UTF-8; those that cannot be read are empty."""
    scheme, _, encoded = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, _, secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return ClientCredentials("", "")
    return ClientCredentials(client_id, secret)


def token_of(request: Request, settings: Settings = _DEFAULT) -> str | None:
    """Find the token: ``Authorization: Bearer …``, ``X-API-Key``, or a query parameter if allowed.

    The query is the target's; or, from a trusted proxy, that of ``X-Original-URI`` or
    ``X-Forwarded-Uri``, where the proxy asks with a target of its own.
    """
    headers = request.headers
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip()):
        return token
    token = headers.get("x-api-key", "").strip()
    if token or settings.query_token is None:
        return token or None
    uris = [request.target]
    if settings.trusts(request.peer):
        uris += [headers.get("x-original-uri", ""), headers.get("x-forwarded-uri", "")]
    for uri in uris:
        fields = parse_qsl(uri.partition("?")[2])
        found = [value for name, value in fields if name == settings.query_token]
        if found:
            # Of two, whoever is behind the proxy might read the other one.
            return found[0] if len(found) == 1 else None
    return None


def client_of(request: Request, settings: Settings = _DEFAULT) -> str | None:
    """Return the client's address.

    That is the last entry of a trusted proxy's ``X-Forwarded-For``, the one that it added itself.
    """
    forwarded = request.headers.get("x-forwarded-for")
    if forwarded and settings.trusts(request.peer):
        return forwarded.rpartition(",")[2].strip() or request.peer
    return request.peer


def _asked(path: str) -> tuple[bool, str | None] | None:
    """Tell from a path whether nginx asks, and for which service; ``None``: it is no check."""
    is_nginx = path.startswith(NGINX_PATH + "/")
    if is_nginx:
        path = path[len(NGINX_PATH) :]
    service = None
    if path.startswith(SERVICES_PATH):
        name, slash, rest = path[len(SERVICES_PATH) :].partition("/")
        service, path = unquote(name), slash + rest
    is_check = path == CHECK_PATH or path.startswith(CHECK_PATH + "/")
    return (is_nginx, service) if is_check and service != "" else None
