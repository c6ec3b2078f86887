"""An ASGI middleware: requests reach the app with a key that may pass, or not at all."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from keystore.edge.decision import Decision
from keystore.http.answers import Response, absent, answer, is_identity, problem
from keystore.http.check import Request, Settings, client_of, credentials_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CREDENTIALS = frozenset({"authorization", "x-api-key"})
_EXTENSION = "websocket.http.response"
_POLICY_VIOLATION = 1008


class AsyncChecker(Protocol):
    """What answers checks without holding up the event loop; a ``Validator`` does."""

    async def check_async(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        """Decide on a token."""

    async def check_client_async(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        """Decide on an OAuth client."""


class KeystoreMiddleware:
    """Checks the key or OAuth client of each HTTP request and WebSocket before ``app`` sees it.

    The app finds the :class:`keystore.Decision` in ``scope["keystore"]``, and no ``X-Auth-…``
    header that a client has sent. A denial is answered as by ``keystore serve``.

    Args:
        app: the ASGI application.
        validator: a ``Validator``, or ``keystore.testing.memory.MemoryKeys``.
        service: the service that keys must have a quota for; ``None`` asks for none.
        open_paths: paths, exactly so, that need no key; ``scope["keystore"]`` is ``None`` there.
        settings: which proxies are trusted, and whether a token may be in the query.
    """

    def __init__(
        self,
        app: App,
        validator: AsyncChecker,
        *,
        service: str | None = None,
        open_paths: Collection[str] = (),
        settings: Settings | None = None,
    ) -> None:
        self._app = app
        self._validator = validator
        self._service = service
        self._open_paths = frozenset(open_paths)
        self._settings = settings or Settings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then call the app or answer in its place."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        found: Decision | Response | None = None
        if scope["path"] not in self._open_paths:
            found = await ask(self._validator, scope, self._service, self._settings)
        if isinstance(found, Response):
            await _refuse(found, scope, receive, send)
            return
        kept = [pair for pair in scope["headers"] if not is_identity(pair[0].decode("latin-1"))]
        await self._app({**scope, "headers": kept, "keystore": found}, receive, send)


async def ask(
    validator: AsyncChecker, scope: Scope, service: str | None, settings: Settings
) -> Decision | Response:
    """Return the decision on a request that may pass, and the answer to one that may not."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in _CREDENTIALS and name in headers:
            # The app might read the other one.
            return problem(HTTPStatus.BAD_REQUEST, "There is more than one key in the request.")
        headers[name] = raw_value.decode("latin-1")
    target = f"?{scope['query_string'].decode('latin-1')}"
    peer = scope.get("client")
    request = Request(scope.get("method", "GET"), target, headers, peer[0] if peer else None)
    sent = credentials_of(request, settings)
    if sent is None:
        return absent()
    ip, is_basic = client_of(request, settings), not isinstance(sent, str)
    if isinstance(sent, str):
        decision = await validator.check_async(sent, service=service, ip=ip)
    else:
        decision = await validator.check_client_async(*sent, service=service, ip=ip)
    return decision if decision.allowed else answer(decision, service, is_basic=is_basic)


async def _refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    prefix = "http"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if _EXTENSION not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})  # the client: 403
            return
        prefix = "websocket.http"
    length = ("Content-Length", str(len(response.body)))
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in (*response.headers, length)
    ]
    start = {"type": f"{prefix}.response.start", "status": response.status.value}
    await send({**start, "headers": headers})
    body = b"" if scope.get("method") == "HEAD" else response.body
    await send({"type": f"{prefix}.response.body", "body": body})
