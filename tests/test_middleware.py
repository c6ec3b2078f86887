"""The middlewares and the dependency: who may not pass never reaches the app, whoever asks how."""

import asyncio
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator as wsgi_validator

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from flask import Flask, request

from keystore import Decision, Reason, Store, Validator
from keystore.edge.decision import Rate, RateLimit
from keystore.http import asgi, wsgi
from keystore.http.answers import absent, answer
from keystore.http.check import Settings
from keystore.http.fastapi import require_key
from keystore.testing.memory import MemoryKeys

RATE = RateLimit(Rate(9, 9, 9), 0, 9.0, 1.0)
KEY = [("X-API-Key", "t")]
Pairs = list[tuple[str, str]]


class Fixed:
    """A checker with one answer, which notes what it was asked."""

    def __init__(self, reason: Reason = Reason.OK) -> None:
        rate = RATE if reason is Reason.RATE_LIMITED else None
        self.decision = Decision(reason is Reason.OK, reason, account="ada@example.org", rate=rate)
        self.asked: list[tuple[str, str | None, int, str | None]] = []

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        self.asked.append((token, service, cost, ip))
        return self.decision

    async def check_async(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        return self.check(token, service=service, cost=cost, ip=ip)


class Blocking(Fixed):
    """A checker that must not be asked on the event loop."""

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return super().check(token, service=service, cost=cost, ip=ip)

    async def check_async(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        return await asyncio.to_thread(self.check, token, service=service, cost=cost, ip=ip)


class Answer:
    """What a client got, and what the app saw: one entry for each time it was called."""

    def __init__(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytes, seen: list[Any]
    ) -> None:
        self.status, self.body, self.seen = status, body, seen
        self.headers = {name.lower(): value for name, value in headers}


def by_asgi(
    checker: Any, path: str = "/", headers: Pairs = KEY, method: str = "GET", **more: Any
) -> Answer:
    seen: list[Any] = []

    async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        seen.append((scope["keystore"], {name.decode().lower() for name, _ in scope["headers"]}))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"app"})

    return _asked(asgi.KeystoreMiddleware(app, checker, **more), path, headers, method, seen)


def by_fastapi(
    checker: Any, path: str = "/", headers: Pairs = KEY, method: str = "GET", **more: Any
) -> Answer:
    seen: list[Any] = []
    app = FastAPI()

    @app.api_route("/{path:path}", methods=[method])
    def index(decision: Annotated[Decision, Depends(require_key(checker, **more))]) -> str:
        seen.append((decision, set()))
        return "app"

    return _asked(app, path, headers, method, seen)


def _asked(app: Any, path: str, headers: Pairs, method: str, seen: list[Any]) -> Answer:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers=headers)

    got = asyncio.run(ask())
    return Answer(got.status_code, got.headers.items(), got.content, seen)


def by_wsgi(
    checker: Any, path: str = "/", headers: Pairs = KEY, method: str = "GET", **more: Any
) -> Answer:
    seen: list[Any] = []
    started: list[Any] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        names = {key[5:].replace("_", "-").lower() for key in environ if key.startswith("HTTP_")}
        seen.append((environ["keystore.decision"], names))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [] if method == "HEAD" else [b"app"]

    environ: dict[str, Any] = {"REQUEST_METHOD": method, "REMOTE_ADDR": "127.0.0.1"}
    environ["SCRIPT_NAME"] = ""
    environ["PATH_INFO"], _, environ["QUERY_STRING"] = path.partition("?")
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
    environ["wsgi.input"] = io.BytesIO()
    setup_testing_defaults(environ)
    whole = wsgi_validator(wsgi.KeystoreMiddleware(wsgi_validator(app), checker, **more))
    body = whole(environ, lambda status, headers, *_: started.append((status, headers)))  # type: ignore[arg-type]
    parts = b"".join(body)
    body.close()  # type: ignore[attr-defined]
    status, sent = started[0]
    return Answer(int(status.split()[0]), sent, parts, seen)


By = Callable[..., Answer]
EACH = pytest.mark.parametrize("by", [by_asgi, by_wsgi, by_fastapi])
WITH_SCOPE = pytest.mark.parametrize("by", [by_asgi, by_wsgi])
ON_A_LOOP = pytest.mark.parametrize("by", [by_asgi, by_fastapi])


@EACH
@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK])
def test_a_denial_is_the_servers_and_the_app_is_not_called(by: By, reason: Reason) -> None:
    checker = Fixed(reason)
    got, wanted = by(checker, service="search"), answer(checker.decision, "search")
    assert got.status == wanted.status
    assert got.headers.items() >= {name.lower(): value for name, value in wanted.headers}.items()
    assert got.seen == []
    if by is not by_fastapi:
        assert got.body == wanted.body
        assert got.headers["content-length"] == str(len(wanted.body))


