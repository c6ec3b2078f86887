"""A content delivery network in front of a repository's files: caches, requests, bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from keystore.sync.storage import missing
from keystore.testing.fleet.links import MemoryStorage
from keystore.testing.fleet.world import World

PLACES = 20
"""Points of presence; each edge asks one."""
FRESH_SECONDS = 30.0
"""For how long ``timestamp.json`` is served from a cache; all other files never change."""
NEAR_SECONDS = (0.01, 0.08)
"""From an edge to its point of presence and back; drawn anew for each request."""
FAR_SECONDS = (0.05, 0.3)
"""From there to the bucket and back."""
_REPLACED = "metadata/timestamp.json"


@dataclass(slots=True)
class Traffic:
    """Requests and bytes, and how many of the requests a cache has answered."""

    requests: int = 0
    bytes: int = 0
    hits: int = 0
    by_name: dict[str, int] = field(default_factory=dict)


class Cdn:
    """Caches at each point of presence, over one storage."""

    def __init__(self, world: World, storage: MemoryStorage) -> None:
        self.storage, self._world = storage, world
        self.rng = Random("a network")  # noqa: S311 - a simulation repeats
        self.out, self.origin = Traffic(), Traffic()
        self._cached: list[dict[str, tuple[bytes | None, float]]] = [{} for _ in range(PLACES)]

    def get(self, place: int, name: str) -> tuple[bytes | None, float]:
        """Return a file, ``None`` if there is none, and how many seconds that took."""
        seconds, now = self.rng.uniform(*NEAR_SECONDS), self._world.now
        known = self._cached[place].get(name)
        self.out.requests += 1
        if known is not None and now < known[1]:
            data = known[0]
            self.out.hits += 1
        else:
            seconds += self.rng.uniform(*FAR_SECONDS)
            data = self.storage.files.get(name)
            self.origin.requests += 1
            self.origin.bytes += len(data or b"")
            lives = FRESH_SECONDS if data is None or name == _REPLACED else float("inf")
            self._cached[place][name] = (data, now + lives)
        self.out.bytes += len(data or b"")
        kind = name.partition("/")[0] if name != _REPLACED else "timestamp"
        self.out.by_name[kind] = self.out.by_name.get(kind, 0) + 1
        return data, seconds


class CdnStorage(MemoryStorage):
    """The files as one edge gets them; ``seconds`` adds up how long that took."""

    def __init__(self, cdn: Cdn, place: int) -> None:
        super().__init__()
        self._cdn, self._place, self.seconds = cdn, place, 0.0

    def read(self, name: str) -> tuple[bytes, str] | None:
        """See :class:`keystore.sync.storage.Storage`."""
        data = self._get(name)
        return None if data is None else (data, "")

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """See :class:`keystore.sync.storage.Storage`."""
        data = self._get(name)
        if data is None:
            raise missing(self, name)
        yield data[offset:]

    def has(self, name: str) -> bool:
        """See :class:`keystore.sync.storage.Storage`."""
        return self._get(name) is not None

    def _get(self, name: str) -> bytes | None:
        data, seconds = self._cdn.get(self._place, name)
        self.seconds += seconds
        return data
