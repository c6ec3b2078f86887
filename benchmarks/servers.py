"""Servers to measure, on loopback, each in a folder and a session of its own, one worker each."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from keystore.testing.postgres import free_port

START_SECONDS = 30
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
ENVOY = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))

_NGINX = """
worker_processes 1;
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
    keepalive_requests 1000000000;
    upstream sidecar {{
        server {sidecar};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location = /nothing {{ return 204; }}
        location = /open {{ empty_gif; }}
        location = /guarded {{ auth_request /auth; empty_gif; }}
        location = /auth {{
            internal;
            proxy_pass http://sidecar/check;
            # nginx reads no body of an answer, and closes the connection after one that has some.
            proxy_method HEAD;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; all its processes are in the group ``process_id``."""

    url: str
    process_id: int

    def status(self, path: str, token: str) -> int:
        """Ask once."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request("GET", path, headers={"X-API-Key": token})
            return connection.getresponse().status
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Return what its processes have used so far; 0 where the system has no /proc."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self._stats())
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Return what its processes hold in memory; 0 where the system has no /proc."""
        pages = sum(int(fields[21]) for fields in self._stats())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _stats(self) -> Iterator[list[str]]:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process_id:
                    yield fields


@contextmanager
def sidecar(db_path: Path, folder: Path) -> Iterator[Server]:
    """Run ``keystore serve``."""
    port = free_port()
    command = [sys.executable, "-m", "keystore", "serve", "--db", str(db_path), "--port", str(port)]
    with _running(command, port, folder) as server:
        yield server


@contextmanager
def fastapi(db_path: Path, folder: Path) -> Iterator[Server]:
    """Run the same check in FastAPI on uvicorn."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.fastapi_app:create", "--factory"]
    command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    with _running(command, port, folder, KEYSTORE_DB=str(db_path)) as server:
        yield server


@contextmanager
def nginx(folder: Path, upstream: Server) -> Iterator[Server]:
    """Run nginx: /nothing is a 204, /guarded is what /open is, and asks the sidecar."""
    port = free_port()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # the folder is for its owner only
    sidecar_at = urlsplit(upstream.url).netloc
    config.write_text(_NGINX.format(folder=folder, user=user, port=port, sidecar=sidecar_at))
    command = [str(NGINX), "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(config)]
    with _running(command, port, folder) as server:
        yield server


@contextmanager
def envoy(folder: Path, issued: Sequence[str]) -> Iterator[Server]:
    """Run Envoy with its filter for API keys, which knows the tokens from its configuration."""
    port = free_port()
    prefix = "type.googleapis.com/envoy.extensions.filters"
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 204}}
    manager = {
        "@type": f"{prefix}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
        "http_filters": [
            {
                "name": "api_key_auth",
                "typed_config": {
                    "@type": f"{prefix}.http.api_key_auth.v3.ApiKeyAuth",
                    "credentials": [
                        {"key": token, "client": f"client {number}"}
                        for number, token in enumerate(issued)
                    ],
                    "key_sources": [{"header": "X-API-Key"}],
                },
            },
            {"name": "router", "typed_config": {"@type": f"{prefix}.http.router.v3.Router"}},
        ],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    command = [str(ENVOY), "-c", str(config), "--concurrency", "1", "--log-level", "warning"]
    with _running([*command, "--disable-hot-restart"], port, folder) as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], port: int, folder: Path, **environment: str
) -> Iterator[Server]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} does not answer: {said}")
            time.sleep(0.05)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _answers(server: Server) -> bool:
    with suppress(OSError):
        return server.status("/", "") > 0
    return False
