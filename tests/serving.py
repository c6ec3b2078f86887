"""`keystore serve` as a process of its own, for tests."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

COMMAND = (sys.executable, "-m", "keystore", "serve")


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Message
    body: bytes


class Server:
    """`keystore serve` as a process of its own; ready when it is made.

    Args:
        path: the store.
        options: further ones of the command.
        program: Python that is run instead of the command; it gets the same arguments.
        environment: further variables.
        most_files: how many descriptors it may have.

    Raises:
        AssertionError: it has ended; the message is what it said.
    """

    def __init__(
        self,
        path: Path,
        *options: object,
        program: str | None = None,
        environment: Mapping[str, str] | None = None,
        most_files: int | None = None,
    ) -> None:
        if "--unix" not in options and "--port" not in options:
            options = ("--port", 0, *options)
        command = [*COMMAND] if program is None else [sys.executable, "-c", program, "serve"]
        if most_files is not None:
            command = ["sh", "-c", f'ulimit -n {most_files} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            [*command, "--db", str(path), "--json", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        assert self.process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate(timeout=20)[1]
            said += line
        self.url = json.loads(said)["url"]
        self.port = int(self.url.rpartition(":")[2]) if self.url.startswith("http") else 0

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, open on the first request."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def socket(self) -> socket.socket:
        """Return a bare connection."""
        if self.url.startswith("unix:"):
            conn = socket.socket(socket.AF_UNIX)
            conn.settimeout(10)
            conn.connect(self.url.removeprefix("unix:"))
            return conn
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, shut the writing side, and return all that comes back."""
        with self.socket() as conn:
            conn.sendall(data)
            conn.shutdown(socket.SHUT_WR)
            return read_all(conn)

    def get(self, path: str, token: str | None = None) -> Answer:
        """Ask once, over a connection of its own."""
        conn = self.connect()
        try:
            conn.request("GET", path, headers={} if token is None else {"X-API-Key": token})
            response = conn.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            conn.close()

    def metrics(self) -> dict[str, float]:
        """Return all samples of ``/metrics``, such as ``keystore_decisions_total{reason=ok}``."""
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        return {
            sample.name
            + "".join(
                f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())
            ): float(sample.value)
            for family in families
            for sample in family.samples
        }

    def children(self) -> list[int]:
        """Return the process ids of its workers."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in found.split()]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; return its exit code, and what it said on standard error."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


def read_all(conn: socket.socket) -> bytes:
    """Read until the other side closes."""
    parts = []
    while part := conn.recv(65536):
        parts.append(part)
    return b"".join(parts)
