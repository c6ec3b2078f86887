"""A small HTTP/1.1 server for checks: asyncio, httptools for parsing, uvloop where present.

Request bodies are read past and never kept. A connection that is silent, or dawdles over its
headers, for :data:`IDLE_SECONDS` is closed; headers past :data:`MAX_HEADER_BYTES` are refused.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import Any

from keystore.edge import Validator
from keystore.errors import KeystoreError, UnsupportedTargetError
from keystore.http.check import Request, Response, respond

MAX_HEADER_BYTES = 65_536
IDLE_SECONDS = 75.0
FLUSH_SECONDS = 1.0
GRACE_SECONDS = 2.0
"""How long a client may take to read its last answers when the server ends."""
_CREDENTIALS = {"authorization", "x-api-key"}

try:
    import httptools
except ImportError as error:
    raise UnsupportedTargetError(
        "the server needs the extra 'server' (httptools is not installed).",
        hint="pip install 'keystore[server]'",
    ) from error


class _Connection(asyncio.Protocol):
    """One client connection; httptools calls the ``on_…`` methods while it is fed."""

    def __init__(self, validator: Validator, open_connections: "set[_Connection]") -> None:
        self._validator = validator
        self._open_connections = open_connections
        self._parser: Any = httptools.HttpRequestParser(self)
        self._idle: asyncio.TimerHandle | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._size = self._unparsed = 0
        self._is_in_headers = True
        self._is_ambiguous = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._open_connections.add(self)
        self._restart_timer()

    def close(self) -> None:
        """Send what is answered already, then close."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def pause_writing(self) -> None:
        """Read no further requests from a client that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._open_connections.discard(self)
        if self._idle is not None:
            self._idle.cancel()

    def data_received(self, data: bytes) -> None:
        # Counted here as well: a header that never ends is never handed over.
        self._unparsed += len(data) if self._is_in_headers else 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._transport.close()
        except httptools.HttpParserCallbackError:  # ours, not the client's
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._is_in_headers and self._unparsed > MAX_HEADER_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._size = 0
        self._is_in_headers = True
        self._is_ambiguous = False

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_headers:
            return  # a trailer of a chunked body; proxies check and forward headers only
        key = name.decode("latin-1").lower()
        # Two credentials: whoever is behind the proxy might read the other one.
        self._is_ambiguous |= key in _CREDENTIALS and key in self._headers
        self._headers[key] = value.decode("latin-1")
        self._size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._unparsed = 0
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_message_complete(self) -> None:
        self._is_in_headers = True
        if self._transport.is_closing():
            return
        if self._size > MAX_HEADER_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        if self._is_ambiguous:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        peer = (self._transport.get_extra_info("peername") or (None,))[0]
        method = self._parser.get_method().decode("latin-1")
        request = Request(method, self._url.decode("latin-1"), self._headers, peer)
        response = respond(self._validator, request)
        keep_alive = self._parser.should_keep_alive()
        is_head = self._parser.get_method() == b"HEAD"
        self._transport.write(_serialized(response, keep_alive=keep_alive, is_head=is_head))
        if keep_alive:
            self._restart_timer()
        else:
            self._transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._transport.is_closing():
            self._transport.write(
                _serialized(Response(status, (), b""), keep_alive=False, is_head=False)
            )
            self._transport.close()

    def _restart_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.close)


def _serialized(response: Response, *, keep_alive: bool, is_head: bool) -> bytes:
    lines = [_status_line(response.status)]
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"Content-Length: {len(response.body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if is_head else head + response.body


@cache
def _status_line(status: HTTPStatus) -> str:
    return f"HTTP/1.1 {status.value} {status.phrase}"


async def serve(
    validator: Validator, host: str, port: int, *, on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; ``on_ready`` gets the base URL once connections are taken.

    Port 0 takes a free one. Usage is flushed every second and the caller closes the validator.

    Raises:
        KeystoreError: the address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    open_connections: set[_Connection] = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        server = await loop.create_server(
            lambda: _Connection(validator, open_connections), host, port
        )
    except OSError as error:
        raise KeystoreError(
            f"cannot listen on {host} port {port}: {error.strerror or error}.",
            hint="Choose another with --host and --port.",
        ) from error
    flusher = asyncio.create_task(_flush_regularly(validator))
    async with server:
        address = server.sockets[0].getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        on_ready(f"http://{name}:{address[1]}")
        await stop.wait()
        flusher.cancel()
        # From Python 3.12 on, leaving the block waits for every connection to end.
        for connection in tuple(open_connections):
            connection.close()
        for _ in range(int(GRACE_SECONDS / 0.02)):
            if not open_connections:
                break
            await asyncio.sleep(0.02)
        for connection in tuple(open_connections):
            connection.abort()


async def _flush_regularly(validator: Validator) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        with contextlib.suppress(Exception):  # it stays counted; the next second tries again
            await asyncio.to_thread(validator.flush_if_due)


def run(validator: Validator, host: str, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Run :func:`serve` on uvloop where it is installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(validator, host, port, on_ready=on_ready))
