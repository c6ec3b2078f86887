"""A small HTTP/1.1 server for checks: asyncio, uvloop where present. One process.

:mod:`keystore.http.workers` runs several of them on one port.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from keystore.edge import Reason, Validator
from keystore.errors import UnsupportedTargetError
from keystore.http import sockets
from keystore.http.answers import RETRY_AFTER_SECONDS, Response
from keystore.http.check import Settings
from keystore.http.connection import Connection
from keystore.http.counts import CACHED, PENDING, SLOW_CHECKS, Counts
from keystore.http.health import Health
from keystore.http.service import MOST_CONNECTIONS, Service
from keystore.http.troubles import Troubles

FLUSH_SECONDS = 1.0
"""How often at least usage is looked at."""
SWEEP_SECONDS = 1.0
GRACE_SECONDS = 2.0
"""How long a client may take for what it has begun, and to read its last answers, at the end."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COLLECT_AFTER = 20_000
"""New objects between two collections; the requests themselves make no cycles."""
_OTHER_FILES = 64
"""Descriptors that are kept for other things than connections."""

if find_spec("prometheus_client") is None:  # /metrics loads it, when it is first asked for
    raise UnsupportedTargetError(
        "the server needs the extra 'server' (prometheus_client is not installed).",
        hint="pip install 'keystore[server]'",
    )


def run(
    validator: Validator,
    path: Path,
    place: sockets.Place,
    *,
    on_ready: Callable[[str], None],
    settings: Settings,
    flush_seconds: float,
) -> None:
    """Serve in this process until SIGINT or SIGTERM; the validator's store is at ``path``.

    ``on_ready`` gets the URL once connections are taken; the caller closes the validator, which
    flushes its usage. ``flush_seconds`` is how long usage may wait for the disk at most.

    Raises:
        KeystoreError: the place is taken, or cannot be bound.
    """
    with sockets.bound(place) as sock:
        sock.listen(sockets.BACKLOG)
        identity = sockets.identity_of(place.path) if place.path else None
        try:
            serve_on(
                sock,
                validator,
                path,
                settings,
                Counts(),
                on_ready=lambda: on_ready(place.url(sock)),
                flush_seconds=flush_seconds,
            )
        finally:
            if place.path is not None and identity is not None:
                sockets.remove(place.path, identity)


def serve_on(
    sock: socket.socket,
    validator: Validator,
    path: Path,
    settings: Settings,
    counts: Counts,
    *,
    on_ready: Callable[[], None],
    flush_seconds: float,
    until: int | None = None,
) -> None:
    """Serve on a socket that listens, on uvloop where it is installed, else on asyncio's own loop.

    Until SIGINT or SIGTERM, or until the pipe ``until`` has come to its end.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory
    pages = _pages(counts, Health(validator, path))
    service = Service(validator, settings, counts, pages, _most_connections())
    # What is there now stays: the collector need not look through it in the middle of a check.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(sock, validator, service, on_ready, flush_seconds, until))


async def _serve(
    sock: socket.socket,
    validator: Validator,
    service: Service,
    on_ready: Callable[[], None],
    flush_seconds: float,
    until: int | None,
) -> None:
    loop = asyncio.get_running_loop()
    # asyncio's own handler would log what a callback was called with.
    loop.set_exception_handler(lambda _, context: service.report(context.get("exception")))
    stop = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if until is not None:
        loop.add_reader(until, lambda: None if os.read(until, 4096) else stop.set())
    create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
    server = await create(lambda: Connection(service), sock=sock, backlog=sockets.BACKLOG)
    troubles = Troubles(validator)
    tasks = (
        asyncio.create_task(_sweep(validator, service, troubles)),
        asyncio.create_task(_flush(troubles, min(FLUSH_SECONDS, flush_seconds))),
    )
    on_ready()
    await stop.wait()
    if until is not None:
        loop.remove_reader(until)
    server.close()
    for task in tasks:
        task.cancel()
    service.is_ending = True
    await asyncio.sleep(0.01)  # what has arrived already is read and answered
    service.end()
    deadline = loop.time() + GRACE_SECONDS
    while service.connections and loop.time() < deadline:
        await asyncio.sleep(0.02)
    service.abort()
    await asyncio.sleep(0)
    for number in _SIGNALS:
        # A second one must not end the process before its usage is on disk.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


async def _sweep(validator: Validator, service: Service, troubles: Troubles) -> None:
    before = 0
    while True:
        row = service.counts.row
        row[SLOW_CHECKS] += validator.slow_checks - before
        before = validator.slow_checks
        row[PENDING], row[CACHED] = validator.pending, validator.cached
        try:
            service.sweep()
            troubles.look()
        except Exception as error:  # noqa: BLE001 - the next sweep is to come, whatever it was
            service.report(error)
        await asyncio.sleep(SWEEP_SECONDS)


async def _flush(troubles: Troubles, period: float) -> None:
    while True:
        await asyncio.sleep(period)
        await asyncio.to_thread(troubles.flush_if_due)


def _pages(counts: Counts, health: Health) -> dict[str, Callable[[], Response]]:
    made: list[Callable[[], bytes]] = []

    def alive() -> Response:
        return _json(HTTPStatus.OK, {"alive": True})

    def ready() -> Response:
        reason = health.state().reason
        if reason is Reason.OK:
            return _json(HTTPStatus.OK, {"ready": True, "reason": reason.value})
        retry = (("Retry-After", str(RETRY_AFTER_SECONDS)),)
        said = {"ready": False, "reason": reason.value}
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, said, retry)

    def metrics() -> Response:
        from keystore.http.metrics import CONTENT_TYPE, Metrics

        if not made:
            made.append(Metrics(counts, health).text)
        return Response(HTTPStatus.OK, (("Content-Type", CONTENT_TYPE),), made[0]())

    return {"/healthz": alive, "/readyz": ready, "/metrics": metrics}


def _json(status: HTTPStatus, body: object, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    fixed = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
    return Response(status, fixed + headers, json.dumps(body).encode() + b"\n")


def _most_connections() -> int:
    """Return how many connections the system lets this process have."""
    try:
        import resource
    except ImportError:  # Windows, where descriptors are no such bound
        return MOST_CONNECTIONS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, limit - 2 * _OTHER_FILES))
