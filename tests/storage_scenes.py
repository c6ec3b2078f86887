"""What keystore does to a disk, as scenes that can be played on one that fails.

A scene prepares a folder once. It is then played in copies of it: in :meth:`Scene.run` all may go
wrong; in :meth:`Scene.go_on` somebody takes up what is there on a sound disk, and it must come out
as if nothing had happened.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from keystore import Reason, Store, Validator, db, migrate
from keystore.backup import backup, restore
from keystore.db import open_store
from keystore.doctor import examine
from keystore.errors import KeystoreError
from keystore.sync import compact, digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.failures import said
from tests.repositories import Shelf
from tests.test_migrations import FIXTURES, unpack

ADA = "ada@example.org"
MODEL = "gpt-5-chat"
UNITS = 200
T = TypeVar("T")


class Hub(MemoryHub):
    """A hub on a machine of its own: it tells after each change what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: Callable[[Hub], None] = lambda _: None

    def twin(self) -> "Hub":
        """Return what holds the same."""
        twin = Hub()
        twin.target_id, twin._head = self.target_id, self._head
        for name in ("usage", "ledger", "replicas", "_stores"):
            setattr(twin, name, dict(getattr(self, name)))
        twin._revocations = list(self._revocations)
        return twin

    def _store(self, *arguments: Any, **options: Any) -> None:
        super()._store(*arguments, **options)
        self.changed(self.twin())

    def push_usage(self, *arguments: Any) -> None:
        super().push_usage(*arguments)
        self.changed(self.twin())

    def push_ledger(self, *arguments: Any) -> None:
        super().push_ledger(*arguments)
        self.changed(self.twin())

    def check_in(self, *arguments: Any, **options: Any) -> bool:
        is_ours = super().check_in(*arguments, **options)
        self.changed(self.twin())
        return is_ours


class Scene:
    """One thing that keystore does; ``path`` is the store that comes out of it."""

    path: ClassVar[str] = "store.db"
    checkpoint_at: ClassVar[int] = 1000
    is_made: ClassVar[bool] = False
    """Whether the store is made by the scene: then it is not there at all, or whole."""

    def __init__(self) -> None:
        self.hub = Hub()

    def prepare(self, folder: Path) -> None:
        raise NotImplementedError

    def run(self, folder: Path, hub: Hub) -> None:
        raise NotImplementedError

    def go_on(self, folder: Path, hub: Hub) -> None:
        """Do it again after whatever has happened, and see that the outcome is the right one."""
        self.run(folder, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        """Assert what must be so after it has happened once, or was taken up again."""


def populate(path: Path) -> list[str]:
    """Make an origin; return the tokens of its two keys."""
    with Store.create(path) as store:
        store.add_plan("free")
        store.add_account(ADA, plan="free")
        store.add_service("tts")
        issued = [store.issue_key(ADA) for _ in range(2)]
        store.set_quota(issued[0].key.api_key, "tts", UNITS)
        return [one.token for one in issued]


def sync(path: Path, hub: Hub) -> None:
    with open_store(path) as file:
        targets.sync_opened(file, hub, Report("hub:"))


def same(one: Path, other: Path) -> bool:
    with open_store(one) as first, open_store(other) as second:
        return digest.digest_store(first) == digest.digest_store(second)


def used(path: Path) -> int:
    with open_store(path) as file:
        return int(db.scalar(file.conn, "SELECT coalesce(sum(amount), 0) FROM UsageLog"))


def patiently(act: Callable[[], T]) -> T:
    """Do something, and once more after an error that says what to do."""
    try:
        return act()
    except KeystoreError as error:
        said(error)
        return act()


class Migration(Scene):
    """An old store is brought up to date."""

    def __init__(self, fixture: str) -> None:
        super().__init__()
        self.fixture = fixture

    def prepare(self, folder: Path) -> None:
        unpack(self.fixture, folder).rename(folder / self.path)
        # (outside of what is watched)
        self._wanted = unpack(self.fixture, folder.parent)
        migrate.upgrade(self._wanted)

    def run(self, folder: Path, hub: Hub) -> None:
        migrate.upgrade(folder / self.path)

    def check(self, folder: Path, hub: Hub) -> None:
        assert self._said(folder / self.path) == self._said(self._wanted)

    @staticmethod
    def _said(path: Path) -> str:
        """What a store says, but for when it was migrated."""
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "then", repr(state_of(path)))


