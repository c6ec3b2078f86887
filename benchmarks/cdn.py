"""What a fleet of edges that poll signed files costs a CDN, computed from measured requests.

A day is simulated in short: one edge polls each minute, an origin publishes at each change. What
that edge asked for is counted at the storage, bodies only, and multiplied.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import samples
from benchmarks.harness import main
from benchmarks.results import Figure
from keystore import db
from keystore.db import StoreFile
from keystore.sync import engine, repository
from keystore.sync.files_sink import FileSink
from keystore.sync.files_source import FileSource
from keystore.sync.folder import Folder
from keystore.sync.follow import SIGN_SECONDS

EDGES = 10_000
POLLS = 1_440
"""A day of one edge that polls each minute."""
CHANGES = 1_000
"""A day of the origin."""
_KEYS = 10_000
_SIGNED = int(86_400 / SIGN_SECONDS)
"""How often an idle origin that follows signs anew in a day."""


@dataclass(slots=True)
class Traffic:
    """Requests and bytes of bodies."""

    requests: float = 0
    body_bytes: float = 0

    def times(self, factor: float) -> "Traffic":
        """Return so many times as much."""
        return Traffic(self.requests * factor, self.body_bytes * factor)

    def plus(self, other: "Traffic") -> "Traffic":
        """Return both together."""
        return Traffic(self.requests + other.requests, self.body_bytes + other.body_bytes)


class CountingFolder(Folder):
    """A folder that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.traffic = Traffic()

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes, and count them."""
        self.traffic.requests += 1
        for chunk in super().chunks(name, offset):
            self.traffic.body_bytes += len(chunk)
            yield chunk

    def take(self) -> Traffic:
        """Return what was counted since the last call."""
        taken, self.traffic = self.traffic, Traffic()
        return taken


class Fleet:
    """One origin and one edge."""

    def __init__(self, folder: Path, file: StoreFile) -> None:
        self._file, self._keys, self._replica = file, folder / "keys", folder / "replica.db"
        self._storage = CountingFolder(folder / "published")
        self._root = repository.create(self._storage, self._keys).read_bytes()
        self.publish()
        self._storage.take()
        source = FileSource(self._storage, self._root, None, self._replica)
        engine.replicate(source, "files:", self._replica, engine.Report("files:"))
        self.first_start = self._storage.take()

    def publish(self) -> None:
        """Publish what has changed, or the same again."""
        sink = FileSink(self._storage, self._keys)
        engine.push(self._file, sink, "files:", engine.Report("files:"))
        self._storage.take()

    def change(self) -> None:
        """Change one key."""
        number = random.randrange(_KEYS) + 1  # noqa: S311 - no secret
        with self._file.write() as conn:
            conn.execute(
                "UPDATE APIKeys SET label = hex(randomblob(8)) WHERE api_key_id = ?", (number,)
            )

    def poll(self) -> Traffic:
        """Pull, and return what that asked for."""
        with db.open_store(self._replica) as file:
            (state,) = file.conn.execute(
                "SELECT source_state FROM SyncTargets WHERE source_state IS NOT NULL"
            ).fetchone()
            source = FileSource(self._storage, None, state, self._replica)
            engine.pull(file, source, "files:", engine.Report("files:"))
        return self._storage.take()


def measure(quick: bool) -> list[Figure]:
    """Simulate ten hours with changes (or 30 minutes, quick), and count; no ratios."""
    return [
        figure
        for what, traffic in simulate(30 if quick else 600)
        for figure in (
            Figure(what, round(traffic.requests, 1), "requests"),
            Figure(what, round(traffic.body_bytes), "bytes"),
        )
    ]


def simulate(minutes: int) -> list[tuple[str, Traffic]]:
    """Simulate so many minutes with changes; return what is counted and what follows from it."""
    with TemporaryDirectory(prefix="keystore-bench-") as name:
        folder = Path(name)
        with samples.origin(folder / "origin.db", samples.random_hashes(_KEYS)) as file:
            fleet = Fleet(folder, file)
            nothing = fleet.poll()
            fleet.publish()
            signed = fleet.poll()
            busy, due = Traffic(), 0.0
            for _ in range(minutes):
                due += random.expovariate(1) * CHANGES / POLLS
                for _ in range(int(due)):
                    fleet.change()
                    fleet.publish()
                due -= int(due)
                busy = busy.plus(fleet.poll())
    minute = busy.times(1 / minutes)
    idle_day = nothing.times(POLLS - _SIGNED).plus(signed.times(_SIGNED))
    return [
        ("a poll that finds nothing new", nothing),
        ("a poll that finds a new signature", signed),
        (f"a poll, with {CHANGES:,} changes a day", minute),
        (f"{EDGES:,} edges, a day without changes", idle_day.times(EDGES)),
        (f"{EDGES:,} edges, a day with {CHANGES:,} changes", minute.times(POLLS * EDGES)),
    ]


if __name__ == "__main__":
    main(measure)
