"""Backup and restore: complete, safe while others write, and told apart from what went on."""

import json
import os
import threading
from pathlib import Path

import pytest

from keystore import Store
from keystore.backup import backup, restore
from keystore.db import SCHEMA_VERSION, open_store
from keystore.doctor import examine
from keystore.errors import (
    DamagedStoreError,
    ForkedStoreError,
    NotAKeystoreError,
    StoreExistsError,
)
from keystore.sync import digest, engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.test_cli import run
from tests.test_migrations import unpack


def test_a_restored_store_has_every_row_and_a_new_incarnation(store: Store, tmp_path: Path) -> None:
    store.issue_key("ada@example.org")
    backup(store.file, tmp_path / "backup.db")
    info = restore(tmp_path / "backup.db", tmp_path / "restored.db")
    assert info.store_id == store.info.store_id
    assert info.incarnation != store.info.incarnation
    with open_store(tmp_path / "restored.db") as file:
        assert digest.digest_store(file) == digest.digest_store(store.file)
        assert examine(file) == []
        assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_backup_is_whole_while_others_write(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with Store.open(store.file.path) as mine:
            number = 0
            while not stop.is_set():
                number += 1
                mine.add_plan(f"plan {number}")

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(5):
        backup(store.file, tmp_path / f"backup{number}.db")
    stop.set()
    writer.join()
    for number in range(5):
        with open_store(tmp_path / f"backup{number}.db") as file:
            assert examine(file) == []


def test_a_restored_store_is_stopped_by_a_target_that_saw_later_changes(
    store: Store, tmp_path: Path
) -> None:
    hub = MemoryHub()
    engine.push(store.file, hub, "memory:", Report(""))
    backup(store.file, tmp_path / "backup.db")
    store.add_plan("later")
    engine.push(store.file, hub, "memory:", Report(""))
    restore(tmp_path / "backup.db", tmp_path / "restored.db")
    with open_store(tmp_path / "restored.db") as file, pytest.raises(ForkedStoreError):
        engine.push(file, hub, "memory:", Report(""))


def test_nothing_is_overwritten_and_nothing_half_made_is_left(store: Store, tmp_path: Path) -> None:
    taken, junk = tmp_path / "taken", tmp_path / "junk"
    taken.write_text("precious")
    junk.write_text("no database" * 1000)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreExistsError):
        backup(store.file, taken)
    with pytest.raises(StoreExistsError):
        restore(store.file.path, taken)
    with pytest.raises(NotAKeystoreError):
        restore(junk, tmp_path / "new.db")
    assert taken.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_backup_is_not_restored(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    backup(store.file, path)
    with open_store(path) as file:
        (page,) = file.conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'Accounts'"
        ).fetchone()
    with path.open("r+b") as raw:
        raw.seek((page - 1) * 4096)
        raw.write(os.urandom(4096))
    with pytest.raises(DamagedStoreError):
        restore(path, tmp_path / "restored.db")
    assert not (tmp_path / "restored.db").exists()


def test_migrate_backs_up_first(tmp_path: Path) -> None:
    path = unpack("store-v1.db.xz", tmp_path)
    said = json.loads(run("migrate", "--db", str(path), "--json").stdout)
    assert (said["before"], said["after"]) == (1, SCHEMA_VERSION)
    assert Path(said["backup"]).stat().st_mode & 0o777 == 0o600
    assert run("migrate", "--db", str(path)).stdout == f"{path} is up to date.\n"
    assert run("status", "--db", said["backup"]).exit_code == 1  # still the old version
    assert run("status", "--db", str(path)).exit_code == 0


def test_backup_and_restore_by_hand(store: Store, tmp_path: Path) -> None:
    copy, again = str(tmp_path / "copy.db"), str(tmp_path / "again.db")
    assert run("backup", copy, "--db", str(store.file.path)).exit_code == 0
    assert run("restore", copy, again).stdout.startswith("Restored origin store")
    assert run("doctor", "--db", again).exit_code == 0
