"""`keystore serve`: sockets, limits, its end, and what it never says. Real processes."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from keystore import Store, Validator
from keystore.db import SCHEMA_VERSION, open_store
from keystore.http import service as http_service
from keystore.http.check import MAX_BODY_BYTES, Settings
from keystore.http.connection import Connection
from keystore.http.counts import Counts
from keystore.http.service import Service
from keystore.sync import engine
from keystore.sync.memory import MemoryHub
from keystore.testing.postgres import free_port
from tests.serving import COMMAND, Server, read_all

Start = Callable[..., Server]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts servers of a store, and kills what is left of them in the end."""
    made: list[Server] = []

    def make(*options: object, path: Path = store.file.path, **others: object) -> Server:
        made.append(Server(path, *options, **others))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.stop(signal.SIGKILL)


@pytest.fixture
def token(store: Store) -> str:
    return store.issue_key("ada@example.org").token


def refused(*options: object) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *map(str, options)], capture_output=True, text=True, timeout=20, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


# -- where it listens --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_serves_its_group_and_goes_with_the_server(
    start: Start, token: str, tmp_path: Path, workers: int
) -> None:
    place = tmp_path / "keystore.sock"
    server = start("--unix", place, "--workers", workers)
    assert server.url == f"unix:{place}"
    assert stat.S_IMODE(place.stat().st_mode) == 0o660
    asked = f"GET /check HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\nConnection: close\r\n\r\n"
    assert server.raw(asked.encode()).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == (0, "")
    assert not place.exists()


