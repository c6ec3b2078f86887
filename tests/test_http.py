"""The check endpoint: what each proxy relies on, first the pure function, then a real server."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystore import Decision, Reason, Store, Validator
from keystore.edge.decision import Freshness, Limit
from keystore.http import connection as http_connection
from keystore.http import service as http_service
from keystore.http.check import Request, Settings, respond, token_of
from keystore.http.counts import Counts

IDENTITY = {"X-Auth-Reason", "X-Auth-Key", "X-Auth-Account", "X-Auth-Plan"}
FRESHNESS = {"X-Auth-As-Of-Change", "X-Auth-Age-Seconds", "X-Auth-Grace-Until"}


class Fixed:
    """A checker with one answer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[str] = []

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        self.asked.append(token)
        return self.decision


def answer(reason: Reason) -> Fixed:
    return Fixed(
        Decision(
            allowed=reason is Reason.OK,
            reason=reason,
            api_key="01890a5d-ac96-774b-bcce-b302099a8057",
            account="ada@example.org",
            plan="free\r\nX-Injected: 1",
            freshness=Freshness(7, "2026-11-20 12:00:00", 3.9),
        )
    )


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.OK, 200),
        (Reason.MALFORMED, 401),
        (Reason.UNKNOWN, 401),
        (Reason.REVOKED, 401),
        (Reason.SUSPENDED, 401),
        (Reason.EXPIRED, 401),
        (Reason.NETWORK, 403),
        (Reason.ACCOUNT_INACTIVE, 403),
        (Reason.SERVICE, 403),
        (Reason.RATE_LIMITED, 429),
        (Reason.STALE, 503),
        (Reason.OFFLINE, 503),
        (Reason.NOT_SYNCED, 503),
        (Reason.UNAVAILABLE, 503),
    ],
)
def test_each_reason_has_its_status_and_its_headers(reason: Reason, status: int) -> None:
    response = respond(answer(reason), Request("GET", "/check", {"x-api-key": "t"}))
    headers = dict(response.headers)
    assert response.status == status
    assert ("WWW-Authenticate" in headers) == (status in {401, 403})
    assert ("Retry-After" in headers) == (status == 503)
    assert headers["X-Auth-Status"] == str(status)
    assert json.loads(response.body)["reason"] == reason.value


def test_every_reason_has_a_status() -> None:
    for reason in Reason:
        assert respond(answer(reason), Request("GET", "/check", {"x-api-key": "t"})).status in {
            200,
            401,
            403,
            429,
            503,
        }


@pytest.mark.parametrize("reason", list(Reason))
def test_every_identity_header_is_always_there_and_empty_when_denied(reason: Reason) -> None:
    headers = dict(respond(answer(reason), Request("GET", "/check", {"x-api-key": "t"})).headers)
    assert headers.keys() >= IDENTITY | FRESHNESS
    if reason is not Reason.OK:
        assert headers["X-Auth-Account"] == headers["X-Auth-Key"] == headers["X-Auth-Plan"] == ""


def test_no_value_can_split_a_header() -> None:
    headers = dict(respond(answer(Reason.OK), Request("GET", "/check", {"x-api-key": "t"})).headers)
    assert headers["X-Auth-Plan"] == "free%0D%0AX-Injected:%201"
    assert headers["X-Auth-Age-Seconds"] == "3"


@pytest.mark.parametrize("is_in_grace", [True, False])
def test_an_answer_in_the_grace_says_until_when(is_in_grace: bool) -> None:
    limit = Limit("2026-11-20 12:00:00", "2026-12-20 12:00:00", is_in_grace, is_over=False)
    fresh = Freshness(7, "2026-11-20 12:00:00", 3.9, limit)
    checker = Fixed(Decision(allowed=True, reason=Reason.OK, freshness=fresh))
    headers = dict(respond(checker, Request("GET", "/check", {"x-api-key": "t"})).headers)
    assert headers["X-Auth-Grace-Until"] == ("2026-12-20 12:00:00" if is_in_grace else "")


@pytest.mark.parametrize("path", ["/check", "/check/", "/check/any/path?x=1", "/check?a"])
def test_any_path_below_check_is_asked(path: str) -> None:
    assert (
        respond(answer(Reason.OK), Request("GET", path, {"x-api-key": "t"})).status is HTTPStatus.OK
    )


@pytest.mark.parametrize("path", ["/", "/checks", "/healthy", "", "*", "/CHECK"])
def test_any_other_path_is_not_found(path: str) -> None:
    checker = answer(Reason.OK)
    assert respond(checker, Request("GET", path, {"x-api-key": "t"})).status is HTTPStatus.NOT_FOUND
    assert checker.asked == []


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer   abc "}, "abc"),
        ({"x-api-key": " abc "}, "abc"),
        ({"authorization": "Basic abc", "x-api-key": "def"}, "def"),
        ({"authorization": "Bearer"}, None),
        ({"x-api-key": ""}, None),
        ({}, None),
    ],
)
def test_where_the_token_is_found(headers: dict[str, str], token: str | None) -> None:
    assert token_of(Request("GET", "/check", headers)) == token


def test_without_a_token_nobody_is_asked_and_the_challenge_names_no_error() -> None:
    checker = answer(Reason.OK)
    response = respond(checker, Request("GET", "/check?token=abc", {}))
    assert response.status is HTTPStatus.UNAUTHORIZED
    assert dict(response.headers)["WWW-Authenticate"] == "Bearer"
    assert checker.asked == []


@given(
    st.text(max_size=30),
    st.dictionaries(st.sampled_from(["authorization", "x-api-key"]), st.text()),
)
def test_no_request_raises(path: str, headers: dict[str, str]) -> None:
    respond(answer(Reason.UNKNOWN), Request("GET", path, headers))


