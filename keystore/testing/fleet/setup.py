"""A simulated fleet: a hub, origins with a repository each, edges fed by either."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from keystore import sql
from keystore.backup import backup
from keystore.db import scalar
from keystore.errors import TargetUnavailableError
from keystore.sync import engine, exchange, repository, targets, usage_keys
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.testing.fleet.links import Files, LinkedHub, LinkedStorage, MemoryStorage, state_of
from keystore.testing.fleet.model import BrokenError, Model
from keystore.testing.fleet.nodes import Edge, Issued, Node, Origin
from keystore.testing.fleet.world import Clock, World

LIFETIME = timedelta(days=2)
MAX_OFFLINE = timedelta(days=2)
LARGE_QUOTA = 1_000_000
"""A quota that no history uses up: what is left of it can be told to the unit."""
MOST_EDGES = 7

_SYNC = sql.named("sync")


class Fleet:
    """All nodes, what lies between them, and what must hold of them."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.hub = MemoryHub()
        self.hub_clock = Clock()
        self.hub_backup = state_of(self.hub)
        self.model = Model()
        self.origins: list[Origin] = []
        self.edges: list[Edge] = []
        self.storages: dict[str, MemoryStorage] = {}
        self.older: dict[str, list[bytes]] = {}
        self.actor: Node | None = None
        self.touched: list[Node] = []
        self.is_exact = True
        self._made = 0

    @property
    def nodes(self) -> list[Node]:
        """Origins and edges."""
        return [*self.origins, *self.edges]

    @contextmanager
    def acting(self, node: Node) -> Iterator[None]:
        """Let a node act, by its clock."""
        self.actor = node
        if node not in self.touched:
            self.touched.append(node)
        with self.world.acting(node.clock):
            yield

    def add_origin(self) -> None:
        """Make an origin with a plan, accounts and keys; publish it at the hub and in files."""
        name = f"origin{len(self.origins)}"
        origin = Origin(self.world, name, self.folder)
        self.origins.append(origin)
        storage = self.storages[name] = MemoryStorage()
        self.older[name] = []
        with self.acting(origin):
            store = origin.store
            store.add_service("tts")
            store.add_plan("free")
            for account in ("ada@example.org", "bob@example.org"):
                store.add_account(account, plan="free")
            store.add_provider("acme")
            store.add_model("large", provider="acme", input_per_1k="0.001", output_per_1k="0.002")
            store.grant("ada@example.org", "5", request_id="first")
            self.issue(origin, quotas={"tts": LARGE_QUOTA})
            self.issue(origin, quotas={"tts": 25})
            repository.create(storage, origin.keys, lifetime=LIFETIME, max_offline=MAX_OFFLINE)
            self.sync(origin)
            self.publish(origin)
            self.model.look(origin)

    def issue(self, origin: Origin, **named: Any) -> Issued:
        """Issue a key to ada."""
        issued = origin.store.issue_key("ada@example.org", **named)
        key = issued.key
        origin.issued.append(Issued(str(key.api_key), key.api_key_id, issued.token))
        return origin.issued[-1]

    def add_edge(self, origin: Origin, *, by_files: bool) -> None:
        """Make a replica from the hub or from files, and enroll its key for usage files."""
        self._made += 1
        storage = LinkedStorage(self.world, self.storages[origin.name]) if by_files else None
        edge = Edge(self.world, f"edge{self._made}", self.folder, origin, storage)
        report = Report("hub:")
        with self.acting(edge):
            source: Any = LinkedHub(self.world, self.hub)
            if storage is not None:
                root = (origin.keys / "root.json").read_bytes()
                source = Files(storage, root=root, beside=edge.path).source
            engine.replicate(
                source,
                "files:" if by_files else "hub:",
                edge.path,
                report,
                origin_id=origin.store_id,
                on_filled=lambda file: (
                    None if by_files else exchange.receive_revocations(file, source, "hub:", report)
                ),
            )
            if by_files:
                data, _, _ = usage_keys.make_key(edge.file, edge.key)
        self.edges.append(edge)
        if by_files:
            with self.acting(origin):
                usage_keys.enroll(origin.file, data)

    def add_clone(self, edge: Edge) -> None:
        """Copy an edge as a disk image is copied: the two pass for one."""
        self._made += 1
        storage = LinkedStorage(self.world, edge.storage) if edge.storage else None
        twin = Edge(self.world, f"edge{self._made}", self.folder, edge.origin, storage)
        backup(edge.file, twin.path)
        if edge.key.exists():
            twin.key.write_bytes(edge.key.read_bytes())
        offset = edge.clock.wall(self.world.now) - self.world.now
        twin.clock.set(self.world.now, offset, edge.clock.drift)
        edge.has_called = False
        self.edges.append(twin)
        self.is_exact = False

    def sync(self, node: Node, *, reconcile: bool = False) -> None:
        """Sync with the hub, as `keystore sync` does; call it while the node acts."""
        self._refuse_cut(node)
        hub = LinkedHub(self.world, self.hub)
        is_fed = not (isinstance(node, Edge) and node.storage)
        if is_fed:
            targets.sync_opened(node.file, hub, Report("hub:"), reconcile=reconcile)
        if isinstance(node, Edge):
            node.has_called = True
            self._refuse_twins(node)

    def _refuse_twins(self, edge: Edge) -> None:
        """Two files that have both called must not pass for one: receipts go by that."""
        info = edge.file.info()
        for other in self.edges:
            if other is not edge and other.has_called and other.storage is None:
                found = other.file.info()
                if (found.store_id, found.incarnation) == (info.store_id, info.incarnation):
                    raise BrokenError(0, f"{edge.name} and {other.name} pass for one at the hub")

    def publish(self, origin: Origin, *, reconcile: bool = False) -> None:
        """Publish in files."""
        self._refuse_cut(origin)
        storage = self.storages[origin.name]
        held = storage.files.get("metadata/timestamp.json")
        if held is not None:
            self.older[origin.name].append(held)
        target = Files(LinkedStorage(self.world, storage), keys=origin.keys)
        targets.sync_opened(origin.file, target, Report("files:"), reconcile=reconcile)

    def pull_files(self, edge: Edge) -> None:
        """Pull from files."""
        self._refuse_cut(edge)
        if edge.storage is None:
            return
        state = scalar(edge.file.conn, _SYNC["source_state"], "files:")
        target = Files(edge.storage, state=state, beside=edge.path)
        targets.sync_opened(edge.file, target, Report("files:"))

    def _refuse_cut(self, node: Node) -> None:
        if node.is_cut:
            raise TargetUnavailableError(f"{node.name} is cut off.", hint="Wait.")
