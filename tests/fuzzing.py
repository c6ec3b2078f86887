"""What must hold of whatever a client sends, for hypothesis and for atheris."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID
from zlib import crc32

from keystore import Decision, Reason, tokens
from keystore.http.check import Settings
from keystore.http.connection import Connection
from keystore.http.counts import Counts
from keystore.http.service import Service

RIGHT = tokens.build(UUID(int=7), 7)
MOST = 600
LIMITS = (
    "keystore.http.connection.MAX_HEADER_BYTES",
    "keystore.http.connection.MAX_TARGET_BYTES",
    "keystore.http.connection.MAX_BODY_BYTES",
)
"""What is to be :data:`MOST`, so that short inputs reach it."""
TOKEN = RIGHT.encode()
SEEDS = [
    b"GET /check HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + TOKEN + b"\r\n\r\n",
    b"HEAD /check/any HTTP/1.1\r\nX-API-Key: " + TOKEN + b"\r\n\r\n" * 2,
    b"GET /nginx/services/chat%2F/check?a=b HTTP/1.0\r\nX-API-Key: no\r\n\r\n",
    b"POST /check HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabcGET /",
    b"POST /check HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nA: x\r\n\r\n",
    b'POST /v2/keys.verifyKey HTTP/1.1\r\nContent-Length: 77\r\n\r\n{"key":"' + TOKEN + b'"}',
    b"GET http://a/check HTTP/1.1\r\nAuthorization: bearer x\r\nAuthorization: Bearer y\r\n\r\n",
    b"GET /check HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\n",
    b"GET /check HTTP/1.1\r\nAuthorization: Basic YmlsbGluZzpzZWNyZXQ=\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"GET /check HTTP/1.1\r\nConnection: close\r\nX-Forwarded-For: ::1, 2.0.0.1\r\n\r\nGET /",
]


class OneKey:
    """Knows one token."""

    def __init__(self) -> None:
        self.said_yes = 0

    def check(
        self, token: str, *, service: str | None = None, cost: int = 1, ip: str | None = None
    ) -> Decision:
        assert cost >= 0
        if token != RIGHT:
            return Decision(allowed=False, reason=Reason.UNKNOWN)
        self.said_yes += 1
        return Decision(allowed=True, reason=Reason.OK, account="a\r\nb", plan="free")

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        return self.check(f"{client_id}:{secret}", service=service, cost=cost, ip=ip)


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out = b""
        self.is_over = self.has_ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: Any) -> None:
        assert not self.has_ended, "written after the end"
        assert not self.is_over, "written after closing"
        self.out += data

    def write_eof(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        self.is_over = True

    def abort(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over


class Client:
    """A connection in the hands of a test."""

    def __init__(self) -> None:
        self.checker, self.wire = OneKey(), Wire()
        service = Service(self.checker, Settings(), Counts())
        service.report = self._report  # type: ignore[method-assign]
        self.connection = Connection(service)
        self.connection.connection_made(self.wire)

    @staticmethod
    def _report(error: BaseException | None) -> None:
        raise AssertionError("an error of ours") from error

    def feed(self, pieces: Sequence[bytes]) -> None:
        """Send pieces, and look after each that nothing is kept past the limits."""
        for piece in pieces:
            if self.wire.is_over:
                break
            self.connection.data_received(piece)
            one, most = self.connection, MOST + len(piece)
            assert not one._out
            assert len(one._target) <= most
            assert len(one._body) <= most
            assert one._size <= 2 * most
            assert sum(map(len, one._headers.values())) <= 2 * most


_ANSWER = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")
_YES = re.compile(rb'^X-Auth-Status: 200\r$|"valid": ?true', re.MULTILINE)


def hold_for_http(pieces: Sequence[bytes]) -> None:
    """Whatever bytes come in whatever pieces."""
    data = b"".join(pieces)
    client = Client()
    client.feed(pieces)
    out = client.wire.out
    # A yes is a yes of the checker's, once.
    assert len(_YES.findall(out)) == client.checker.said_yes, out
    if TOKEN not in data and b"\\" not in data:
        assert not client.checker.said_yes
    # At most one answer for each request, which has a line at least; and one that refuses the rest.
    assert len(_ANSWER.findall(out)) <= data.count(b"\n") + 1, out
    if len(data) < MOST and b"pgrade" not in data.lower() and b"connect" not in data.lower():
        # How the bytes are cut into pieces changes nothing. (Past the limits it may.)
        whole = Client()
        whole.feed([data])
        assert answers(whole.wire.out) == answers(out)


def answers(out: bytes) -> list[bytes]:
    return _ANSWER.findall(out)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut data into pieces of these lengths, and the rest."""
    pieces, at = [], 0
    for length in places:
        pieces.append(data[at : at + length])
        at += length
    return [piece for piece in (*pieces, data[at:]) if piece]


def hold_for_tokens(text: str, key: int, secret: int, prefix: str = tokens.DEFAULT_PREFIX) -> None:
    """Whatever text is taken for a token, and whatever key and secret are made one."""
    found = tokens.shape(text, prefix)
    body, checksum = text[:-6], text[-6:]
    is_ours = (
        text.startswith(prefix)
        and len(text) == len(prefix) + 55
        and body.isascii()
        and tokens.encode62(crc32(body.encode()), 6) == checksum
    )
    assert (found is tokens.Shape.OURS) == is_ours
    assert (tokens.key_uuid(text, prefix) is not None) <= is_ours
    assert len(tokens.hash_token(text)) == 64

    token = tokens.build(UUID(int=key), secret, prefix)
    assert tokens.shape(token, prefix) is tokens.Shape.OURS
    assert tokens.key_uuid(token, prefix) == UUID(int=key)
    assert tokens.decode62(token[len(prefix) + 22 : -6]) == secret
    at = len(prefix) + key % 55
    mistyped = token[:at] + ("x" if token[at] != "x" else "y") + token[at + 1 :]
    assert tokens.shape(mistyped, prefix) is tokens.Shape.MISTYPED
    assert tokens.key_uuid(mistyped, prefix) is None
