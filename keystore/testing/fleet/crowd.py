"""Many edges on one machine: real replicas, the real engine, in virtual time.

Each edge is a SQLite file of its own, closed between its turns. Half are fed by files behind a CDN
that they poll, half by a hub that wakes them. Meanwhile the origin issues and revokes. What the
network takes is drawn from the ranges in :mod:`keystore.testing.fleet.cdn`, and the hub serves so
many pulls a second: these are assumptions, and everything else is counted.
"""

import heapq
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from keystore import clock, sql
from keystore.changelog import Page
from keystore.db import open_store, scalar
from keystore.edge import Validator
from keystore.store import Store
from keystore.sync import engine, repository, targets
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.testing.fleet.cdn import PLACES, Cdn, CdnStorage, Traffic
from keystore.testing.fleet.history import workplace
from keystore.testing.fleet.links import Files, MemoryStorage
from keystore.testing.fleet.model import BrokenError
from keystore.testing.fleet.tallies import Crowd, Feed
from keystore.testing.fleet.world import Clock, World

KEYS = 200
MINUTES = 10
POLL_SECONDS = 300.0
"""How often an edge asks the CDN; and the hub, as a backstop."""
HUB_PULLS_PER_SECOND = 500
NOTIFY_SECONDS = (0.005, 0.15)
CHECKS = 5
"""Checks that an edge answers in a turn that has brought something; each is metered."""
_SLOWEST_SECONDS = 30.0
_STORE, _SYNC = sql.named("store"), sql.named("sync")


@dataclass(slots=True)
class _Edge:
    path: Path
    is_by_files: bool
    place: int
    clock: Clock
    as_of: int
    lacks: list[tuple[str, float, str]] = field(default_factory=list)


