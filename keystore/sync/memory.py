"""A target in memory: the hub's behaviour without a hub, for users' tests and ours.

It is a simulator, not a mock: it passes the same contract suite as PostgreSQL and the file
repository. It lives as long as the object; threads of one process may share it.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakSet

from keystore.changelog import Page, Record
from keystore.clock import utc_text
from keystore.errors import NotFoundError, TargetNotReadyError
from keystore.quotas import Consumed
from keystore.sync import digest
from keystore.sync.digest import Bucket, Buckets
from keystore.sync.protocols import (
    CheckIn,
    Consumption,
    Entry,
    News,
    Origin,
    PageCounts,
    Pull,
    Revocation,
    TargetState,
    Usage,
)
from keystore.tables import TRACKED, Table, WireRow


@dataclass
class _Held:
    """One origin's rows, each with the change up to which the push went that last wrote it.

    A push makes a new one; what is held is never changed in place.
    """

    origin: Origin
    acknowledged_change: int = 0
    as_of_at: str = ""
    token: str | None = None
    rows: dict[Record, tuple[int, WireRow]] = field(default_factory=dict)
    tombstones: dict[Record, int] = field(default_factory=dict)
    tombstone_horizon: int = 0
    counts: PageCounts = field(default_factory=dict)

    def digests(self) -> Buckets:
        return dict(self._digests)

    def bucket_pages(self, buckets: Collection[Bucket]) -> Iterator[Page]:
        for table, first, last in digest.ranges(buckets):
            page = self.page(table, None)
            yield Page(table, [row for row in page.rows if first <= int(row[0] or 0) <= last])

    def page(self, table: Table, after: int | None) -> Page:
        """Collect what a table's rows and tombstones tell of the changes past ``after``."""
        rows, tombstones = self._by_table[table.name]
        if after is None:
            return Page(table, [row for _, row in rows])
        return Page(
            table,
            [row for change, row in rows if change > after],
            [record_id for change, record_id in tombstones if change > after],
        )

    @cached_property
    def _digests(self) -> Buckets:
        return digest.digest_pages(self.page(table, None) for table in TRACKED)

    @cached_property
    def _by_table(self) -> dict[str, tuple[list[tuple[int, WireRow]], list[tuple[int, int]]]]:
        found: dict[str, tuple[list[tuple[int, WireRow]], list[tuple[int, int]]]]
        found = {table.name: ([], []) for table in TRACKED}
        for (name, _), (change, row) in sorted(self.rows.items()):
            found[name][0].append((change, row))
        for (name, record_id), change in sorted(self.tombstones.items()):
            found[name][1].append((change, record_id))
        return found


