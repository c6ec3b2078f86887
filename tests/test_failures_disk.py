"""The disk is full, at the hub or here: a clear word, nothing half written; on when there is room.

The small disk is a tmpfs; where mounting is not allowed these tests are skipped.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from keystore import Store, Validator
from keystore.cli import main
from keystore.db import open_store
from keystore.errors import DiskFullError, TargetUnavailableError
from keystore.sync import targets
from keystore.sync.repository_format import Scope
from keystore.testing.postgres import running
from tests.conftest import new_hub
from tests.failures import Site, once, reaching, said
from tests.repositories import Shelf, digest_of
from tests.test_files_kill import Published

MANY = 3_000


class SmallDisk:
    """A file system of a few MiB in memory, and a file that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, *, but: int = 0) -> None:
        """Leave only so many bytes."""
        with self._filler.open("wb", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - but)

    def make_room(self) -> None:
        self._filler.unlink()

    def mount(self, mebibytes: int) -> None:
        self.folder.mkdir()
        options = f"size={mebibytes}m,mode=0777"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk")
    try:
        made.mount(40)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield made
    made.unmount()


def add_many(path: Path) -> None:
    with Store.open(path) as store, store.file.write() as conn:
        conn.executemany(
            "INSERT INTO Services (name) VALUES (?)", [(f"service {n:090}",) for n in range(MANY)]
        )


def test_a_full_disk_at_the_hub_takes_nothing_and_then_everything(
    disk: SmallDisk, tmp_path: Path
) -> None:
    with running() as server:
        spaces = disk.folder / "space"
        spaces.mkdir(mode=0o700)
        shutil.chown(spaces, server.folder.stat().st_uid)
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute(f"CREATE TABLESPACE small LOCATION '{spaces}'")  # type: ignore[call-overload,unused-ignore]
        with new_hub(server.url, "TABLESPACE small") as url:
            site = Site(tmp_path, url)
            add_many(site.origin)
            site.change()
            disk.fill(but=100_000)
            with pytest.raises(TargetUnavailableError, match="the hub's disk is full") as caught:
                site.sync(site.origin)
            assert "room" in said(caught.value)
            assert not site.sync(site.replica).pulled
            disk.make_room()
            site.settle()
            site.check()


def test_a_full_disk_at_a_replica_leaves_the_old_state(
    disk: SmallDisk, hub_url: str, tmp_path: Path
) -> None:
    site = Site(tmp_path, hub_url)
    targets.replicate(hub_url, disk.folder / "edge.db")
    add_many(site.origin)
    with Store.open(site.origin) as store:
        issued = store.issue_key("ada@example.org")
    site.sync(site.origin)
    disk.fill(but=100_000)
    with pytest.raises(DiskFullError) as caught:
        site.sync(disk.folder / "edge.db")
    assert "room" in said(caught.value)
    with open_store(disk.folder / "edge.db") as file:
        assert file.info().replaying == 0
        assert file.conn.execute("SELECT count(*) FROM Services").fetchone() == (0,)
    with Validator(disk.folder / "edge.db") as validator:
        assert not validator.check(issued.token).allowed
    with pytest.raises(DiskFullError):
        targets.replicate(hub_url, disk.folder / "second.db")
    assert {path.name for path in disk.folder.iterdir()} <= {
        "filler",
        "edge.db",
        "edge.db-wal",
        "edge.db-shm",
    }
    disk.make_room()
    site.settle()
    site.sync(disk.folder / "edge.db")
    site.check(disk.folder / "edge.db")


@pytest.mark.parametrize("step", ["pull.opened", "download.chunk", "download.done", "pull.staged"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_while_signed_files_come_leaves_the_old_state(
    disk: SmallDisk, tmp_path: Path, step: str, is_new: bool
) -> None:
    if is_new and step.startswith("pull"):
        pytest.skip("a first start has no such step")
    site = Published(tmp_path, 10_000, 10_000)
    edge, new = disk.folder / "edge.db", disk.folder / "new.db"
    shutil.copy(site.base, edge)

    def run() -> None:
        if is_new:
            targets.replicate(str(site.folder), new, root=site.root.read_bytes())
        else:
            with open_store(edge) as file:
                targets.sync(file, str(site.folder))

    with reaching(once(step, disk.fill)), pytest.raises(DiskFullError) as caught:
        run()
    assert "room" in said(caught.value)
    assert not new.exists()
    disk.make_room()
    assert not site.is_at(edge)
    run()
    assert site.is_at(new if is_new else edge)
    assert {path.suffix for path in disk.folder.iterdir()} == {".db"}


@pytest.mark.parametrize("step", ["push.sent", "push.committed", "usage.sent"])
def test_a_full_disk_at_the_origin_repeats_and_loses_nothing(
    disk: SmallDisk, hub_url: str, tmp_path: Path, step: str
) -> None:
    site = Site(disk.folder, hub_url)
    site.change()

    def fill() -> None:
        with open_store(site.origin) as file:
            file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the WAL needs room
        disk.fill()

    with reaching(once(step, fill)), pytest.raises(DiskFullError) as caught:
        site.sync(site.origin)
    assert "room" in said(caught.value)
    disk.make_room()
    site.settle()
    site.check()


@pytest.mark.parametrize("where", ["the file", "the scratch file"])
def test_a_full_disk_stops_an_export_and_leaves_no_part_of_it(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with Store.create(tmp_path / "origin.db"):
        pass
    add_many(tmp_path / "origin.db")
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    arguments = ["export", "--db", str(tmp_path / "origin.db")]
    if where == "the file":
        arguments += ["--output", str(disk.folder / "all.jsonl")]
    disk.fill(but=100_000)
    full = CliRunner().invoke(main, arguments)
    assert (full.exit_code, full.stdout) == (1, "")
    assert f"{disk.folder}: there is no room left on the disk." in full.stderr
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    disk.make_room()
    assert CliRunner().invoke(main, arguments).exit_code == 0


@pytest.mark.parametrize("who", ["origin", "replica"])
@pytest.mark.parametrize("left", [0, 8_192, 65_536])
def test_a_full_disk_of_temporary_files_is_told_as_that(
    disk: SmallDisk,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    left: int,
) -> None:
    shelf = Shelf(store, tmp_path / "files", scope=Scope(kind="account", record_id=1, name="ada"))
    shelf.publish()
    edge = shelf.replicate()
    store.issue_key("ada@example.org", metadata={"long": os.urandom(200_000).hex()})
    if who == "replica":
        shelf.publish()
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    disk.fill(but=left)
    if who == "origin":
        with pytest.raises(DiskFullError) as caught:
            shelf.publish()
        assert "room" in said(caught.value)
    elif not left:
        with pytest.raises(DiskFullError) as caught:
            shelf.pull(edge)
        assert "room" in said(caught.value)
    disk.make_room()
    shelf.publish()
    shelf.pull(edge)
    with Validator(edge) as validator:
        assert validator.freshness() is not None
    assert not list(disk.folder.iterdir())


def test_a_full_disk_under_a_repository_is_told_and_mends(disk: SmallDisk, store: Store) -> None:
    shelf = Shelf(store, disk.folder / "files")
    shelf.publish()
    store.issue_key("ada@example.org")
    disk.fill()
    with pytest.raises(DiskFullError) as caught:
        shelf.publish()
    assert "repository" in said(caught.value)
    disk.make_room()
    shelf.publish()
    assert digest_of(shelf.replicate()) == digest_of(store.file.path)