class _CountedHub(MemoryHub):
    """Counts what is asked, and how long the rows are as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def pull(self, origin_id: str | None, after: int | None) -> Any:
        self.traffic.requests += 1
        return _counted(super().pull(origin_id, after), self.traffic)

    def __getattribute__(self, name: str) -> Any:
        if name in {"holds_usage", "push_usage", "revocations", "check_in"}:
            self.traffic.requests += 1
        return super().__getattribute__(name)


class _counted:  # noqa: N801 - a context manager
    def __init__(self, cut: Any, traffic: Traffic) -> None:
        self._cut, self._traffic = cut, traffic

    def __enter__(self) -> Any:
        pull = self._cut.__enter__()
        pull.pages = list(self._count(pull.pages))
        return pull

    def __exit__(self, *error: object) -> Any:
        return self._cut.__exit__(*error)

    def _count(self, pages: Any) -> Iterator[Page]:
        for page in pages:
            if page.rows or page.deleted:
                self._traffic.bytes += len(json.dumps([page.rows, page.deleted]))
            yield page


class Simulation:
    """A run of many edges; see :func:`simulate`."""

    def __init__(self, world: World, folder: Path, edges: int, minutes: float, seed: int) -> None:
        self._world, self._folder, self._minutes = world, folder, minutes
        self._rng = Random(f"crowd {seed}")  # noqa: S311 - a simulation repeats
        self._hub, self._storage = _CountedHub(), MemoryStorage()
        self._cdn = Cdn(world, self._storage)
        self.files, self.by_hub = Feed("files"), Feed("hub")
        self._keys = folder / "origin.keys"
        self._published: dict[int, float] = {}
        self._queue: list[tuple[float, int, int]] = []
        self._served_until = 0.0
        self._numbers = 0
        self._tokens: dict[str, str] = {}
        self._begin()
        self._edges = [self._edge(number) for number in range(edges)]
        self.done = 0

    def run(self, on_progress: Callable[[int, int], None]) -> None:
        """Let everything happen, turn by turn."""
        begin, end = self._world.now, self._world.now + 60 * self._minutes
        acts = [
            (begin + (end - begin) * part, act)
            for part, act in ((0.1, self._issue), (0.3, self._revoke), (0.6, self._revoke_at_hub))
        ]
        # until everybody has asked once more after the last act
        last = max(end, acts[-1][0] + 1.05 * POLL_SECONDS + _SLOWEST_SECONDS)
        for number in range(len(self._edges)):
            at = begin + self._rng.uniform(0, POLL_SECONDS)
            while at < last:
                self._plan(at, number)
                at += POLL_SECONDS * self._rng.uniform(0.95, 1.05)
        while self._queue or acts:
            if acts and (not self._queue or acts[0][0] <= self._queue[0][0]):
                self._world.now, act = acts.pop(0)
                act()
                continue
            at, _, number = heapq.heappop(self._queue)
            self._world.now = at
            self._turn(self._edges[number])
            self.done += 1
            on_progress(self.done, self.done + len(self._queue))

    def check(self) -> Crowd:
        """Check that everybody has everything, and return what was counted.

        Raises:
            BrokenError: somebody has not.
        """
        head = max(self._published)
        behind = [edge for edge in self._edges if edge.as_of != head or edge.lacks]
        if behind:
            raise BrokenError(1, f"{len(behind)} edges do not have what was published last")
        total = sum(used.amount for _, used in self._hub.usage.values())
        if total != self.by_hub.units:
            raise BrokenError(3, f"{self.by_hub.units} units were used, and {total} are at the hub")
        self.by_hub.usage_rows = len(self._hub.usage)
        self.by_hub.traffic = self._hub.traffic
        return Crowd(
            len(self._edges),
            self._minutes,
            self.files,
            self.by_hub,
            self._cdn.out,
            self._cdn.origin,
        )

    def _begin(self) -> None:
        path = self._folder / "origin.db"
        self._store = Store.create(path)
        self._origin_id = self._store.info.store_id
        self._store.add_plan("free")
        self._store.add_account("ada@example.org", plan="free")
        repository.create(self._storage, self._keys)
        for _ in range(KEYS):
            issued = self._store.issue_key("ada@example.org")
            self._tokens[str(issued.key.api_key)] = issued.token
        self._spread()
        self._head = max(self._published)
        self._root = (self._keys / "root.json").read_bytes()
        sources: dict[bool, Any] = {
            True: Files(self._storage, root=self._root, beside=path).source,
            False: self._hub,
        }
        self._templates = {}
        for is_by_files, source in sources.items():
            template = self._folder / f"template-{is_by_files}.db"
            url = "files:" if is_by_files else "hub:"
            engine.replicate(source, url, template, Report(url), origin_id=self._origin_id)
            self._templates[is_by_files] = template

    def _edge(self, number: int) -> _Edge:
        """Copy a ready-made replica, and give it an identity of its own."""
        is_by_files = number % 2 == 0
        path = self._folder / f"edge{number}.db"
        shutil.copyfile(self._templates[is_by_files], path)
        path.chmod(0o600)
        with open_store(path) as file, file.write() as conn:
            mine = {"store_id": str(self._world.uuid7()), "incarnation": str(self._world.uuid4())}
            conn.execute(_STORE["take_identity"], mine)
        feed = self.files if is_by_files else self.by_hub
        feed.edges += 1
        clock_ = Clock(offset=self._rng.uniform(-0.5, 0.5))
        return _Edge(path, is_by_files, number % PLACES, clock_, self._head)

    def _issue(self) -> None:
        for _ in range(5):
            issued = self._store.issue_key("ada@example.org")
            self._tokens[str(issued.key.api_key)] = issued.token
        self._spread()

    def _revoke(self) -> None:
        key = next(iter(self._tokens))
        self._store.revoke_key(key, reason="leaked")
        self._lack("origin", key)
        self._spread()

    def _revoke_at_hub(self) -> None:
        key = next(iter(self._tokens))
        self._hub.revoke(key, reason="leaked")
        self._lack("hub", key)
        self._wake()
        self._world.now += self._rng.uniform(*NOTIFY_SECONDS)
        self._spread()

    def _lack(self, where: str, key: str) -> None:
        token = self._tokens.pop(key)
        for edge in self._edges:
            edge.lacks.append((where, self._world.now, token))

    def _spread(self) -> None:
        """Sync the origin with the hub, which wakes its edges, and publish in files."""
        targets.sync_opened(self._store.file, self._hub, Report("hub:"))
        files = Files(self._storage, keys=self._keys)
        report = Report("files:")
        targets.sync_opened(self._store.file, files, report)
        self._published[report.as_of_change or 0] = self._world.now
        self._wake()

    def _wake(self) -> None:
        """Let the hub's edges hear of it, and be served one after the other."""
        heard = [
            (self._world.now + self._rng.uniform(*NOTIFY_SECONDS), number)
            for number, edge in enumerate(getattr(self, "_edges", ()))
            if not edge.is_by_files
        ]
        for at, number in sorted(heard):
            self._served_until = max(at, self._served_until + 1 / HUB_PULLS_PER_SECOND)
            self._plan(self._served_until, number)

    def _plan(self, at: float, number: int) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (at, self._numbers, number))

    def _turn(self, edge: _Edge) -> None:
        feed = self.files if edge.is_by_files else self.by_hub
        with self._world.acting(edge.clock), open_store(edge.path) as file:
            info = file.info()
            feed.age.append(max(0.0, self._world.now - clock.seconds(info.as_of_at or "")))
            seconds = self._sync(edge, file, feed)
            has_news = file.info().as_of_change != edge.as_of or bool(edge.lacks)
            edge.as_of = file.info().as_of_change or 0
            if has_news:
                self._answer(edge, feed, seconds)  # what it counts goes up with its next sync

    def _sync(self, edge: _Edge, file: Any, feed: Feed) -> float:
        report, before = Report("files:" if edge.is_by_files else "hub:"), edge.as_of
        if edge.is_by_files:
            storage = CdnStorage(self._cdn, edge.place)
            state = scalar(file.conn, _SYNC["source_state"], "files:")
            files = Files(storage, state=state, beside=edge.path)
            targets.sync_opened(file, files, report)
            seconds = storage.seconds
        else:
            targets.sync_opened(file, self._hub, report)
            seconds = self._rng.uniform(*NOTIFY_SECONDS)
        feed.syncs += 1
        feed.records += report.pulled or 0
        done = self._world.now + seconds
        as_of = report.as_of_change or 0
        feed.arrived.extend(
            done - at for change, at in self._published.items() if before < change <= as_of
        )
        return seconds

    def _answer(self, edge: _Edge, feed: Feed, seconds: float) -> None:
        """Check some keys, and those that were revoked."""
        with Validator(edge.path) as validator:
            for token in self._rng.sample(list(self._tokens.values()), CHECKS):
                decision = validator.check(token)
                feed.allowed += decision.allowed
                feed.refused += not decision.allowed
                feed.units += decision.allowed
            still = []
            for where, since, token in edge.lacks:
                if validator.check(token, cost=0).allowed:
                    still.append((where, since, token))
                else:
                    feed.refused += 1
                    feed.denied.setdefault(where, []).append(self._world.now + seconds - since)
            edge.lacks = still


def simulate(
    edges: int,
    *,
    seed: int = 0,
    minutes: float = MINUTES,
    on_progress: Callable[[int, int], None] = lambda _, __: None,
) -> Crowd:
    """Run ``edges`` edges for so many virtual minutes, and until they have what came last.

    ``on_progress`` gets how many turns are done, and how many are planned so far.

    Raises:
        BrokenError: a guarantee does not hold.
    """
    with workplace() as folder, ExitStack() as ends:
        world = World(f"crowd {seed}")
        ends.enter_context(world.installed())
        simulation = Simulation(world, folder, edges, minutes, seed)
        simulation.run(on_progress)
        return simulation.check()
