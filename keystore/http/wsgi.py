"""A WSGI middleware: requests reach the app with a key that may pass, or not at all."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from keystore.edge.decision import Decision
from keystore.http.answers import Response, absent, answer, is_identity
from keystore.http.check import Checker, Request, Settings, client_of, credentials_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_PREFIX = "HTTP_"


class KeystoreMiddleware:
    """Checks the key or OAuth client of each request before ``app`` sees it.

    The app finds the :class:`keystore.Decision` in ``environ["keystore.decision"]``, and no
    ``X-Auth-…`` header that a client has sent. A denial is answered as by ``keystore serve``.

    Args:
        app: the WSGI application.
        validator: a ``Validator``, or ``keystore.testing.memory.MemoryKeys``.
        service: the service that keys must have a quota for; ``None`` asks for none.
        open_paths: paths, exactly so, that need no key; the decision is ``None`` there.
        settings: which proxies are trusted, and whether a token may be in the query.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        validator: Checker,
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

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Check, then call the app or answer in its place."""
        found: Decision | Response | None = None
        if environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "") not in self._open_paths:
            found = self._ask(environ)
        if isinstance(found, Response):
            status = f"{found.status.value} {found.status.phrase}"
            length = ("Content-Length", str(len(found.body)))
            start_response(status, [*found.headers, length])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [found.body]
        kept = {
            name: value
            for name, value in environ.items()
            if not (name.startswith(_PREFIX) and is_identity(name[len(_PREFIX) :]))
        }
        return self._app({**kept, "keystore.decision": found}, start_response)

    def _ask(self, environ: "WSGIEnvironment") -> Decision | Response:
        headers = {
            name[len(_PREFIX) :].lower().replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith(_PREFIX)
        }
        target = f"?{environ.get('QUERY_STRING', '')}"
        # gunicorn and uwsgi leave it empty for a Unix socket
        peer = environ.get("REMOTE_ADDR") or None
        request = Request(environ["REQUEST_METHOD"], target, headers, peer)
        sent = credentials_of(request, self._settings)
        if sent is None:
            return absent()
        ip, is_basic = client_of(request, self._settings), not isinstance(sent, str)
        if isinstance(sent, str):
            decision = self._validator.check(sent, service=self._service, ip=ip)
        else:
            decision = self._validator.check_client(*sent, service=self._service, ip=ip)
        return decision if decision.allowed else answer(decision, self._service, is_basic=is_basic)
