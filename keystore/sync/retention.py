"""Removes what a repository no longer names, a day after that was noticed: readers that have begun
may still need it.

Once an hour a publisher looks through all names. So it also finds what a publisher that was killed
has left, and what somebody else has removed.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from keystore.sync.storage import Storage

RETENTION = timedelta(days=1)

_NOTES = "retired.json"
_OURS = re.compile(
    r"metadata/\d{1,19}\.(snapshot|targets)\.json"
    r"|metadata/probe-[0-9a-f-]{36}"
    r"|targets/[0-9a-f]{64}\.(snapshot\.sqlite|changes-\d{1,19}-\d{1,19}\.jsonl)\.zst"
)
"""What this module may ever remove: a name in the notes proves nothing, anybody may write those."""


@dataclass(frozen=True, slots=True)
class Swept:
    """File names: what was removed, what will be, and what is named and is not there."""

    removed: list[str]
    noted: list[str]
    missing: list[str]


def sweep(storage: Storage, in_use: Collection[str]) -> Swept:
    """Note the files that nobody names, and remove those that were noted a day ago."""
    held = {name for name in storage.names() if _OURS.fullmatch(name)}
    found = storage.read(_NOTES)
    before = _times(found[0]) if found else {}
    this_time = now()
    noted = {name: before.get(name, this_time) for name in sorted(held.difference(in_use))}
    removed = [name for name, since in noted.items() if since <= this_time - RETENTION]
    for name in removed:
        storage.delete(name)
        del noted[name]
    if noted != before:
        times = {name: since.isoformat(timespec="seconds") for name, since in noted.items()}
        data = json.dumps(times, indent=1).encode()
        # (another publisher that has replaced them meanwhile has noted the same)
        storage.replace(_NOTES, data, found[1] if found else None)
    return Swept(removed, list(noted), sorted(set(in_use) - held))


def is_due(last: datetime) -> bool:
    """Whether another hour has begun since the ``last`` publication."""
    return _hour(last) != _hour(now())


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _times(data: bytes) -> dict[str, datetime]:
    """Read the notes; what is wrong in them is noted anew."""
    times = {}
    try:
        for name, since in json.loads(data).items():
            times[name] = datetime.fromisoformat(since).astimezone(UTC)
    except (ValueError, TypeError, AttributeError):
        return {}
    return times