# -- the server, as a real process -------------------------------------------------------------


class Server:
    """`keystore serve` as a process of its own."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keystore", "serve", "--db", str(path), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = "".join(self.process.stdout.readline() for _ in range(3))
        self.port = int(json.loads(said)["url"].rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, shut the writing side, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as conn:
            conn.sendall(data)
            conn.shutdown(socket.SHUT_WR)
            parts = []
            while part := conn.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    made = Server(store.file.path)
    yield made
    made.stop(signal.SIGKILL)


def test_a_real_server_allows_denies_and_sees_a_revocation_at_once(
    store: Store, server: Server
) -> None:
    issued = store.issue_key("ada@example.org")
    conn = server.connect()
    for method in ("GET", "POST", "DELETE", "HEAD"):
        conn.request(method, "/check/x", headers={"Authorization": f"Bearer {issued.token}"})
        response = conn.getresponse()
        response.read()
        assert (response.status, response.headers["X-Auth-Key"]) == (200, issued.key.api_key)
    store.revoke_key(issued.key.api_key)
    conn.request("GET", "/check", headers={"X-API-Key": issued.token})
    response = conn.getresponse()
    assert json.loads(response.read())["reason"] == "revoked"
    assert response.status == 401
    conn.close()


def test_sigterm_ends_the_server_with_open_connections_and_flushes_usage(
    store: Store, server: Server
) -> None:
    issued = store.issue_key("ada@example.org")
    conn = server.connect()
    for _ in range(5):
        conn.request("GET", "/check", headers={"X-API-Key": issued.token})
        conn.getresponse().read()
    code, errors = server.stop(signal.SIGTERM)
    conn.close()
    assert (code, errors) == (0, "")
    assert store.status().usage_total == 5


def test_pipelined_requests_are_answered_in_order(store: Store, server: Server) -> None:
    token = store.issue_key("ada@example.org").token
    one = f"GET /check HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n"
    two = "GET /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answered = server.raw((one + one + two).encode())
    assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"200", b"200", b"404"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /check HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET /check HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
    ],
)
def test_a_bad_request_is_refused_and_the_server_lives(
    server: Server, request_bytes: bytes, status: bytes
) -> None:
    assert server.raw(request_bytes).split()[1] == status
    assert server.raw(b"GET /check HTTP/1.0\r\n\r\n").split()[1] == b"401"


def test_a_credential_in_a_trailer_is_not_one(store: Store, server: Server) -> None:
    token = store.issue_key("ada@example.org").token
    head = "POST /check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answered = server.raw(f"{head}3\r\nabc\r\n0\r\nX-API-Key: {token}\r\n\r\n".encode())
    assert answered.split()[1] == b"401"


@pytest.mark.parametrize("name", ["X-API-Key", "Authorization"])
def test_two_credentials_are_refused(store: Store, server: Server, name: str) -> None:
    token = store.issue_key("ada@example.org").token
    value = f"Bearer {token}" if name == "Authorization" else token
    lines = f"GET /check HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n{name.lower()}: {value}\r\n\r\n"
    assert server.raw(lines.encode()).split()[1] == b"400"


def test_a_header_that_never_ends_is_cut(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as conn:
        conn.sendall(b"GET /check HTTP/1.1\r\nX-Endless: ")
        with pytest.raises(OSError, match=r".*"):
            for _ in range(1000):
                conn.sendall(b"a" * 65536)


def test_a_client_that_never_reads_is_not_read_from_for_ever(store: Store, server: Server) -> None:
    token = store.issue_key("ada@example.org").token
    request = f"GET /check HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n".encode() * 500
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as conn:
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                conn.sendall(request)
        assert server.stop(signal.SIGTERM)[0] == 0


def test_a_key_that_cannot_be_read_is_not_now(store: Store, server: Server) -> None:
    token = store.issue_key("ada@example.org").token
    store.file.conn.execute("PRAGMA ignore_check_constraints = ON")
    store.file.conn.execute("UPDATE APIKeys SET expires_at = 'tomorrow'")
    conn = server.connect()
    conn.request("GET", "/check", headers={"X-API-Key": token})
    response = conn.getresponse()
    assert (response.status, response.headers["X-Auth-Reason"]) == (503, "unavailable")
    conn.close()
    store.file.conn.execute("UPDATE APIKeys SET expires_at = NULL")


def test_bodies_are_read_past(store: Store, server: Server) -> None:
    token = store.issue_key("ada@example.org").token
    conn = server.connect()
    for _ in range(2):
        conn.request("POST", "/check", body=b"x" * 200_000, headers={"X-API-Key": token})
        response = conn.getresponse()
        assert (response.status, response.read()) == (200, b'{"allowed": true, "reason": "ok"}\n')
    conn.close()


def test_a_silent_connection_is_closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "HEADER_SECONDS", 0.05)

    async def connect_and_say_nothing() -> bytes:
        loop = asyncio.get_running_loop()
        with Validator(store.file.path) as validator:
            service = http_service.Service(validator, Settings(), Counts())
            listening = await loop.create_server(
                lambda: http_connection.Connection(service), "127.0.0.1", 0
            )
            async with listening:
                port = listening.sockets[0].getsockname()[1]
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while not reader.at_eof():
                    service.sweep()
                    await asyncio.sleep(0.01)
                answer = await reader.read()
                writer.close()
        return answer

    assert asyncio.run(connect_and_say_nothing()) == b""


def test_a_taken_port_is_a_one_line_error(store: Store, server: Server) -> None:
    command = [sys.executable, "-m", "keystore", "serve", "--db", str(store.file.path)]
    done = subprocess.run(
        [*command, "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("keystore: cannot listen on 127.0.0.1")
    assert done.stderr.count("\n") == 1
