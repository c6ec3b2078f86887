"""A target in memory: the hub's behaviour without a hub, for users' tests and ours.

It is a simulator, not a mock: it passes the same contract suite as PostgreSQL and the file
repository. It lives as long as the object; threads of one process may share it.
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from keystore.changelog import Page
from keystore.errors import ForkedStoreError, TargetNotReadyError
from keystore.sync.protocols import Origin, PageCounts, Pull, TargetState, Usage
from keystore.tables import TRACKED, Table, WireRow

Record = tuple[str, int]
"""Table name and internal id."""


@dataclass
class _Held:
    """One origin's rows, each with the change up to which the push went that last wrote it."""

    origin: Origin
    acknowledged_change: int = 0
    as_of_at: str = ""
    token: str | None = None
    rows: dict[Record, tuple[int, WireRow]] = field(default_factory=dict)
    tombstones: dict[Record, int] = field(default_factory=dict)


class MemoryHub:
    """Takes many origins, serves many replicas, forgets all at the end of the process."""

    def __init__(self) -> None:
        self.target_id = str(uuid.uuid4())
        self.usage: dict[tuple[str, int], tuple[str, Usage]] = {}
        self._stores: dict[str, _Held] = {}
        self._lock = threading.RLock()

    @property
    def sink(self) -> "MemoryHub":
        return self

    @property
    def source(self) -> "MemoryHub":
        return self

    @property
    def usage_sink(self) -> "MemoryHub":
        return self

    def close(self) -> None:
        """Keep everything: the next open sees it."""

    @contextmanager
    def push(self, origin: Origin) -> Iterator["_MemoryPush"]:
        """Start a push; the lock is held until the block ends."""
        with self._lock:
            yield _MemoryPush(self, self._stores.get(origin.store_id) or _Held(origin), origin)

    @contextmanager
    def pull(self, origin_id: str | None, after: int | None) -> Iterator[Pull]:
        """Open a cut; see :class:`keystore.sync.protocols.Source`."""
        with self._lock:
            held = self._find(origin_id)
            pages = [_page(held, table, after) for table in TRACKED]
            counts = {page.table.name: len(page.rows) for page in pages}
            yield Pull(
                origin=held.origin,
                as_of_change=held.acknowledged_change,
                as_of_at=held.as_of_at,
                counts=counts if after is None else None,
                pages=pages,
            )

    def usage_held(self, store_id: str) -> int:
        """Return the highest usage id held; see :class:`keystore.sync.protocols.UsageSink`."""
        return max((usage_id for owner, usage_id in self.usage if owner == store_id), default=0)

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage; see :class:`keystore.sync.protocols.UsageSink`."""
        with self._lock:
            for usage in rows:
                known = self.usage.get((store_id, usage.usage_id), (origin_id, usage))
                if known != (origin_id, usage):
                    raise ForkedStoreError(
                        f"usage row {usage.usage_id} of store {store_id} is there with another "
                        "content.",
                        hint="Two copies of one replica are in use: make one anew.",
                    )
            self.usage.update({(store_id, usage.usage_id): (origin_id, usage) for usage in rows})

    def _find(self, origin_id: str | None) -> _Held:
        if origin_id is None and len(self._stores) == 1:
            return next(iter(self._stores.values()))
        held = self._stores.get(origin_id or "")
        if held is None:
            raise TargetNotReadyError(
                f"this hub has {len(self._stores)} origins, not {origin_id or 'one'}.",
                hint="Push from the origin first, or name one with --origin.",
            )
        return held

    def _store(self, held: _Held) -> None:
        self._stores[held.origin.store_id] = held


def _page(held: _Held, table: Table, after: int | None) -> Page:
    """Collect what a table's rows and tombstones tell of the changes past ``after``."""
    since = -1 if after is None else after
    rows = [
        row
        for (name, _), (change, row) in sorted(held.rows.items())
        if name == table.name and change > since
    ]
    deleted = [
        record_id
        for (name, record_id), change in sorted(held.tombstones.items())
        if name == table.name and after is not None and change > since
    ]
    return Page(table, rows, deleted)


class _MemoryPush:
    def __init__(self, hub: MemoryHub, held: _Held, origin: Origin) -> None:
        self._hub, self._origin = hub, origin
        self._held = held
        self._rows: dict[Record, WireRow | None] = {}
        self.state = TargetState(held.acknowledged_change, held.token, held.token is None)

    def send(self, page: Page) -> None:
        name = page.table.name
        self._rows.update({(name, int(row[0] or 0)): row for row in page.rows})
        self._rows.update({(name, record_id): None for record_id in page.deleted})

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts | None) -> None:
        rows, tombstones = dict(self._held.rows), dict(self._held.tombstones)
        if counts is not None:
            for record in rows.keys() - self._rows.keys():
                self._rows[record] = None
        for record, row in self._rows.items():
            if row is not None:
                rows[record] = (up_to, row)
                tombstones.pop(record, None)
            elif rows.pop(record, None):
                tombstones[record] = up_to
        self._hub._store(  # noqa: SLF001
            replace(
                self._held,
                origin=self._origin,
                acknowledged_change=up_to,
                as_of_at=as_of_at,
                token=token,
                rows=rows,
                tombstones=tombstones,
            )
        )
