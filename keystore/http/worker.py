"""One of several processes on a port: ``python -m keystore.http.worker``.

Its standard input is a pipe from its supervisor: one line of JSON says what to do, and when it
comes to its end, the supervisor has. Its standard output is a pipe back: a line when it serves, or
the error that keeps it from serving. What else it needs, it inherits as descriptors.
"""

import json
import mmap
import os
import signal
import socket
import sys
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from keystore.edge import Validator
from keystore.edge.shared_rates import SIZE, SharedRates
from keystore.errors import KeystoreError
from keystore.http import sockets
from keystore.http.check import Settings
from keystore.http.counts import ROW_BYTES, Counts
from keystore.http.server import serve_on


class Task(NamedTuple):
    """What a worker is told. ``socket`` is a descriptor that listens; ``None``: bind ``place``."""

    path: str
    workers: int
    number: int
    memory: int
    host: str
    port: int
    is_public: bool
    socket: int | None
    trusted: list[str]
    query_token: str | None
    max_pending: int
    flush_seconds: float

    def sent(self) -> bytes:
        """Return the line that tells it."""
        return json.dumps(self._asdict()).encode() + b"\n"


def memory_size(workers: int) -> int:
    """Return how much memory so many workers share: what is left of rates, and what is counted."""
    return SIZE + workers * ROW_BYTES


def main() -> int:
    """Do what standard input says; return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor acts
    told = b""
    while not told.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return 0  # the supervisor is gone already
        told += piece
    try:
        _work(Task(**json.loads(told)))
    except KeystoreError as error:
        message = " ".join([error.message, *getattr(error, "__notes__", ())])
        _say({"error": {"message": message, "hint": error.hint, "code": error.code}})
        return 1
    return 0


def _work(task: Task) -> None:
    memory = mmap.mmap(task.memory, memory_size(task.workers))
    settings = Settings(trusted=tuple(map(ip_network, task.trusted)), query_token=task.query_token)
    with (
        Validator(
            task.path,
            max_pending=task.max_pending,
            max_seconds=task.flush_seconds,
            rates=SharedRates(task.memory, memory),
        ) as validator,
        _listening(task) as sock,
    ):
        serve_on(
            sock,
            validator,
            Path(task.path),
            settings,
            Counts(task.workers, task.number, memory, SIZE),
            on_ready=lambda: _say({"ready": os.getpid()}),
            flush_seconds=task.flush_seconds,
            until=0,
        )


def _listening(task: Task) -> socket.socket:
    if task.socket is not None:
        return socket.socket(fileno=task.socket)
    place = sockets.Place(task.host, task.port, is_public=task.is_public)
    sock = sockets.bound(place, is_shared=True)
    sock.listen(sockets.BACKLOG)
    return sock


def _say(what: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # no supervisor any more; the end of the input says so, too
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