@EACH
def test_without_a_key_the_app_is_not_called(by: By) -> None:
    checker = Fixed()
    for headers in ([], [("Authorization", "Digest x")], [("X-API-Key", " ")]):
        got = by(checker, "/?key=t", headers)
        assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")
        assert got.headers.items() >= {n.lower(): v for n, v in absent().headers}.items()
        assert got.seen == checker.asked == []


@EACH
def test_the_app_is_handed_the_decision(by: By) -> None:
    checker = Fixed()
    got = by(checker, "/a?b=c", [("Authorization", "Bearer t")], service="search")
    assert (got.status, len(got.seen)) == (200, 1)
    assert got.seen[0][0] is checker.decision
    assert checker.asked == [("t", "search", 1, "127.0.0.1")]


@WITH_SCOPE
@pytest.mark.parametrize("path", ["/", "/open"])
def test_forged_identity_never_reaches_the_app(by: By, path: str) -> None:
    names = ["X-Auth-Account", "x-auth-key", "X_Auth_Plan", "X-AUTH_SERVICE", "X-Auth-Anything"]
    forged = [(name, "forged") for name in names]
    got = by(Fixed(), path, [*KEY, *forged, ("X-Author", "me")], open_paths=["/open"])
    ((_, seen),) = got.seen
    assert {"x-author", "x-api-key"} <= seen
    assert not [name for name in seen if name.replace("_", "-").startswith("x-auth-")]


@WITH_SCOPE
def test_open_paths_need_no_key_and_only_exactly_they(by: By) -> None:
    checker = Fixed()
    got = by(checker, "/open?x=1", [], open_paths={"/open"})
    assert (got.status, got.seen[0][0], checker.asked) == (200, None, [])
    for path in ("/open/", "/opens", "/OPEN", "//open", "/", "/x/open"):
        assert by(checker, path, [], open_paths={"/open"}).status == 401


@EACH
def test_the_settings_are_the_servers(by: By) -> None:
    checker = Fixed()
    forwarded = [("X-Forwarded-For", "192.0.2.7")]
    by(checker, headers=[*KEY, *forwarded])
    by(checker, headers=[*KEY, *forwarded], settings=Settings(trusted=()))
    by(checker, "/x?key=q", forwarded, settings=Settings(query_token="key"))
    assert [(token, ip) for token, _, _, ip in checker.asked] == [
        ("t", "192.0.2.7"),
        ("t", "127.0.0.1"),
        ("q", "192.0.2.7"),
    ]


@ON_A_LOOP
@pytest.mark.parametrize("name", ["X-API-Key", "Authorization"])
def test_two_keys_in_one_request_are_refused(by: By, name: str) -> None:
    checker = Fixed()
    got = by(checker, headers=[(name, "Bearer one"), (name.lower(), "Bearer two")])
    assert (got.status, got.seen, checker.asked) == (400, [], [])


@ON_A_LOOP
def test_the_event_loop_is_never_held_up(by: By) -> None:
    checker = Blocking()
    assert by(checker).status == 200
    assert checker.asked


def test_a_denial_of_head_has_no_body() -> None:
    got = by_wsgi(Fixed(Reason.REVOKED), method="HEAD")
    assert (got.status, got.body) == (401, b"")
    assert int(got.headers["content-length"]) > 0
    (start, body), _ = talk(
        Fixed(Reason.REVOKED), {**websocket(), "type": "http", "method": "HEAD"}
    )
    assert (start["status"], body["body"]) == (401, b"")
    assert dict(start["headers"])[b"content-length"] != b"0"


@EACH
def test_an_error_of_the_checker_does_not_let_anybody_pass(by: By) -> None:
    class Broken(Fixed):
        def check(
            self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
        ) -> Decision:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        by(Broken())


# -- WebSockets and the rest of ASGI -----------------------------------------------------------


