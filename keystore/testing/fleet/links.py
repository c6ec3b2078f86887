"""What lies between the nodes of a simulated fleet: a hub and files, over a network that fails."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from keystore.errors import TargetUnavailableError
from keystore.sync.files_sink import FileSink
from keystore.sync.files_source import FileSource
from keystore.sync.memory import MemoryHub
from keystore.sync.protocols import Hub, Origin, PushSession, Sink, Source
from keystore.sync.storage import missing
from keystore.testing.fleet.world import World

_REPEATED = {"push_usage", "push_ledger", "check_in"}
"""What a client or a proxy may send twice on its own."""
_CHUNK = 1 << 16


class Wire:
    """Where a message may be lost, its answer may be, or it may arrive twice."""

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self, name: str, act: Any) -> Any:
        """Do something at the other end."""
        fault = self.world.fault
        kind = fault.kind if fault.kind in {"cut", "lost", "twice"} and fault.strikes() else ""
        if kind == "cut":
            raise _gone(name)
        answer = act()
        if kind == "twice" and name in _REPEATED:
            act()
        if kind == "lost":
            raise _gone(name)
        return answer


class LinkedHub:
    """A hub as a node sees it."""

    _ASKED = frozenset(
        {
            "holds_usage",
            "push_usage",
            "holds_ledger",
            "push_ledger",
            "consumption",
            "revocations",
            "check_in",
        }
    )

    def __init__(self, world: World, hub: MemoryHub) -> None:
        self._wire, self._hub = Wire(world), hub
        self.target_id = hub.target_id

    @property
    def sink(self) -> Sink | None:
        return self

    @property
    def source(self) -> Source | None:
        return self

    @property
    def hub(self) -> Hub | None:
        return self

    def close(self) -> None:
        """The hub stays."""

    def pull(self, origin_id: str | None, after: int | None) -> AbstractContextManager[Any]:
        """Open a cut."""
        found: AbstractContextManager[Any] = self._wire.call(
            "pull", partial(self._hub.pull, origin_id, after)
        )
        return found

    @contextmanager
    def push(self, origin: Origin) -> Iterator[PushSession]:
        """Start a push."""
        with self._hub.push(origin) as session:
            yield _LinkedPush(self._wire, session)

    def __getattr__(self, name: str) -> Any:
        if name not in self._ASKED:
            raise AttributeError(name)
        act = getattr(self._hub, name)
        return lambda *given, **named: self._wire.call(name, partial(act, *given, **named))


class _LinkedPush:
    def __init__(self, wire: Wire, session: Any) -> None:
        self._wire, self._session = wire, session

    def commit(self, **said: Any) -> Any:
        return self._wire.call("commit", partial(self._session.commit, **said))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._session, name, value)


def state_of(hub: MemoryHub) -> dict[str, Any]:
    """Copy what a hub holds, as a backup of it does."""
    lives = {"_lock", "_has_news", "_watches"}
    return copy.deepcopy({name: held for name, held in vars(hub).items() if name not in lives})


def put_back(hub: MemoryHub, state: dict[str, Any]) -> None:
    """Put a hub back to an earlier state."""
    vars(hub).update(copy.deepcopy(state))


class MemoryStorage:
    """A repository's files in memory; see :class:`keystore.sync.storage.Storage`."""

    url = "https://cdn.example/keystore"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Nothing is needed."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's bytes, and their digest as the tag."""
        data = self.files.get(name)
        return None if data is None else (data, sha256(data).hexdigest())

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on."""
        data = self.files.get(name)
        if data is None:
            raise missing(self, name)
        for place in range(offset, len(data), _CHUNK):
            yield data[place : place + _CHUNK]

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.files

    def put(self, name: str, source: Path) -> None:
        """Store a file."""
        self.files[name] = source.read_bytes()

    def create(self, name: str, data: bytes) -> bool:
        """Store a file under a free name."""
        is_free = name not in self.files
        self.files.setdefault(name, data)
        return is_free

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Replace the file that has the tag."""
        held = self.read(name)
        is_it = (held and held[1]) == tag
        if is_it:
            self.files[name] = data
        return is_it

    def names(self) -> Iterator[str]:
        """Yield the names of all files."""
        yield from list(self.files)

    def delete(self, name: str) -> None:
        """Remove a file."""
        self.files.pop(name, None)

    def lock(self) -> AbstractContextManager[None]:
        """Nobody else publishes."""
        return nullcontext()


class LinkedStorage(MemoryStorage):
    """A storage as a node sees it; ``altered`` is what somebody on the way says instead."""

    def __init__(self, world: World, storage: MemoryStorage) -> None:
        super().__init__()
        self.files, self._wire = storage.files, Wire(world)
        self.altered: dict[str, bytes] = {}

    def read(self, name: str) -> tuple[bytes, str] | None:
        """See :class:`MemoryStorage`."""
        found: tuple[bytes, str] | None = self._wire.call(name, partial(super().read, name))
        return (self.altered[name], "") if found and name in self.altered else found

    def chunks(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """See :class:`MemoryStorage`."""
        found = self._wire.call(name, lambda: list(self._chunks(name, offset)))
        yield from found

    def _chunks(self, name: str, offset: int) -> Iterator[bytes]:
        if name in self.altered:
            yield self.altered[name][offset:]
        else:
            yield from super().chunks(name, offset)

    def put(self, name: str, source: Path) -> None:
        """See :class:`MemoryStorage`."""
        self._wire.call(name, partial(super().put, name, source))

    def create(self, name: str, data: bytes) -> bool:
        """See :class:`MemoryStorage`."""
        return bool(self._wire.call(name, partial(super().create, name, data)))

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """See :class:`MemoryStorage`."""
        return bool(self._wire.call(name, partial(super().replace, name, data, tag)))


class Files:
    """A repository as a target: a sink with ``keys``, a source with ``root`` or ``state``."""

    hub = None

    def __init__(
        self,
        storage: MemoryStorage,
        *,
        keys: Path | None = None,
        root: bytes | None = None,
        state: str | None = None,
        beside: Path | None = None,
    ) -> None:
        self.sink = FileSink(storage, keys) if keys else None
        self.source = FileSource(storage, root, state, beside) if root or state else None

    def close(self) -> None:
        """Nothing is kept open."""


def _gone(name: str) -> TargetUnavailableError:
    return TargetUnavailableError(f"nobody answers ({name}).", hint="Try again later.")