class MemoryHub:
    """Takes many origins, serves many replicas, forgets all at the end of the process."""

    def __init__(self) -> None:
        self.target_id = str(uuid.uuid4())
        self.usage: dict[tuple[str, int, int], tuple[str, Usage]] = {}
        self.ledger: dict[tuple[str, int, int], Entry] = {}
        self.replicas: dict[tuple[str, str], tuple[str, CheckIn]] = {}
        self._revocations: list[tuple[str, Revocation]] = []
        self._head = 0
        self._stores: dict[str, _Held] = {}
        self._lock = threading.RLock()
        self._has_news = threading.Condition(self._lock)
        self._watches: WeakSet[_MemoryWatch] = WeakSet()  # nobody closes them

    @property
    def sink(self) -> "MemoryHub":
        return self

    @property
    def source(self) -> "MemoryHub":
        return self

    @property
    def hub(self) -> "MemoryHub":
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
            if after is not None and after < held.tombstone_horizon:
                after = None  # what was deleted since is no longer known
            pages = [held.page(table, after) for table in TRACKED]
            yield Pull(
                origin=held.origin,
                as_of_change=held.acknowledged_change,
                as_of_at=held.as_of_at,
                counts=held.counts,
                is_everything=after is None,
                pages=pages,
                digests=held.digests,
                bucket_pages=held.bucket_pages,
            )

    def holds_usage(self, store_id: str, usage_id: int, nonce: int) -> bool:
        """Look for a usage row; see :class:`keystore.sync.protocols.Hub`."""
        return (store_id, usage_id, nonce) in self.usage

    def push_usage(self, store_id: str, origin_id: str, rows: Sequence[Usage]) -> None:
        """Take usage; see :class:`keystore.sync.protocols.Hub`."""
        with self._lock:
            for usage in rows:
                known = (store_id, usage.usage_id, usage.nonce)
                self.usage.setdefault(known, (origin_id, usage))

    def holds_ledger(self, store_id: str, ledger_id: int, nonce: int) -> bool:
        """Look for a row of a ledger; see :class:`keystore.sync.protocols.Hub`."""
        return (store_id, ledger_id, nonce) in self.ledger

    def push_ledger(self, store_id: str, rows: Sequence[Entry]) -> None:
        """Take rows of a ledger; see :class:`keystore.sync.protocols.Hub`."""
        with self._lock:
            for entry in rows:
                self.ledger.setdefault((store_id, entry.ledger_id, entry.nonce), entry)

    def consumption(self, origin_id: str, settled: Mapping[str, int]) -> list[Consumption]:
        """Sum up what was used; see :class:`keystore.sync.protocols.Hub`."""
        sums: dict[str, Counter[tuple[int, int, str]]] = {}
        up_to: dict[str, int] = {}
        with self._lock:
            for (store_id, usage_id, _), (origin, usage) in self.usage.items():
                is_new = usage_id > settled.get(store_id, 0) and store_id != origin_id == origin
                if is_new and usage.principal_type == "api_key" and usage.service_id is not None:
                    hour = f"{usage.occurred_at[:13]}:00:00"
                    whose = (usage.principal_id, usage.service_id, hour)
                    sums.setdefault(store_id, Counter())[whose] += usage.amount
                    up_to[store_id] = max(usage_id, up_to.get(store_id, 0))
        return [
            Consumption(
                store_id,
                up_to[store_id],
                [Consumed(*whose, amount) for whose, amount in found.items()],
            )
            for store_id, found in sums.items()
        ]

    def revoke(self, key: str, *, reason: str | None = None) -> list[Revocation]:
        """Revoke a key for good, by its UUID.

        Raises:
            NotFoundError: no origin has pushed such a key.
        """
        with self._lock:
            owners = [
                store_id
                for store_id, held in self._stores.items()
                for (name, _), (_, row) in held.rows.items()
                if name == "APIKeys" and row[1] == key
            ]
            if not owners:
                raise NotFoundError("the hub has no such key.", hint="Push from its origin first.")
            for owner in owners:
                if (owner, key) not in {(s, item.api_key) for s, item in self._revocations}:
                    # from the clock: see next_revocation in hub.sql
                    number = max(self._head + 1, time.time_ns() // 1000)
                    self._head = number
                    item = Revocation(number, key, reason, utc_text())
                    self._revocations.append((owner, item))
                    self._tell(owner, News("revocation", number))
            return [item for _, item in self._revocations if item.api_key == key]

    def revocations(self, origin_id: str, after: int, last: str | None) -> list[Revocation]:
        """Return what was revoked since; see :class:`keystore.sync.protocols.Hub`."""
        found = [item for owner, item in self._revocations if owner == origin_id]
        if not any((item.revocation_id, item.api_key) == (after, last) for item in found):
            after = 0
        return [item for item in found if item.revocation_id > after]

    def check_in(self, who: CheckIn, *, last: str | None, token: str) -> bool:
        """Note what a replica has; see :class:`keystore.sync.protocols.Hub`."""
        with self._lock:
            known, _ = self.replicas.get((who.store_id, who.incarnation), (token, who))
            is_ours = known in {last, token} or (last is not None and known < last)
            if is_ours:
                self.replicas[who.store_id, who.incarnation] = (token, who)
            return is_ours

    def watch(self, origin_id: str) -> "_MemoryWatch":
        """Listen for news; see :class:`keystore.sync.protocols.Hub`."""
        with self._lock:
            watch = _MemoryWatch(self._has_news, origin_id)
            self._watches.add(watch)
        return watch

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

    def _store(self, held: _Held, *, has_moved: bool) -> None:
        self._stores[held.origin.store_id] = held
        if has_moved:
            self._tell(held.origin.store_id, News("change", held.acknowledged_change))

    def _tell(self, origin_id: str, news: News) -> None:
        for watch in self._watches:
            if watch.origin_id == origin_id:
                watch.news.append(news)
        self._has_news.notify_all()


class _MemoryWatch:
    def __init__(self, has_news: threading.Condition, origin_id: str) -> None:
        self._has_news, self.origin_id = has_news, origin_id
        self.news: list[News] = []

    def wait(self, seconds: float) -> list[News]:
        with self._has_news:
            self._has_news.wait_for(lambda: self.news, seconds)
            found, self.news = self.news, []
        return found


class _MemoryPush:
    def __init__(self, hub: MemoryHub, held: _Held, origin: Origin) -> None:
        self._hub, self.origin = hub, origin
        self._held = held
        self._rows: dict[Record, WireRow | None] = {}
        self._is_everything = False
        self.state = TargetState(held.acknowledged_change, held.token, held.token is None)

    def digests(self) -> Buckets:
        return self._held.digests()

    def bucket_pages(self, buckets: Collection[Bucket]) -> Iterator[Page]:
        yield from self._held.bucket_pages(buckets)

    def highest_ids(self) -> PageCounts:
        highest: dict[str, int] = {}
        for name, record_id in (*self._held.rows, *self._held.tombstones):
            highest[name] = max(record_id, highest.get(name, 0))
        return highest

    def start_over(self) -> None:
        self._is_everything = True
        self._rows = dict.fromkeys(self._held.rows)

    def send(self, page: Page) -> None:
        name = page.table.name
        self._rows.update({(name, int(row[0] or 0)): row for row in page.rows})
        self._rows.update({(name, record_id): None for record_id in page.deleted})

    def commit(self, *, up_to: int, as_of_at: str, token: str, counts: PageCounts) -> None:
        rows, tombstones = dict(self._held.rows), dict(self._held.tombstones)
        for record, row in self._rows.items():
            if row is not None:
                rows[record] = (up_to, row)
                tombstones.pop(record, None)
            else:  # it may be unknown here and known to a replica, from elsewhere
                rows.pop(record, None)
                tombstones[record] = up_to
        # who pushes everything does not name what was deleted before
        horizon = up_to if self._is_everything else self._held.tombstone_horizon
        self._hub._store(  # noqa: SLF001
            replace(
                self._held,
                origin=self.origin,
                acknowledged_change=up_to,
                as_of_at=as_of_at,
                token=token,
                rows=rows,
                tombstones=tombstones,
                tombstone_horizon=horizon,
                counts=counts,
            ),
            has_moved=bool(self._rows),
        )