class Push(Scene):
    """An origin syncs: revocations, quotas, its rows, its usage and its ledger."""

    def prepare(self, folder: Path) -> None:
        path = folder / self.path
        populate(path)
        sync(path, self.hub)
        with Store.open(path) as store:
            store.delete_key(store.issue_key(ADA).key.api_key)
            doomed = store.issue_key(ADA).key.api_key
            sync(path, self.hub)
            store.add_plan("later")
            store.grant(ADA, "5")
            store.log_usage("session", 7, 3, service="tts", account=ADA)
        self.hub.revoke(doomed)

    def run(self, folder: Path, hub: Hub) -> None:
        sync(folder / self.path, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / self.path) as file:
            with hub.pull(file.info().store_id, None) as cut:
                assert cut.digests() == digest.digest_store(file)
            assert db.scalar(file.conn, "SELECT count(*) FROM APIKeys WHERE is_active") == 2
        assert sum(usage.amount for _, usage in hub.usage.values()) == 3
        assert sum(entry.amount_nano for entry in hub.ledger.values()) == 5 * 10**9


class Pull(Scene):
    """A replica syncs: revocations, the origin's rows, its usage, and it checks in."""

    def prepare(self, folder: Path) -> None:
        origin = self._origin = folder.parent / "origin.db"
        tokens = populate(origin)
        sync(origin, self.hub)
        engine.replicate(self.hub, "hub:", folder / self.path, Report("hub:"))
        with Validator(folder / self.path) as validator:
            assert validator.check(tokens[0]).allowed
        with Store.open(origin) as store:
            store.change_plan("free", rename="gratis")
            doomed = store.issue_key(ADA).key.api_key
            store.delete_key(store.key(tokens[1]).api_key)
            for _ in range(20):
                store.issue_key(ADA)
        sync(origin, self.hub)
        self.hub.revoke(doomed)

    def run(self, folder: Path, hub: Hub) -> None:
        sync(folder / self.path, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        assert same(folder / self.path, self._origin)
        assert sum(usage.amount for _, usage in hub.usage.values()) == 1
        ((_, who),) = hub.replicas.values()
        with open_store(folder / self.path) as file:
            assert who.store_id == file.info().store_id
            assert who.as_of_change == file.info().as_of_change
            assert db.scalar(file.conn, "SELECT count(*) FROM Revocations") == 1


class Flush(Scene):
    """An edge counts usage of keys with and without a quota, and writes it."""

    max_pending = 100

    def prepare(self, folder: Path) -> None:
        self._tokens = populate(folder / self.path)

    def run(self, folder: Path, hub: Hub) -> None:
        path, passed = folder / self.path, 0
        validator = patiently(lambda: Validator(path, max_pending=self.max_pending))
        try:
            for number in range(6):
                service = "tts" if number % 2 == 0 else None
                decision = validator.check(self._tokens[number % 2], service=service)
                assert decision.reason in {Reason.OK, Reason.UNAVAILABLE}
                passed += decision.allowed
                if number % 3 == 2:
                    patiently(validator.flush)
        finally:
            validator.close()
        # one that was refused for the disk may have been counted, with max_pending=1
        assert passed <= used(path) <= 6
        assert passed >= 5

    def go_on(self, folder: Path, hub: Hub) -> None:
        path, before = folder / self.path, used(folder / self.path)
        with Validator(path) as validator:
            count = 0
            while validator.check(self._tokens[0], service="tts").allowed:
                count += 1
            assert validator.check(self._tokens[1]).allowed
        assert used(path) == before + count + 1
        with open_store(path) as file:
            spent = "SELECT coalesce(sum(amount), 0) FROM UsageLog WHERE service_id IS NOT NULL"
            # what a lease held when the power went counts as spent
            assert db.scalar(file.conn, spent) <= UNITS


class FlushAtOnce(Flush):
    """An edge writes each use before it answers."""

    max_pending = 1


class Charge(Scene):
    """An account pays, by request ids."""

    def prepare(self, folder: Path) -> None:
        populate(folder / self.path)
        with Store.open(folder / self.path) as store:
            store.add_provider("openai")
            store.add_model(MODEL, provider="openai", input_per_1k="0.005", output_per_1k="0.015")
            store.grant(ADA, "10", request_id="first")

    def run(self, folder: Path, hub: Hub) -> None:
        with Store.open(folder / self.path) as store:
            for number in range(3):
                store.charge(ADA, MODEL, input_tokens=1000, request_id=f"request {number}")

    def check(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / self.path) as file:
            left = db.scalar(file.conn, "SELECT balance_nano FROM CreditBalances")
            assert left == 10 * 10**9 - 3 * 5 * 10**6
        assert used(folder / self.path) == 3 * 1000


class Checkpoint(Charge):
    """The same, with a checkpoint after each commit, and a WAL that begins anew."""

    checkpoint_at = 1


class Made(Scene):
    """A store is made, and is not seen before it is whole."""

    is_made = True

    def go_on(self, folder: Path, hub: Hub) -> None:
        if not (folder / self.path).exists():
            self.run(folder, hub)


class Init(Made):
    """An origin is made."""

    def prepare(self, folder: Path) -> None:
        """It comes from nothing."""

    def run(self, folder: Path, hub: Hub) -> None:
        migrate.create_origin(folder / self.path).close()


class Restore(Made):
    """A store is made from a backup."""

    path = "restored.db"

    def prepare(self, folder: Path) -> None:
        populate(folder / "store.db")
        with open_store(folder / "store.db") as file:
            backup(file, folder / "backup.db")
        (folder / "store.db").unlink()

    def run(self, folder: Path, hub: Hub) -> None:
        restore(folder / "backup.db", folder / self.path)

    def check(self, folder: Path, hub: Hub) -> None:
        assert same(folder / self.path, folder / "backup.db")
        with open_store(folder / self.path) as new, open_store(folder / "backup.db") as old:
            assert new.info().incarnation != old.info().incarnation


class Backup(Made):
    """A store that is in use is backed up."""

    path = "backup.db"

    def prepare(self, folder: Path) -> None:
        populate(folder / "store.db")

    def run(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / "store.db") as file:
            backup(file, folder / self.path)

    def check(self, folder: Path, hub: Hub) -> None:
        assert same(folder / self.path, folder / "store.db")


class Replicate(Made):
    """A replica is made from a hub."""

    path = "edge.db"

    def prepare(self, folder: Path) -> None:
        self._origin = folder.parent / "origin.db"
        populate(self._origin)
        sync(self._origin, self.hub)

    def run(self, folder: Path, hub: Hub) -> None:
        engine.replicate(hub, "hub:", folder / self.path, Report("hub:"))

    def check(self, folder: Path, hub: Hub) -> None:
        assert same(folder / self.path, self._origin)


class ReplicateFiles(Replicate):
    """A replica is made from signed files."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        with Store.open(self._origin) as store:
            self._shelf = Shelf(store, folder.parent)
            self._shelf.publish()

    def run(self, folder: Path, hub: Hub) -> None:
        targets.replicate(str(self._shelf.folder), folder / self.path, root=self._shelf.root)


class Compact(Scene):
    """An origin forgets the changes that its target has."""

    def prepare(self, folder: Path) -> None:
        populate(folder / self.path)
        sync(folder / self.path, self.hub)
        with Store.open(folder / self.path) as store:
            store.add_plan("later")

    def run(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / self.path) as file:
            compact.compact(file)

    def check(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / self.path) as file:
            assert file.info().log_horizon > 0
            hub = hub.twin()  # what is checked may be checked again, from an earlier state
            targets.sync_opened(file, hub, Report("hub:"))
            with hub.pull(file.info().store_id, None) as cut:
                assert cut.digests() == digest.digest_store(file)


SCENES: dict[str, Callable[[], Scene]] = {
    **{
        path.name.partition(".")[0]: lambda name=path.name: Migration(name)  # type: ignore[misc]
        for path in sorted([*FIXTURES.glob("store-v*.xz"), *FIXTURES.glob("replica-v*.xz")])
    },
    **{
        scene.__name__.lower(): scene
        for scene in (
            Push,
            Pull,
            Flush,
            FlushAtOnce,
            Charge,
            Checkpoint,
            Compact,
            Init,
            Restore,
            Backup,
            Replicate,
            ReplicateFiles,
        )
    },
}


def state(conn: Any) -> object:
    """Return all that a database says: each table's rows, and its schema."""
    schema = sorted(
        tuple(row)
        for row in conn.execute("SELECT type, name, coalesce(sql, '') FROM main.sqlite_master")
    )
    tables = [name for kind, name, _ in schema if kind == "table"]
    rows = {
        name: sorted(map(repr, conn.execute(f'SELECT * FROM main."{name}"'))) for name in tables
    }
    return schema, rows, db.versions(conn)


def state_of(path: Path) -> object:
    """Return what the database at ``path`` says, opened anew."""
    with open_store(path, any_version=True) as file:
        return state(file.conn)


def assert_healthy(path: Path) -> None:
    """Assert that SQLite and the doctor find nothing wrong."""
    with open_store(path, any_version=True) as file:
        assert db.scalar(file.conn, "PRAGMA integrity_check") == "ok"
        if db.versions(file.conn)[1] == db.SCHEMA_VERSION:
            found = [item for item in examine(file) if item.severity != "info"]
            assert found == []


@contextmanager
def copied(folder: Path, to: Path) -> Iterator[Path]:
    """A copy of a folder, for the length of a ``with`` block."""
    shutil.copytree(folder, to)
    try:
        yield to
    finally:
        shutil.rmtree(to)
