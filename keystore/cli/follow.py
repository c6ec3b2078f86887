"""Runs followers for the commands `sync --follow` and `serve --sync`, and prints what they tell."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Full, Queue, SimpleQueue

import click

from keystore.cli.common import plural, printable, show_line, wants_json
from keystore.cli.sync import signing_keys
from keystore.db import open_store
from keystore.sync import targets
from keystore.sync.follow import Event, Follower, Lag

GRACE_SECONDS = 3.0
"""How long a round that is under way may take when the process is to end; a kill harms nothing."""

_MOST_LINES_WAITING = 1000

_MOVED = (
    ("revocations", "took over", "revocation"),
    ("pushed", "pushed", "record"),
    ("pulled", "pulled", "record"),
    ("usage", "handed up", "usage row"),
    ("ledger", "handed up", "ledger row"),
)


def follow_until_signal(
    db_path: Path,
    target: str | None,
    usage_to: str | None,
    *,
    keys: Path | None,
    root: bytes | None,
    poll: float | None,
) -> None:
    """Follow one target, or all that the store knows, until SIGTERM or SIGINT.

    Raises:
        KeystoreError: the first that will not pass by itself.
    """
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    printer = _Printer(ended.put)
    followers = [
        Follower(
            db_path,
            url,
            printer.tell,
            usage_only=usage_only,
            keys=keys,
            root=root,
            poll=poll,
        )
        for url, usage_only in _wanted(db_path, target, usage_to)
    ]
    with _signals(
        lambda: ended.put(None)
    ):  # put() may interrupt get(): that is what it is made for
        threads = [_start(follower, ended.put) for follower in followers]
        error = ended.get()
        for follower in followers:
            follower.stop()
        _join(threads)
        printer.close()
    if error is not None:
        raise error


@contextmanager
def following(db_path: Path, target: str | None, usage_to: str | None) -> Iterator[None]:
    """Follow beside something else, whatever goes wrong; at the end, bring up what is left."""
    printer = _Printer(lambda _: None)  # it serves on, whether or not anybody reads
    followers = [
        Follower(
            db_path,
            url,
            printer.tell,
            usage_only=usage_only,
            keys=signing_keys(None, db_path),
            gives_up=False,
        )
        for url, usage_only in _wanted(db_path, target, usage_to)
    ]
    threads = [_start(follower, lambda _: None) for follower in followers]
    try:
        yield
    finally:
        for follower in followers:
            follower.stop(hand_up=True)
        _join(threads)
        printer.close()


def _wanted(db_path: Path, target: str | None, usage_to: str | None) -> list[tuple[str, bool]]:
    with open_store(db_path) as file:
        return targets.wanted_targets(file, target, usage_to)


def _start(follower: Follower, on_end: Callable[[BaseException | None], None]) -> threading.Thread:
    def run() -> None:
        try:
            follower.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the main thread raises it
            on_end(error)
        else:
            on_end(None)

    # A daemon, because a network may keep it waiting for longer than anybody wants to.
    thread = threading.Thread(target=run, name=f"follow {follower.target}", daemon=True)
    thread.start()
    return thread


def _join(threads: Sequence[threading.Thread]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


@contextmanager
def _signals(on_signal: Callable[[], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: on_signal()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Printer:
    """Prints events, one line each, in a thread of its own.

    A pipe that is full and that nobody reads must not keep a follower from following, or revoked
    keys would pass: what does not fit is not printed.
    """

    def __init__(self, on_failure: Callable[[OSError], None]) -> None:
        self._as_json = wants_json()  # the context is this thread's
        self._on_failure = on_failure
        self._events: Queue[Event | None] = Queue(_MOST_LINES_WAITING)
        self._thread = threading.Thread(target=self._run, name="print", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Print an event soon; from any thread."""
        with suppress(Full):
            self._events.put_nowait(event)

    def close(self) -> None:
        """Wait until all is printed, but not for a reader who does not read."""
        with suppress(Full):
            self._events.put_nowait(None)
            self._thread.join(GRACE_SECONDS)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._print(event)
            except OSError as error:
                self._on_failure(error)

    def _print(self, event: Event) -> None:
        show_line(_as_json(event), _sentence(event), as_json=self._as_json)
        for warning in () if self._as_json else event.report.warnings:
            click.echo(f"keystore: warning: {printable(warning)}", err=True)
        if event.error is not None and not self._as_json:
            where = event.report.target
            where = "" if where in event.error.message else f"{where}: "
            said = f"{where}{event.error} Trying again."
            click.echo(f"keystore: {printable(said)}", err=True)


def _as_json(event: Event) -> dict[str, object]:
    said: dict[str, object] = {"event": event.kind, **asdict(event.report)}
    said["lag"] = asdict(event.lag)
    if event.error is not None:
        said["error"] = {"code": event.error.code, "message": event.error.message}
    return said


def _sentence(event: Event) -> str:
    moved = [
        f"{verb} {plural(number, noun)}"
        for name, verb, noun in _MOVED
        if (number := getattr(event.report, name))
    ]
    if event.kind != "synced":
        moved.insert(0, event.kind)
    return f"{event.report.target}: {', '.join(moved)}; {_lag(event.lag)}."


def _lag(lag: Lag) -> str:
    if lag.as_of_change is None:
        return "never synced"
    parts = [f"as of change {lag.as_of_change}"]
    if lag.age_seconds is None:
        parts.append(f"{plural(lag.changes, 'change')} waiting")
    else:
        parts += [f"{lag.age_seconds} s old", f"{plural(lag.changes, 'change')} behind"]
    if lag.usage:
        parts.append(f"{plural(lag.usage, 'usage row')} waiting")
    if lag.ledger:
        parts.append(f"{plural(lag.ledger, 'ledger row')} waiting")
    return ", ".join(parts)
