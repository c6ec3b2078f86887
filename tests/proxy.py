"""TCP proxies that fail on command: drop an answer, cut at a byte, stall, or lose a header."""

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_COMMIT = re.compile(rb"COMMIT\0")


class Proxy:
    """Stands between keystore and a PostgreSQL for the length of a ``with`` block."""

    def __init__(self, url: str) -> None:
        self._to = self._parsed(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stalled, self._closed = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.passed = 0
        """Bytes so far, both ways."""
        self.cut_at: int | None = None
        """Close everything when so many bytes have passed."""
        self.lose_commit = 0
        """Let this COMMIT reach the server, and close before the client hears of it; 0: none."""
        self.commit = _COMMIT
        """What a COMMIT looks like."""
        self.recovers = False
        """Lose one answer, not all from then on."""

    def _parsed(self, url: str) -> dict[str, Any]:
        return conninfo_to_dict(url)

    @property
    def port(self) -> int:
        """Where this proxy listens."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The server's URL by way of this proxy."""
        given = self._to | {"host": "127.0.0.1", "port": self.port}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        info = conninfo_to_dict(make_conninfo("", **(given | plain)))
        query = "&".join(f"{name}={info[name]}" for name in plain)
        return f"postgresql://{info['user']}@127.0.0.1:{self.port}/{info['dbname']}?{query}"

    def stall(self) -> None:
        """Pass nothing on any more, and keep all connections open."""
        self._stalled.set()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; may be called again."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((str(self._to["host"]), int(self._to["port"] or 0)))
            self._sockets += [client, server]
            self._start(self._pump, client, server)
            self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        is_answer = source in self._sockets[1::2]
        is_cut = False
        with suppress(OSError):
            while data := self._altered(source.recv(65536)):
                if self._stalled.is_set():
                    self._closed.wait()
                    break
                with self._lock:
                    if is_answer and self.lose_commit < 0:
                        if self.recovers:
                            self.lose_commit = 0
                        is_cut = True
                        break
                    if not is_answer and self.commit.search(data) and self.lose_commit:
                        self.lose_commit -= 1
                        if not self.lose_commit:
                            self.lose_commit = -1
                    room = len(data) if self.cut_at is None else self.cut_at - self.passed
                    self.passed += len(data)
                target.sendall(data[: max(0, room)])
                if room < len(data):
                    is_cut = True
                    break
        if is_cut:
            self._drop()
        else:
            self._end(target)

    def _end(self, _: socket.socket) -> None:
        """Be told that one side has nothing more to send to the other."""
        self._drop()

    def _altered(self, data: bytes) -> bytes:
        return data

    def _drop(self) -> None:
        for item in self._sockets:
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()


class WebProxy(Proxy):
    """Stands between keystore and a web server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.replacements: dict[bytes, bytes] = {}
        """What is sent otherwise than it came; of the same length."""

    @property
    def url(self) -> str:
        """The server's URL by way of this proxy."""
        return f"http://127.0.0.1:{self.port}"

    def _end(self, target: socket.socket) -> None:
        # A web server ends a connection when it likes; others may be in the middle of an answer.
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _parsed(self, url: str) -> dict[str, Any]:
        parts = urlsplit(url)
        return {"host": parts.hostname, "port": parts.port}

    def _altered(self, data: bytes) -> bytes:
        for old, new in self.replacements.items():
            data = data.replace(old, new)
        return data
