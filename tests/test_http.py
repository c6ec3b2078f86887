"""The server, as a real process; what it answers is in test_contract.py."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from keystore import Store, Validator
from keystore.http import connection as http_connection
from keystore.http import service as http_service
from keystore.http.check import Settings
from keystore.http.counts import Counts
from tests.serving import Server


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
        assert (response.status, response.read()) == (200, b"")
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
