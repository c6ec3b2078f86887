"""Runs followers for the commands `sync --follow` and `serve --sync`, and prints what they tell."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

import click

from keystore.cli.common import plural, printable, show_line, wants_json
from keystore.cli.sync import signing_keys
from keystore.db import open_store
from keystore.sync import targets
from keystore.sync.follow import POLL_SECONDS, Event, Follower, Lag

GRACE_SECONDS = 3.0
"""How long a round that is under way may take when the process is to end; a kill harms nothing."""

_MOVED = (
    ("revocations", "took over", "revocation"),
    ("pushed", "pushed", "record"),
    ("pulled", "pulled", "record"),
    ("usage", "handed up", "usage row"),
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
    tell = _printer()
    followers = [
        Follower(
            db_path,
            url,
            tell,
            usage_only=usage_only,
            keys=keys,
            root=root,
            poll=POLL_SECONDS if poll is None else poll,
        )
        for url, usage_only in _wanted(db_path, target, usage_to)
    ]
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    with _signals(
        lambda: ended.put(None)
    ):  # put() may interrupt get(): that is what it is made for
        threads = [_start(follower, ended.put) for follower in followers]
        error = ended.get()
        for follower in followers:
            follower.stop()
        _join(threads)
    if error is not None:
        raise error


@contextmanager
def following(db_path: Path, target: str | None, usage_to: str | None) -> Iterator[None]:
    """Follow beside something else, whatever goes wrong; at the end, bring up what is left."""
    tell = _printer()

    def tell_if_anybody_reads(event: Event) -> None:
        with suppress(OSError):
            tell(event)

    followers = [
        Follower(
            db_path,
            url,
            tell_if_anybody_reads,
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


def _printer() -> Callable[[Event], None]:
    """Return what prints events, one line each, from any thread; the context is this one's."""
    as_json, lock = wants_json(), threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            show_line(_as_json(event), _sentence(event), as_json=as_json)
            if event.error is not None and not as_json:
                said = f"{event.report.target}: {event.error.message} Trying again."
                click.echo(f"keystore: {printable(said)}", err=True)

    return tell


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
    return ", ".join(parts)