def talk(checker: Any, scope: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Give a scope to a middleware; return what it sends, and the scopes that the app gets."""
    sent: list[Any] = []
    seen: list[Any] = []

    async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        seen.append(scope)

    async def receive() -> asgi.Message:
        return {"type": "websocket.connect"}

    async def send(message: asgi.Message) -> None:
        sent.append(message)

    asyncio.run(asgi.KeystoreMiddleware(app, checker)(scope, receive, send))
    return sent, seen


def websocket(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    base = {"type": "websocket", "path": "/", "query_string": b"", "client": ("127.0.0.1", 1)}
    return {**base, "headers": list(headers), **more}


def test_a_websocket_needs_a_key_too() -> None:
    sent, seen = talk(Fixed(), websocket())
    assert (sent, seen) == ([{"type": "websocket.close", "code": 1008}], [])
    sent, (scope,) = talk(Fixed(), websocket((b"x-api-key", b"t"), (b"x-auth-key", b"forged")))
    assert (sent, scope["keystore"].allowed) == ([], True)
    assert scope["headers"] == [(b"x-api-key", b"t")]


def test_a_websocket_is_denied_in_full_where_the_server_can() -> None:
    scope = websocket((b"x-api-key", b"t"), extensions={"websocket.http.response": {}})
    (start, body), seen = talk(Fixed(Reason.RATE_LIMITED), scope)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert (b"retry-after", b"1") in start["headers"]
    assert (body["type"], seen) == ("websocket.http.response.body", [])


def test_the_lifespan_of_the_app_is_its_own() -> None:
    sent, seen = talk(Fixed(Reason.REVOKED), {"type": "lifespan"})
    assert (sent, seen) == ([], [{"type": "lifespan"}])


def test_a_scope_of_an_unknown_type_does_not_pass() -> None:
    with pytest.raises(KeyError):
        talk(Fixed(), {"type": "tomorrow"})


def test_a_unix_socket_has_no_address_and_is_trusted() -> None:
    checker = Fixed()
    talk(checker, websocket((b"x-api-key", b"t"), (b"x-forwarded-for", b"192.0.2.7"), client=None))
    assert [ip for _, _, _, ip in checker.asked] == ["192.0.2.7"]


# -- real servers, real frameworks, a real store ------------------------------------------------


def test_a_revocation_is_seen_by_the_next_request_through_uvicorn(store: Store) -> None:
    issued = store.issue_key("ada@example.org")
    api = FastAPI()

    with Validator(store.file.path) as validator:

        @api.get("/me")
        async def me(decision: Annotated[Decision, Depends(require_key(validator))]) -> str | None:
            return decision.account

        app = asgi.KeystoreMiddleware(api, validator, open_paths=["/docs"])
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                headers = {"Authorization": f"Bearer {issued.token}"}
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
                    assert client.get("/me").json() == "ada@example.org"
                    store.revoke_key(issued.key.api_key)
                    got = client.get("/me")
                    assert (got.status_code, got.json()["reason"]) == (401, "revoked")
                    assert client.get("/docs").status_code == 200
            finally:
                server.should_exit = True
                thread.join()


def test_flask_sees_the_decision(store: Store) -> None:
    issued = store.issue_key("ada@example.org")
    app = Flask("app")

    @app.get("/me")
    def me() -> str:
        assert "X-Auth-Account" not in request.headers
        return str(request.environ["keystore.decision"].account)

    with Validator(store.file.path) as validator:
        app.wsgi_app = wsgi.KeystoreMiddleware(app.wsgi_app, validator)  # type: ignore[method-assign]
        client = app.test_client()
        headers = {"X-API-Key": issued.token, "X-Auth-Account": "forged"}
        assert client.get("/me", headers=headers).text == "ada@example.org"
        store.revoke_key(issued.key.api_key)
        got = client.get("/me", headers=headers)
        assert (got.status_code, got.get_json()["reason"]) == (401, "revoked")


@EACH
def test_keys_in_memory_take_the_validators_place(by: By) -> None:
    keys = MemoryKeys()
    headers = [("X-API-Key", keys.issue(services=["search"], rate_limit=1))]
    got = [by(keys, headers=headers, service="search") for _ in range(2)]
    assert [answered.status for answered in got] == [200, 429]
    assert got[1].headers["ratelimit-policy"] == '"burst";q=1;w=60'
    assert by(keys, headers=headers, service="other").status == 403
    keys.fail()
    assert by(keys, headers=headers).status == 503


def test_the_documentation_of_a_fastapi_app_shows_how_to_send_a_key() -> None:
    app = FastAPI()

    @app.get("/")
    def index(decision: Annotated[Decision, Depends(require_key(Fixed()))]) -> None: ...

    schema = app.openapi()
    schemes = schema["components"]["securitySchemes"]
    assert schemes["HTTPBearer"]["scheme"] == "bearer"
    assert (schemes["APIKeyHeader"]["in"], schemes["APIKeyHeader"]["name"]) == (
        "header",
        "X-API-Key",
    )
    assert schema["paths"]["/"]["get"]["security"] == [
        {"HTTPBearer": []},
        {"HTTPBasic": []},
        {"APIKeyHeader": []},
    ]
    assert "parameters" not in schema["paths"]["/"]["get"]


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_without_fastapi_its_dependency_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from keystore.errors import KeystoreError\n"
        "try: import keystore.http.fastapi\n"
        "except KeystoreError as error: print(error.code, error.hint)"
    )
    assert python(program) == "unsupported_target pip install 'keystore[fastapi]'"


def test_the_middlewares_load_no_framework() -> None:
    heavy = ["fastapi", "starlette", "flask", "pydantic", "httptools", "click", "psycopg"]
    program = (
        "import sys, keystore.http.asgi, keystore.http.wsgi, keystore.testing.memory;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert python(program) == "[]"
