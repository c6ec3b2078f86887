"""Scenes of what keystore writes beside SQLite's files: a repository, its keys, usage files."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from keystore import Store
from keystore.db import open_store
from keystore.errors import AlreadyExistsError
from keystore.sync import engine, repository, rotation, targets, usage_files, usage_keys
from keystore.sync.engine import Report
from keystore.sync.folder import Folder
from tests.failures import record
from tests.storage_scenes import ADA, Hub, Scene, populate, same, sync


def publish(folder: Path) -> None:
    with open_store(folder / "store.db") as file:
        targets.sync(file, str(folder / "files"), keys=folder / "keys")


def rotate(folder: Path) -> None:
    keys = folder / "keys"
    rotation.rotate(Folder(folder / "files"), keys, root_key=None, online=True, root=True)


class Publish(Scene):
    """An origin publishes what has changed, and a replica reads it, whatever has happened."""

    def prepare(self, folder: Path) -> None:
        with Store.create(folder / self.path) as store:
            store.add_plan("free")
            store.add_account(ADA, plan="free")
        root = repository.create(Folder(folder / "files"), folder / "keys")
        self._root = root.read_bytes()
        publish(folder)
        self._edge = folder.parent / "edge.db"
        targets.replicate(str(folder / "files"), self._edge, root=self._root)
        with Store.open(folder / self.path) as store:
            store.issue_key(ADA)

    def run(self, folder: Path, hub: Hub) -> None:
        publish(folder)

    def go_on(self, folder: Path, hub: Hub) -> None:
        self._read(folder)
        self.run(folder, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        assert same(self._read(folder), folder / self.path)

    def _read(self, folder: Path) -> Path:
        """Pull to a replica of its own."""
        edge = folder / "edge.db"
        shutil.copy(self._edge, edge)
        with open_store(edge) as file:
            targets.sync(file, str(folder / "files"), root=self._root)
        return edge


class Rotate(Publish):
    """The keys of a repository are replaced."""

    def run(self, folder: Path, hub: Hub) -> None:
        rotate(folder)

    def go_on(self, folder: Path, hub: Hub) -> None:
        self._read(folder)
        publish(folder)  # whatever the state of the keys is
        self._read(folder)
        self.run(folder, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        publish(folder)
        super().check(folder, hub)


class Create(Scene):
    """A repository is made, with its keys."""

    def prepare(self, folder: Path) -> None:
        with Store.create(folder / self.path) as store:
            store.add_plan("free")

    def run(self, folder: Path, hub: Hub) -> None:
        repository.create(Folder(folder / "files"), folder / "keys")

    def go_on(self, folder: Path, hub: Hub) -> None:
        with suppress(AlreadyExistsError):  # it was done
            self.run(folder, hub)

    def check(self, folder: Path, hub: Hub) -> None:
        publish(folder)
        edge, root = folder / "edge.db", folder / "keys" / "root.json"
        targets.replicate(str(folder / "files"), edge, root=root.read_bytes())
        assert same(edge, folder / self.path)


class Export(Scene):
    """A replica writes its usage to signed files, and the origin counts each row once."""

    path = "edge.db"

    def prepare(self, folder: Path) -> None:
        self._origin = folder.parent / "origin.db"
        with Store.create(self._origin) as store:
            store.add_plan("free")
        sync(self._origin, self.hub)
        engine.replicate(self.hub, "hub:", folder / self.path, Report("hub:"))
        (folder / "stick").mkdir()
        with open_store(folder / self.path) as file, open_store(self._origin) as origin:
            usage_keys.enroll(origin, usage_keys.make_key(file, folder / "key.pem")[0])
            record(file, 3)

    def run(self, folder: Path, hub: Hub) -> None:
        (folder / "stick").mkdir(exist_ok=True)  # the folder of a lost disk may be empty
        with open_store(folder / self.path) as file:
            usage_files.export(file, folder / "stick", folder / "key.pem")

    def check(self, folder: Path, hub: Hub) -> None:
        origin = folder / "origin.db"
        shutil.copy(self._origin, origin)
        with open_store(origin) as file:
            for _ in range(2):
                usage_files.ingest(file, [folder / "stick"])
        with Store.open(origin) as store:
            assert store.status().received_usage == 3


class Ingest(Scene):
    """An origin takes a replica's usage files, of which it has had one before."""

    def prepare(self, folder: Path) -> None:
        populate(folder / self.path)
        sync(folder / self.path, self.hub)
        edge, self._stick = folder.parent / "edge.db", folder.parent / "stick"
        self._stick.mkdir()
        engine.replicate(self.hub, "hub:", edge, Report("hub:"))
        with open_store(edge) as file, open_store(folder / self.path) as origin:
            usage_keys.enroll(origin, usage_keys.make_key(file, folder.parent / "key.pem")[0])
            for rows in (2, 1):
                usage_files.ingest(origin, [self._stick])
                record(file, rows)
                usage_files.export(file, self._stick, folder.parent / "key.pem")

    def run(self, folder: Path, hub: Hub) -> None:
        with open_store(folder / self.path) as file:
            usage_files.ingest(file, [self._stick])

    def check(self, folder: Path, hub: Hub) -> None:
        with Store.open(folder / self.path) as store:
            assert store.status().received_usage == 3


FILE_SCENES: dict[str, Callable[[], Scene]] = {
    scene.__name__.lower(): scene for scene in (Publish, Rotate, Create, Export, Ingest)
}
