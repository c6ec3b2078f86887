"""What many edges, a CDN and a hub did: counts, a table, curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keystore.testing.fleet.cdn import Traffic

_POINTS = 101


@dataclass(slots=True)
class Feed:
    """What the edges of one feed did, ``files`` or ``hub``; times are in seconds.

    ``arrived`` says after how long a publication was at an edge, ``denied`` after how long a
    revocation was: from the moment of the operator's command to the first check that was refused.
    ``age`` is how old the data were when the edge synced.
    """

    name: str
    edges: int = 0
    syncs: int = 0
    records: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    usage_rows: int = 0
    units: int = 0
    allowed: int = 0
    refused: int = 0
    arrived: list[float] = field(default_factory=list)
    denied: dict[str, list[float]] = field(default_factory=dict)
    age: list[float] = field(default_factory=list)


class Line(NamedTuple):
    """A line of the table: what, of the edges by files, and of those by the hub."""

    what: str
    files: str
    hub: str


@dataclass(slots=True)
class Crowd:
    """What a run came to."""

    edges: int
    minutes: float
    files: Feed
    hub: Feed
    cdn: Traffic
    storage: Traffic

    def lines(self) -> list[Line]:
        """Return the table."""
        both = (self.files, self.hub)

        def line(what: str, *cells: object) -> Line:
            return Line(what, *map(str, cells))

        found = [
            line("edges", *(f"{feed.edges:,}" for feed in both)),
            line("syncs", *(f"{feed.syncs:,}" for feed in both)),
            line("records pulled", *(f"{feed.records:,}" for feed in both)),
            line("requests", f"{self.cdn.requests:,}", f"{self.hub.traffic.requests:,}"),
            line("bytes to the edges", _size(self.cdn.bytes), _size(self.hub.traffic.bytes)),
            line("answered by a cache", _share(self.cdn), "-"),
            line("requests to the bucket", f"{self.storage.requests:,}", "-"),
            line("bytes from the bucket", _size(self.storage.bytes), "-"),
            line("checks allowed", *(f"{feed.allowed:,}" for feed in both)),
            line("checks refused", *(f"{feed.refused:,}" for feed in both)),
            line("usage rows handed up", "-", f"{self.hub.usage_rows:,}"),
            line("age of the data, p50", *(_seconds(feed.age, 0.5) for feed in both)),
            line("age of the data, p99", *(_seconds(feed.age, 0.99) for feed in both)),
            line("a change arrives, p50", *(_seconds(feed.arrived, 0.5) for feed in both)),
            line("a change arrives, p99", *(_seconds(feed.arrived, 0.99) for feed in both)),
        ]
        for where in ("origin", "hub"):
            for rank, share in (("p50", 0.5), ("p99", 0.99)):
                found.append(
                    line(
                        f"revoked at the {where}, {rank}",
                        *(_seconds(feed.denied.get(where, []), share) for feed in both),
                    )
                )
        return found

    def curves(self) -> dict[str, list[float]]:
        """Return, by name, after how many seconds each hundredth of the edges denied a key."""
        return {
            f"revoked at the {where}, edges by {feed.name}": quantiles(found)
            for feed in (self.files, self.hub)
            for where, found in feed.denied.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "edges": self.edges,
            "minutes": self.minutes,
            "table": [line._asdict() for line in self.lines()],
            "requests": self.cdn.by_name,
            "curves": self.curves(),
        }


def quantiles(found: Sequence[float]) -> list[float]:
    """Return the value of each hundredth."""
    ordered = sorted(found)
    last = len(ordered) - 1
    return [round(ordered[number * last // (_POINTS - 1)], 3) for number in range(_POINTS)]


def _share(traffic: Traffic) -> str:
    return f"{100 * traffic.hits / max(1, traffic.requests):.2f} %"


def _size(number: int) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 10_000:
            return f"{number:,} {unit}"
        number //= 1000
    return f"{number:,} GB"


def _seconds(found: Sequence[float], share: float) -> str:
    if not found:
        return "-"
    ordered = sorted(found)
    return f"{ordered[int(share * (len(ordered) - 1))]:.1f} s"
