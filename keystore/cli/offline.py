"""Says how long a replica may go on without contact, and warns of its end while it serves."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from keystore import clock
from keystore.cli.common import printable, wants_json
from keystore.edge import Validator
from keystore.edge.decision import Limit
from keystore.errors import KeystoreError

SOON_SECONDS = 86_400.0
"""How long before the signatures expire a server says so."""
LOOK_SECONDS = 1.0
_MINUTES = len("YYYY-MM-DD HH:MM")
_SIZES = ((86_400, "days"), (3600, "hours"), (60, "minutes"))


def duration(seconds: float) -> str:
    """Return "44 days", "3 hours", in the largest unit of which there are two."""
    for size, unit in _SIZES:
        if seconds >= 2 * size:
            return f"{int(seconds) // size} {unit}"
    return f"{max(0, int(seconds))} seconds"


def words(limit: Limit | None, now: float) -> str:
    """Say what a limit means at a time, in Unix seconds."""
    if limit is None:
        return "no limit"
    end = f"{limit.usable_until[:_MINUTES]} UTC"
    left = duration(clock.seconds(limit.usable_until) - now)
    if limit.is_over:
        return f"denies since {end}: sync it"
    if limit.is_in_grace:
        expired = duration(now - clock.seconds(limit.valid_until))
        return f"signatures expired {expired} ago; denies from {end} on (in {left})"
    return f"may go on without contact until {end} ({left})"


def state_of(limit: Limit | None, now: float) -> str:
    """Tell the states that are worth a line apart: ``ok``, ``soon``, ``grace``, ``over``."""
    if limit is None:
        return "ok"
    if limit.is_over:
        return "over"
    if limit.is_in_grace:
        return "grace"
    return "soon" if clock.seconds(limit.valid_until) - now < SOON_SECONDS else "ok"


def tell(db_path: Path, limit: Limit | None, now: float, *, as_json: bool) -> None:
    """Say on standard error where a replica stands."""
    state, said = state_of(limit, now), words(limit, now)
    if limit is not None and state == "soon":
        said = f"signatures expire in {duration(clock.seconds(limit.valid_until) - now)}; {said}"
    said = f"{db_path}: {said}"
    if as_json:
        click.echo(json.dumps({"offline": {"state": state, "message": said}}), err=True)
    else:
        click.echo(f"keystore: {printable(said)}.", err=True)


@contextmanager
def watching(validator: Validator, db_path: Path) -> Iterator[None]:
    """Tell beside something else when the state changes, and only then.

    In a thread of its own: nobody may be reading what it says, and the checks must not wait.
    """
    as_json, stop = wants_json(), threading.Event()

    def run() -> None:
        told = "ok"
        while not stop.is_set():
            with suppress(KeystoreError):  # a store that cannot be read: each check says so
                fresh, now = validator.freshness(), validator.now()
                limit = fresh.limit if fresh else None
                if state_of(limit, now) != told:
                    told = state_of(limit, now)
                    with suppress(OSError):  # nobody reads
                        tell(db_path, limit, now, as_json=as_json)
            stop.wait(LOOK_SECONDS)

    thread = threading.Thread(target=run, name="offline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LOOK_SECONDS)
