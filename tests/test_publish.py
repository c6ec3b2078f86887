"""Whatever an origin publishes, and whenever somebody reads: it is one whole state of it."""

import json
import shutil
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from keystore import Store
from keystore.backup import backup, restore
from keystore.db import open_store
from keystore.errors import (
    AlreadyExistsError,
    ConstraintError,
    ForkedStoreError,
    StaleTargetError,
    UntrustedRepositoryError,
)
from keystore.repair import mend
from keystore.sync import compact, engine, files_sink, repository, segments, targets
from keystore.sync.engine import Report
from keystore.sync.files import FileRepository
from keystore.sync.folder import Folder
from keystore.sync.memory import MemoryHub
from keystore.sync.repository import Publisher
from tests.conftest import NewStore
from tests.repositories import Clock, Shelf, digest_of
from tests.test_failures_histories import FAST, HASHES, UUIDS, statements

STEPS = ("publish.files", "publish.metadata", "publish.timestamp")
which = st.integers(0, 3)


@pytest.fixture
def shelf(store: Store, tmp_path: Path) -> Shelf:
    return Shelf(store, tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch.setattr)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges, new snapshots and a chain that is cut short, all the time."""
    monkeypatch.setattr(segments, "FAN_OUT", 2)
    monkeypatch.setattr(segments, "room", lambda _: 1500)


class Publications(RuleBasedStateMachine):
    """One origin, which publishes to a folder and to a hub, and replicas that read both."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self._folder = tempfile.TemporaryDirectory(prefix="keystore-publish-")
        self.base = Path(self._folder.name)
        self.hub = MemoryHub()
        self.replicas: list[Path] = []
        self.backups: list[Path] = []

    @initialize()
    def start(self) -> None:
        store = Store.create(self.base / "origin.db")
        store.file.conn.execute("INSERT INTO Plans (name) VALUES ('plan 1')")
        store.file.conn.execute("INSERT INTO Accounts (email, plan_id) VALUES ('1@x.org', 1)")
        self.shelf = Shelf(store, self.base)
        self.published: object = None
        self.publish(None)
        self.replicas = [self.shelf.replicate() for _ in range(2)]

    @property
    def store(self) -> Store:
        return self.shelf.store

    @rule(writes=statements, recursive=st.booleans())
    def write(self, writes: list[tuple[str, int, int, int, int]], recursive: bool) -> None:
        with suppress(ConstraintError):
            self.store.file.conn.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            with self.store.file.write() as conn:
                for text, a, b, key, secret in writes:
                    values = {"a": a, "b": b, "uuid": UUIDS[key], "hash": HASHES[secret]}
                    conn.execute(text.format(**values))

    @rule(step=st.sampled_from([None, *STEPS]))
    def publish(self, step: str | None) -> None:
        """Publish; at one step, somebody copies the folder, and reads the copy later."""
        before = self.published
        with self.shelf.seen_at(step or "") as copies:
            self.shelf.publish()
        self.published = digest_of(self.base / "origin.db")
        for seen, copy in copies.items():
            wanted = self.published if seen == "publish.timestamp" else before
            if wanted is not None:
                assert digest_of(self.shelf.replicate(folder=copy)) == wanted
                twin = self.base / f"{copy.name}.db"
                with open_store(self.replicas[0]) as file:
                    backup(file, twin)
                with suppress(StaleTargetError):
                    self.shelf.pull(twin, folder=copy)
                    assert digest_of(twin) == wanted

    @rule(which=which)
    def pull(self, which: int) -> None:
        path = self.replicas[which % len(self.replicas)]
        with suppress(StaleTargetError):  # it has something later from the hub
            self.shelf.pull(path)
            assert digest_of(path) == self.published

    @rule()
    def start_fresh(self) -> None:
        path = self.shelf.replicate()
        assert digest_of(path) == self.published
        self.replicas.append(path)

    @rule(which=which)
    def sync_by_the_hub(self, which: int) -> None:
        engine.push(self.store.file, self.hub, "hub:", Report("hub:"))
        path = self.replicas[which % len(self.replicas)]
        with open_store(path) as file:
            engine.pull(file, self.hub, "hub:", Report("hub:"))
        assert digest_of(path) == digest_of(self.base / "origin.db")

    @rule()
    def compact(self) -> None:
        compact.compact(self.store.file, lease=timedelta(0))

    @rule()
    def lose_faith_in_the_log(self) -> None:
        conn = self.store.file.conn
        conn.execute("DROP TRIGGER trg_plans_insert")
        conn.execute("INSERT INTO Plans (name) SELECT 'unseen ' || count(*) FROM Plans")
        mend(self.store.file)

    @rule()
    def back_up(self) -> None:
        path = self.base / f"backup-{len(self.backups)}.db"
        with open_store(self.base / "origin.db") as file:
            backup(file, path)
        self.backups.append(path)

    @rule(which=which)
    def restore(self, which: int) -> None:
        """The origin is put back to a backup, and goes on."""
        if not self.backups:
            return
        self.store.close()
        path = self.base / "origin.db"
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        restore(self.backups[which % len(self.backups)], path)
        self.shelf.store = Store.open(path)
        self.shelf.publish(reconcile=True)
        self.published = digest_of(path)
        engine.push(self.store.file, self.hub, "hub:", Report("hub:"), reconcile=True)

    @rule(which=which, flip=st.booleans())
    def lose_a_file(self, which: int, flip: bool) -> None:
        """Damage what is published; it heals at the next look, and loses nothing."""
        found = sorted((self.shelf.folder / "targets").iterdir())
        lost = found[which % len(found)]
        if flip:
            lost.write_bytes(bytes(reversed(lost.read_bytes())))
            self.shelf.storage.delete(f"targets/{lost.name}")
        else:
            lost.unlink()
        self.clock.advance(hours=1)
        self.publish(None)

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.clock.advance(hours=hours)

    def teardown(self) -> None:
        if hasattr(self, "shelf"):
            self.publish(None)
            for path in (*self.replicas, self.shelf.replicate()):
                self.shelf.pull(path)
                assert digest_of(path) == self.published
            self.store.close()
        self._folder.cleanup()


def test_each_replica_has_what_was_published_however_often_it_reads(
    monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    clock = Clock(monkeypatch.setattr)
    run_state_machine_as_test(lambda: Publications(clock), settings=FAST)