def test_a_stale_unix_socket_is_replaced_and_nothing_else_is(
    store: Store, start: Start, tmp_path: Path
) -> None:
    stale, file, empty = tmp_path / "stale.sock", tmp_path / "file", tmp_path / "folder"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(stale))
    file.write_text("mine")
    empty.mkdir()
    server = start("--unix", stale, "--unix-mode", "600")
    assert stat.S_IMODE(stale.stat().st_mode) == 0o600
    for place in (stale, file, empty):
        code, errors = refused("--db", store.file.path, "--unix", place)
        assert (code, errors.count("\n")) == (1, 1)
    assert file.read_text() == "mine"
    assert empty.is_dir()
    assert server.raw(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_unix_socket_that_is_another_servers_by_now_stays(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "keystore.sock"
    first = start("--unix", place)
    place.unlink()
    second = start("--unix", place)
    assert first.stop()[0] == 0
    assert second.raw(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104
def test_an_address_that_others_can_reach_needs_to_be_said_so(
    store: Store, host: str, workers: int
) -> None:
    code, errors = refused(
        "--db", store.file.path, "--port", 0, "--host", host, "--workers", workers
    )
    assert code == 1
    assert "--public" in errors
    assert errors.count("\n") == 1


def test_with_public_any_address_of_the_machine_will_do(store: Store) -> None:
    # (an address that no machine has: nothing here is to be reached from elsewhere)
    options = ("--db", store.file.path, "--port", 0, "--host", "192.0.2.1", "--public")
    code, errors = refused(*options)
    assert code == 1
    assert errors.startswith("keystore: cannot listen on 192.0.2.1")


@pytest.mark.parametrize(
    "options",
    [
        ("--unix", "x.sock", "--port", "1"),
        ("--unix", "x.sock", "--public"),
        ("--unix-mode", "rw"),
        ("--trust-proxy", "everybody"),
        ("--trust-proxy", "192.0.2.1/24"),
        ("--workers", "0"),
        ("--max-pending", "0"),
        ("--flush-seconds", "0"),
        ("--flush-seconds", "nan"),
        ("--query-token", ""),
        ("--query-token", "a&b"),
        ("--unix", ""),
        ("--unix-mode", "600"),
        ("--trust-proxy", "10.0.0.1/8"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(store: Store, options: tuple[str]) -> None:
    assert refused("--db", store.file.path, *options)[0] == 2


def test_a_token_in_the_query_counts_only_under_the_name_that_is_given(
    start: Start, token: str
) -> None:
    server = start("--query-token", "key", "--trust-proxy", "192.0.2.0/24")
    assert server.get(f"/check?key={token}").status == 200
    assert server.get(f"/check?token={token}").status == 401


# -- what a client may send --------------------------------------------------------------------


AMBIGUOUS_OR_TOO_MUCH = [
    ("GET /check HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    ("GET /check HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400),
    ("GET /check HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nX-API-Key: a\0b\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nX-API-Key: a\x01b\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nX-API-Key: a\rX: b\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nX-API-Key: a\r\n b\r\n\r\n", 400),
    ("GET /check HTTP/1.1\r\nX-API-Key : a\r\n\r\n", 400),
    ("GET /check HTTP/1.1\nX-API-Key: a\n\n", 400),
    ("GET /ch\0eck HTTP/1.1\r\n\r\n", 400),
    ("GET /ch\x7feck HTTP/1.1\r\n\r\n", 400),
    ("STEAL /check HTTP/1.1\r\n\r\n", 400),
    ("POST /check HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    ("GET /check HTTP/1.1\r\n" + "X: y\r\n" * 129 + "\r\n", 431),
    ("GET /check HTTP/1.1\r\n" + f"X: {'y' * 1000}\r\n" * 70 + "\r\n", 431),
    ("GET /" + "a" * 20_000 + " HTTP/1.1\r\n\r\n", 414),
    ("GET /" + "a" * 20_000, 414),
    (f"GET /check HTTP/1.1\r\nX: {'y' * 70_000}", 431),
]


def test_what_two_readers_could_read_in_two_ways_or_is_too_much_is_refused(start: Start) -> None:
    server = start()
    for lines, status in AMBIGUOUS_OR_TOO_MUCH:
        answered = server.raw(lines.encode())
        statuses = re.findall(rb"HTTP/1.1 (\d+)", answered)
        assert statuses == [str(status).encode()], lines[:200]
        assert b"Connection: close" in answered
    assert server.get("/healthz").status == 200


@pytest.mark.parametrize("what", ["trailer", "extension"])
def test_what_never_ends_behind_the_headers_is_cut_too(start: Start, what: str) -> None:
    begin = b"POST /check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    begin += b"0\r\nX: " if what == "trailer" else b"5;x="
    with start().socket() as conn:
        conn.sendall(begin)
        with pytest.raises(ConnectionError):  # and not that nobody reads on
            for _ in range(1000):
                conn.sendall(b"a" * 65536)


def test_requests_of_every_shape_are_answered_in_order_on_one_connection(
    start: Start, token: str
) -> None:
    key = f"Host: x\r\nX-API-Key: {token}\r\n"
    requests = [
        (f"GET /check HTTP/1.1\r\n{key}\r\n", b"200"),
        (f"GET http://example.org/check HTTP/1.1\r\n{key}\r\n", b"200"),
        (f"GET http://example.org HTTP/1.1\r\n{key}\r\n", b"404"),
        (f"GET http://example.org?/check HTTP/1.1\r\n{key}\r\n", b"404"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (f"POST /check HTTP/1.1\r\n{key}Content-Length: 5\r\n\r\nGET /", b"200"),
        (
            f"PUT /check HTTP/1.1\r\n{key}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"200",
        ),
        ("GET /check HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
        ("GET /healthz?x HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (f"GET /check HTTP/1.1\r\n{key}Connection: close\r\n\r\n", b"200"),
        (f"GET /check HTTP/1.1\r\n{key}\r\n", None),
    ]
    answered = start().raw("".join(lines for lines, _ in requests).encode())
    statuses = [status for _, status in requests if status is not None]
    assert re.findall(rb"HTTP/1.1 (\d+)", answered) == statuses
    assert re.findall(rb"\r\nConnection: ([a-z-]+)", answered) == [
        *[b"keep-alive"] * (len(statuses) - 1),
        b"close",
    ]


def test_an_upgrade_is_ignored_and_what_comes_right_behind_it_not_read(
    start: Start, token: str
) -> None:
    key = f"Host: x\r\nX-API-Key: {token}\r\n"
    upgrade = f"GET /check HTTP/1.1\r\n{key}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    server = start()
    with server.socket() as conn:
        for _ in range(2):
            conn.sendall(upgrade.encode())
            assert conn.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.raw(upgrade.encode() * 1000).count(b"HTTP/1.1 200 ") == 1


def test_http_1_0_is_closed_unless_it_asks_otherwise(start: Start, token: str) -> None:
    server = start()
    once = f"GET /check HTTP/1.0\r\nX-API-Key: {token}\r\n\r\n"
    kept = f"GET /check HTTP/1.0\r\nX-API-Key: {token}\r\nConnection: keep-alive\r\n\r\n"
    for lines, answers in ((once * 2, 1), (kept * 2 + once, 3)):
        assert server.raw(lines.encode()).count(b"HTTP/1.1 200 OK") == answers


def test_the_answer_to_head_is_that_to_get_without_the_body(start: Start, token: str) -> None:
    server = start()
    for key, has_body in ((token, False), ("guess", True)):
        get, head = (
            server.raw(f"{method} /check HTTP/1.0\r\nX-API-Key: {key}\r\n\r\n".encode())
            for method in ("GET", "HEAD")
        )
        lines, _, body = get.partition(b"\r\n\r\n")
        assert bool(body) == has_body
        assert head == lines + b"\r\n\r\n"


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(start: Start, token: str) -> None:
    head = f"POST /check HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\nContent-Length: 3\r\n"
    with start().socket() as conn:
        conn.sendall(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        assert conn.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        conn.sendall(b"abc")
        assert read_all(conn).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_wanted_is_read_up_to_its_bound(start: Start, is_chunked: bool) -> None:
    server = start()
    for size, status in ((MAX_BODY_BYTES, 400), (MAX_BODY_BYTES + 1, 413)):
        body = b"x" * size
        head = "POST /v2/keys.verifyKey HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        if is_chunked:
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        else:
            head += f"Content-Length: {size}\r\n"
        assert int(server.raw(head.encode() + b"\r\n" + body).split()[1]) == status


def test_unkeys_request_is_answered(start: Start, token: str) -> None:
    conn = start().connect()
    conn.request("POST", "/v2/keys.verifyKey", json.dumps({"key": token}))
    response = conn.getresponse()
    assert json.loads(response.read())["data"]["code"] == "VALID"
    conn.close()


# -- slow clients, and many of them ------------------------------------------------------------


def served_in_process(path: Path, sent: bytes) -> bytes:
    """Serve in this process, whose limits a test may set; return all that comes back."""

    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        with Validator(path) as validator:
            service = Service(validator, Settings(), Counts())
            listening = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0)
            async with listening:
                port = listening.sockets[0].getsockname()[1]
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                answer = asyncio.ensure_future(reader.read())
                while not answer.done():
                    service.sweep()
                    await asyncio.sleep(0.01)
                writer.close()
        return answer.result()

    return asyncio.run(asyncio.wait_for(ask(), 20))


@pytest.mark.parametrize(
    ("limit", "sent", "status"),
    [
        ("HEADER_SECONDS", b"", b""),
        ("HEADER_SECONDS", b"G", b"408"),
        ("HEADER_SECONDS", b"GET /check HTTP/1.1\r\nHost: x\r\nX-", b"408"),
        ("IDLE_SECONDS", b"POST /check HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", b"408"),
        ("IDLE_SECONDS", b"GET /check HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
    ],
)
def test_a_client_that_dawdles_is_cut(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes, status: bytes
) -> None:
    monkeypatch.setattr(http_service, limit, 0.05)
    monkeypatch.setattr(http_service, "LINGER_SECONDS", 0.05)
    answered = served_in_process(store.file.path, sent)
    assert answered.split()[1:2] == ([status] if status else [])


def test_connections_past_the_cap_are_told_so_and_the_others_go_on(start: Start) -> None:
    server = start(most_files=138)
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    kept = [server.socket() for _ in range(10)]
    try:
        for conn in kept:
            conn.sendall(health)
            assert conn.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.raw(b"").startswith(b"HTTP/1.1 503 ")
        kept[0].sendall(health)
        assert kept[0].recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        for conn in kept:
            conn.close()
    while not server.raw(health).startswith(b"HTTP/1.1 200 "):
        pass  # until it has seen that they are closed
    assert server.metrics()["keystore_http_refused_total{kind=connections}"] >= 1


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_sigterm_under_load_loses_no_answered_use(
    store: Store, start: Start, token: str, workers: int
) -> None:
    server = start("--workers", workers)
    enough = threading.Barrier(5)

    def ask_until_it_ends() -> tuple[int, int]:
        answered = sent = 0
        conn = server.connect()
        try:
            while True:
                sent += 1
                conn.request("GET", "/check", headers={"X-API-Key": token})
                response = conn.getresponse()
                response.read()
                answered += response.status == HTTPStatus.OK
                if answered == 50:
                    enough.wait(20)
        except OSError:
            return answered, sent
        finally:
            conn.close()

    def ask() -> tuple[int, int]:
        try:
            return ask_until_it_ends()
        except Exception as error:  # a connection that is closed between two requests
            raise AssertionError(type(error).__name__) from error

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        enough.wait(20)
        assert server.stop() == (0, "")
        counts = [one.result(20) for one in asking]
    assert sum(answered for answered, _ in counts) <= store.status().usage_total
    assert store.status().usage_total <= sum(sent for _, sent in counts)


def test_what_is_begun_is_answered_before_the_end(store: Store, start: Start, token: str) -> None:
    server = start()
    lines = f"GET /check HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n".encode()
    with server.socket() as conn, server.socket() as idle:
        conn.sendall(lines + lines[:30])
        assert conn.recv(65536).startswith(b"HTTP/1.1 200 ")
        os.kill(server.process.pid, signal.SIGTERM)
        assert idle.recv(1) == b""  # who waits for a request is not waited for
        conn.sendall(lines[30:])
        answered = read_all(conn)
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in answered
    assert server.stop() == (0, "")
    assert store.status().usage_total == 2


def ask_when_it_listens(port: int, token: str) -> int:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(1000):
        try:
            conn.request("GET", "/check", headers={"X-API-Key": token})
            return conn.getresponse().status
        except ConnectionRefusedError:
            time.sleep(0.02)  # it says nothing, and has not begun
        finally:
            conn.close()
    raise AssertionError("it never listens")


@pytest.mark.parametrize("workers", [1, 2])
def test_signal_upon_signal_loses_no_use(
    store: Store, start: Start, token: str, workers: int
) -> None:
    server = start("--workers", workers, "--flush-seconds", 3600)
    for _ in range(20):
        assert server.get("/check", token).status == 200
    targets = [*server.children(), server.process.pid]
    while server.process.poll() is None:
        for process_id in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGTERM)
                os.kill(process_id, signal.SIGINT)
        time.sleep(0.001)  # the kernel delivers many at once as one
    assert store.status().usage_total == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_standard_output_holds_up_nothing(store: Store, token: str, workers: int) -> None:
    port = free_port()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    command = [*COMMAND, "--db", str(store.file.path), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=writing, stderr=writing
    )
    try:
        assert ask_when_it_listens(port, token) == 200
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(reading)
        os.close(writing)
    assert store.status().usage_total == 1


# -- health ------------------------------------------------------------------------------------


def test_a_server_is_ready_once_it_has_synced_and_not_past_the_strictest_plan(
    store: Store, start: Start, tmp_path: Path, token: str
) -> None:
    path, hub = tmp_path / "replica.db", MemoryHub()
    store.add_plan("strict", max_staleness_seconds=600)
    store.add_plan("lenient", max_staleness_seconds=60, stale_action="allow")
    report = engine.Report("memory:")
    engine.push(store.file, hub, "memory:", report)
    engine.replicate(hub, "memory:", path, report)
    server = start(path=path)
    states = []
    with open_store(path) as file:
        for age in (0, 300, 900):
            file.conn.execute(
                "UPDATE StoreInfo SET as_of_at = datetime('now', ?)", (f"-{age} seconds",)
            )
            server.stop()
            server = start(path=path)
            answer = server.get("/readyz")
            states.append((answer.status, json.loads(answer.body)["reason"]))
            assert ("Retry-After" in answer.headers) == (answer.status == 503)
            assert server.get("/healthz").status == 200
        file.conn.execute("UPDATE StoreInfo SET as_of_change = NULL, as_of_at = NULL")
    server.stop()
    answer = start(path=path).get("/readyz")
    states.append((answer.status, json.loads(answer.body)["reason"]))
    assert states == [(200, "ok"), (200, "ok"), (503, "stale"), (503, "not_synced")]


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_no_token_is_ever_said(store: Store, start: Start, token: str, workers: int) -> None:
    debug = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
    server = start("--workers", workers, "--query-token", "key", environment=debug)
    for lines in (
        f"GET /check?key={token} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /check HTTP/1.1\r\nX-API-Key: {token}\r\nX-API-Key: {token}\r\n\r\n",
        f"GET /check HTTP/1.1\r\nX-API-Key: {token}\0\r\n\r\n",
        f"GET /check?key={token}\x01 HTTP/1.1\r\n\r\n",
        f"GET /{token * 500} HTTP/1.1\r\n\r\n",
        f"{token}\r\n\r\n",
        f"POST /v2/keys.verifyKey HTTP/1.1\r\nContent-Length: 70\r\n\r\n{token:70}",
        f"GET /check HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n",
    ):
        assert server.raw(lines.encode()).startswith(b"HTTP/1.1 ")
    store.file.conn.execute("PRAGMA user_version = 99")
    assert server.get("/check", token).status == 503
    store.file.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    _, errors = server.stop()
    assert token not in errors
    assert token[-20:] not in errors


def test_an_error_of_ours_is_503_and_said_without_what_was_sent(start: Start, token: str) -> None:
    program = (
        "import keystore.http.connection as connection\n"
        "from keystore.cli import main\n"
        "def respond(checker, request, settings): raise ValueError(repr(request))\n"
        "connection.respond = respond\n"
        "main()\n"
    )
    server = start(program=program, environment={"PYTHONASYNCIODEBUG": "1"})
    assert server.get("/check", token).status == 503
    assert server.metrics()["keystore_http_refused_total{kind=error}"] == 1
    code, errors = server.stop()
    assert code == 0
    assert "ValueError" in errors
    assert token not in errors


def test_an_error_in_the_loop_is_said_without_what_was_sent(start: Start, token: str) -> None:
    program = (
        "import keystore.http.connection as connection\n"
        "from keystore.cli import main\n"
        "def data_received(self, data): raise ValueError(repr(data))\n"
        "connection.Connection.data_received = data_received\n"
        "main()\n"
    )
    server = start(program=program, environment={"PYTHONASYNCIODEBUG": "1"})
    lines = f"GET /check HTTP/1.1\r\nX-API-Key: {token}\r\n\r\n".encode()
    assert server.raw(lines) == b""
    _, errors = server.stop()
    assert "ValueError" in errors
    assert token not in errors
