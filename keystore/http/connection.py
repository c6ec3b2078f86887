"""One connection of a client: bytes to requests, answers to bytes. httptools parses.

Few Python calls per request: headers that no answer depends on are not kept, answers that come
again are not written out again, and nothing has a timer of its own: :meth:`Service.sweep` looks at
all connections once a second. Bodies are read past, but for the few that an answer depends on.

httptools (llhttp, in its strict mode) refuses what two parsers could read in two ways: both
Content-Length and Transfer-Encoding, or one of them twice; bare line feeds, folded lines, control
characters and NUL anywhere.
"""

import asyncio
import time
from bisect import bisect_left
from functools import cache
from http import HTTPStatus
from typing import Any

from keystore.errors import UnsupportedTargetError
from keystore.http.answers import Response
from keystore.http.check import MAX_BODY_BYTES, Request, respond, wants_body
from keystore.http.counts import BOUNDS_NS, LATENCY, LATENCY_SUM_NS, status_number
from keystore.http.service import SPARE_CONNECTIONS, Service

MAX_HEADER_BYTES = 65_536
MAX_FIELDS = 128
MAX_TARGET_BYTES = 16_384
_LINGER_BYTES = 1 << 20
"""How much is read past after the last answer, which a client that still writes would not see."""
_KEPT = {
    name.encode(): name
    for name in (
        "authorization",
        "expect",
        "x-api-key",
        "x-forwarded-for",
        "x-forwarded-uri",
        "x-original-uri",
    )
}
_CREDENTIALS = {"authorization", "x-api-key"}
_clock = time.perf_counter_ns
_OK = HTTPStatus.OK
_OK_AT = status_number(_OK)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_KINDS = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.REQUEST_TIMEOUT: "timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.REQUEST_URI_TOO_LONG: "target_too_long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "headers_too_large",
}

try:
    import httptools
except ImportError as error:
    raise UnsupportedTargetError(
        "the server needs the extra 'server' (httptools is not installed).",
        hint="pip install 'keystore[server]'",
    ) from error


class _RefusedError(Exception):
    """Leaves the parser; the connection knows the status."""


