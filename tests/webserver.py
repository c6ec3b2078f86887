"""A web server for a folder, in a thread: it answers ranges, counts bytes, and can be hostile."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Serves ``folder``; ``sent`` counts the bytes of each file's body."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.knows_ranges = True
        self.endless = ""
        """What is streamed for ever: files with this in their names."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.server.folder / self.path.strip("/")
        if self.server.endless and self.server.endless in self.path:
            self._stream_for_ever()
            return
        if not path.is_file():
            self._head(404, 0)
            return
        data, status, start = path.read_bytes(), 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.server.knows_ranges:
            start, status = int(asked[1]), 206
        if start and start >= len(data):
            self._head(416, 0, ("Content-Range", f"bytes */{len(data)}"))
            return
        body = data[start:]
        headers = [("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")] if start else []
        self._head(status, len(body), *headers)
        self.server.sent[path.name] += len(body)
        with suppress(OSError):
            self.wfile.write(body)

    def _head(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", self.date_time_string())
        for header in headers:
            self.send_header(*header)
        self.end_headers()

    def _stream_for_ever(self) -> None:
        self.send_response(200)
        self.send_header("Last-Modified", self.date_time_string())
        self.send_header("Content-Length", str(1 << 60))
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while True:  # until the client hangs up
                self.server.sent["endless"] += self.wfile.write(b" " * 0x10000)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    """Serve a folder on the loopback, for the length of a ``with`` block."""
    server = WebServer(folder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
