"""Real proxies that ask a real `keystore serve`, with the configurations of examples/."""

import http.client
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.buckets import free_ports, running

EXAMPLES = Path(__file__).parent.parent / "examples"
_BIN = Path(sys.executable).parent
_NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/nginx.conf;
}}
"""


def program(name: str) -> str | None:
    """Where a program is: beside Python, or where the system has it."""
    for path in (str(_BIN), None, "/usr/sbin"):
        if found := shutil.which(name, path=path):
            return found
    return None


@dataclass(frozen=True)
class Kind:
    """A proxy: its program, its files in examples/, and what in them is another machine's."""

    name: str
    files: tuple[str, ...]
    listens: str
    """How the first file says port 80."""
    listens_here: str
    """How it says another one, on loopback: with ``{port}``."""
    asks: tuple[str, str] | None
    """How it names the checker's address, and how a Unix socket, ``{path}``; if it can."""
    command: Callable[[str, Path], list[str]]
    install: str

    @property
    def program(self) -> str | None:
        """Its program, if installed."""
        return program(self.name)


KINDS = (
    Kind(
        "nginx",
        ("nginx.conf",),
        "listen 80;",
        "listen 127.0.0.1:{port};",
        ("server 127.0.0.1:8080;", "server unix:{path};"),
        lambda found, at: [found, "-p", str(at), "-e", f"{at}/error.log", "-c", f"{at}/main.conf"],
        "the system's package",
    ),
    Kind(
        "caddy",
        ("Caddyfile",),
        ":80 {",
        "{{\n\tadmin off\n}}\n\nhttp://127.0.0.1:{port} {{",
        ("127.0.0.1:8080", "unix/{path}"),
        # (it keeps a copy of its configuration, in its user's home unless told otherwise)
        lambda found, at: [
            *("env", f"XDG_CONFIG_HOME={at}", f"XDG_DATA_HOME={at}"),
            *(found, "run", "--config", f"{at}/Caddyfile"),
        ],
        "the system's package",
    ),
    Kind(
        "haproxy",
        ("haproxy.cfg", "keystore.lua"),
        "bind :80",
        "bind 127.0.0.1:{port}",
        ("local SOCKET = nil", 'local SOCKET = "unix@{path}"'),
        lambda found, at: [found, "-db", "-f", f"{at}/haproxy.cfg"],
        "the system's package",
    ),
    Kind(
        "envoy",
        ("envoy.yaml",),
        "address: 0.0.0.0, port_value: 80}",
        "address: 127.0.0.1, port_value: {port}}}",
        (
            "socket_address: {address: 127.0.0.1, port_value: 8080}",
            "pipe: {{path: {path}}}",
        ),
        lambda found, at: [
            *(found, "-c", f"{at}/envoy.yaml", "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "warn"),
        ],
        "make proxies",
    ),
    Kind(
        "traefik",
        ("traefik.yaml", "traefik-keystore.yaml"),
        'address: ":80"',
        'address: "127.0.0.1:{port}"',
        None,
        lambda found, at: [found, f"--configFile={at}/traefik.yaml"],
        "make proxies",
    ),
)


def configure(
    kind: Kind,
    folder: Path,
    port: int,
    checker: int | Path,
    app: int,
    edits: Mapping[str, str],
) -> None:
    """Write a proxy's configuration for this machine: the example's, with other addresses."""
    for name in kind.files:
        text = (EXAMPLES / name).read_text()
        for old, new in edits.items():
            text = text.replace(old, new)
        if name == kind.files[0]:
            assert text.count(kind.listens) == 1
            text = text.replace(kind.listens, kind.listens_here.format(port=port))
        if isinstance(checker, Path):
            assert kind.asks is not None
            text = text.replace(kind.asks[0], kind.asks[1].format(path=checker))
        else:
            text = text.replace("127.0.0.1:8080", f"127.0.0.1:{checker}")
            text = text.replace("port_value: 8080", f"port_value: {checker}")
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{app}")
        text = text.replace("port_value: 9000", f"port_value: {app}")
        text = text.replace("/etc/haproxy/keystore.lua", f"{folder}/keystore.lua")
        text = text.replace("/etc/traefik/keystore.yaml", f"{folder}/traefik-keystore.yaml")
        (folder / name).write_text(text)


class Checker:
    """`keystore serve` on one port or Unix socket, as a process that comes and goes."""

    def __init__(self, folder: Path, at: int | Path) -> None:
        self.folder, self.at = folder, at
        folder.mkdir(exist_ok=True)
        self._stack = ExitStack()

    def up(self, path: Path, *options: str, seen_at: str | None = None) -> None:
        """Start it on a store; it is up when ``seen_at``, or else it, does not answer 5xx."""
        listens = ["--port", str(self.at)] if isinstance(self.at, int) else ["--unix", str(self.at)]
        command = [sys.executable, "-m", "keystore", "serve", "--db", str(path), *listens]
        url = seen_at or f"http://127.0.0.1:{self.at}/check"
        self.process = self._stack.enter_context(running([*command, *options], url, self.folder))

    def kill(self) -> None:
        """End it without a chance to say anything."""
        self._stack.close()

    def end(self) -> None:
        """Ask it to end: it writes its usage."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0
        self._stack.close()


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "App"

    def do_anything(self) -> None:
        """Tell the client what has arrived."""
        got = {
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "length": self._read_past(),
        }
        self.server.seen.append(got)
        body = json.dumps(got).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_past(self) -> int:
        if self.headers["Transfer-Encoding"] is None:
            return self._skip(int(self.headers["Content-Length"] or 0))
        length = 0
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            length += self._skip(size)
            self.rfile.readline()
        self.rfile.readline()
        return length

    def _skip(self, size: int) -> int:
        left = size
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        return size

    def log_message(self, *_: object) -> None:
        """Say nothing."""


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
    setattr(_Echo, f"do_{_method}", _Echo.do_anything)


class App(ThreadingHTTPServer):
    """The application behind a proxy: echoes what it gets, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.seen: list[dict[str, Any]] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a proxy drop its connection, as killed ones do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def app() -> Iterator[App]:
    """Run the application until the block ends."""
    with App() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def proxy(
    kind: Kind, folder: Path, checker: int | Path, app: int, edits: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a proxy until the block ends, and yield its URL. The application must be up.

    ``checker`` is a port or a socket; ``edits`` are made to what the examples say.
    """
    assert kind.program is not None
    folder.mkdir()
    (port,) = free_ports(1)
    configure(kind, folder, port, checker, app, edits or {})
    user = "user root;" if os.geteuid() == 0 else ""  # tests' folders are for their owner only
    (folder / "main.conf").write_text(_NGINX.format(folder=folder, user=user))
    url = f"http://127.0.0.1:{port}"
    with running(kind.command(kind.program, folder), f"{url}/public/", folder, 400):
        yield url


@dataclass(frozen=True)
class Answer:
    """What a client has got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def arrived(self) -> dict[str, str]:
        """The headers with which the request came to the application; each but once."""
        pairs = json.loads(self.body)["headers"]
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)


def ask(
    url: str,
    token: str | None = None,
    *headers: tuple[str, str],
    method: str = "GET",
    source: str = "127.0.0.1",
    body: Any = None,
) -> Answer:
    """Send a request, on a connection of its own, from an address of this machine."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    conn = http.client.HTTPConnection(
        parts.hostname, parts.port, timeout=30, source_address=(source, 0)
    )
    try:
        conn.putrequest(method, url.partition(parts.netloc)[2] or "/")
        if token is not None:
            conn.putheader("Authorization", f"Bearer {token}")
        for name, value in headers:
            conn.putheader(name, value)
        conn.endheaders(message_body=body)
        response = conn.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        conn.close()