class Connection(asyncio.Protocol):
    """One client connection; httptools calls the ``on_…`` methods while it is fed."""

    __slots__ = (
        "_body",
        "_fields",
        "_headers",
        "_is_begun",
        "_is_in_headers",
        "_is_last",
        "_is_moving",
        "_out",
        "_parser",
        "_peer",
        "_refusal",
        "_row",
        "_service",
        "_size",
        "_target",
        "_transport",
        "_unparsed",
        "_wants_body",
        "due",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self._row = service.row
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._peer: str | None = None
        self._out: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._target = b""
        self._body = bytearray()
        self._wants_body: bool | None = None
        self._size = self._fields = self._unparsed = 0
        self._is_in_headers = True
        self._is_begun = self._is_moving = self._is_last = False
        self._refusal: HTTPStatus | None = None
        self.due = service.header_due
        """When it is to be closed, by the monotonic clock."""

    # -- what the loop calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self._service
        self._transport = transport
        address = transport.get_extra_info("peername")
        self._peer = address[0] if isinstance(address, tuple) and address else None
        service.connections.add(self)
        if len(service.connections) > service.most + SPARE_CONNECTIONS:
            service.counts.refused("connections")
            self.abort()
        elif len(service.connections) > service.most:
            service.counts.refused("connections")
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, (("Retry-After", "1"),))
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._service.connections.discard(self)

    def pause_writing(self) -> None:
        """Read no further requests from a client that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            self._unparsed += len(data)
            if self._unparsed > _LINGER_BYTES:
                self.abort()
            return
        started = _clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Answered already, as if nothing else had been asked for (RFC 9110, section 7.8). What
            # comes right behind it may be of another protocol, and is not read.
            self._parser = httptools.HttpRequestParser(self)
            self._is_last |= upgrade.args[0] < len(data)
        except httptools.HttpParserError as error:
            self._fail(error)
        out = self._out
        if out:
            # (not a function: this is done for every request)
            row, elapsed = self._row, _clock() - started
            row[LATENCY + bisect_left(BOUNDS_NS, elapsed)] += len(out)
            row[LATENCY_SUM_NS] += elapsed * len(out)
            self._flush()
        else:
            self._wait(len(data))

    # -- what the parser calls -----------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MAX_TARGET_BYTES:
            self._stop(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_headers:
            return  # a trailer of a chunked body; proxies check and forward headers only
        self._size += len(name) + len(value)
        self._fields += 1
        key = _KEPT.get(name.lower())
        if key is not None:
            # Two credentials: whoever is behind the proxy might read the other one.
            if key in self._headers and key in _CREDENTIALS:
                self._stop(HTTPStatus.BAD_REQUEST)
            self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._is_moving = True
        if self._size > MAX_HEADER_BYTES or self._fields > MAX_FIELDS:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if "expect" in self._headers and self._headers["expect"].lower() == "100-continue":
            self._transport.write(b"".join((*self._out, _CONTINUE)))
            self._out.clear()

    def on_body(self, body: bytes) -> None:
        self._is_moving = True
        if self._wants_body is None:
            method = self._parser.get_method().decode("latin-1")
            self._wants_body = wants_body(method, _path(self._target.decode("latin-1")))
        if self._wants_body:
            self._body += body
            if len(self._body) > MAX_BODY_BYTES:
                self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_message_complete(self) -> None:
        if self._is_last:
            return  # behind "Connection: close"
        service, parser = self._service, self._parser
        target, method = self._target.decode("latin-1"), parser.get_method().decode("latin-1")
        if not target.startswith("/"):
            target = _path(target)
        page = service.pages.get(target if "?" not in target else target.partition("?")[0])
        if page is not None:
            response = page()
        else:
            body = bytes(self._body) if self._wants_body else b""
            request = Request(method, target, self._headers, self._peer, body)
            response = respond(service.checker, request, service.settings)
        status = response.status
        if status is _OK:  # (the hash of a status takes as long as all this)
            self._row[_OK_AT] += 1
        else:
            self._row[status_number(status)] += 1
        keep_alive = parser.should_keep_alive() and not service.is_ending
        self._is_last = not keep_alive
        if method == "HEAD":
            answer = serialized(response, keep_alive=keep_alive, is_head=True)
        else:
            wire = response.wire.get(keep_alive)
            if wire is None:
                wire = response.wire[keep_alive] = serialized(response, keep_alive=keep_alive)
            answer = wire
        self._out.append(answer)
        if self._wants_body is not None:
            self._body, self._wants_body = bytearray(), None
        self._headers, self._target = {}, b""
        self._size = self._fields = 0
        self._is_in_headers, self._is_moving = True, False

    # -- the rest ------------------------------------------------------------------------------

    def time_out(self) -> None:
        """Close: it was silent, or too slow."""
        if self._is_begun and not self._is_last:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
            self._flush()
        else:
            self.abort()

    def end(self) -> None:
        """Close, unless a request is under way."""
        if not self._is_begun:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _flush(self) -> None:
        """Send the answers; all of a batch in one write."""
        out = self._out
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        if not self._is_last:
            self.due, self._unparsed = self._service.idle_due, 0
            self._is_begun = not self._is_in_headers or bool(self._target)
        else:
            # To close with something unread would reset the connection, and the answer be lost: the
            # client closes, or the sweep does.
            self._transport.write_eof()
            self.due, self._unparsed = self._service.linger_due, 0

    def _wait(self, size: int) -> None:
        """Go on with a request that has not come to its end; cut one that never would."""
        if not self._is_begun:
            self._is_begun, self._unparsed = True, 0
            self.due = self._service.header_due
        if self._is_moving:
            self._is_moving, self._unparsed = False, 0
            self.due = self._service.idle_due
        else:
            # A field, a trailer or a chunk's extension that never ends is never handed over.
            self._unparsed += size
            if self._unparsed > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                self._flush()

    def _stop(self, status: HTTPStatus) -> None:
        self._refusal = status
        raise _RefusedError

    def _fail(self, error: Exception) -> None:
        """Refuse what cannot be read, or what we could not answer."""
        if self._is_last:
            return  # behind "Connection: close"
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif isinstance(error, httptools.HttpParserCallbackError):
            self._service.report(error.__context__)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, (("Retry-After", "1"),))
        else:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _refuse(self, status: HTTPStatus, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self._refusal, self._is_last = status, True
        if status in _KINDS:
            self._service.counts.refused(_KINDS[status])
        self._service.row[status_number(status)] += 1
        self._out.append(serialized(Response(status, headers, b""), keep_alive=False))


def serialized(response: Response, *, keep_alive: bool, is_head: bool = False) -> bytes:
    """Write a response out."""
    lines = [_status_line(response.status)]
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"Content-Length: {len(response.body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if is_head else head + response.body


def _path(target: str) -> str:
    """Return a target as it is; of an absolute one, what is behind the host."""
    if target.startswith("/") or "://" not in target:
        return target
    rest = target.partition("://")[2]
    slash = rest.partition("?")[0].find("/")
    return rest[slash:] if slash >= 0 else "/"


@cache
def _status_line(status: HTTPStatus) -> str:
    return f"HTTP/1.1 {status.value} {status.phrase}"
