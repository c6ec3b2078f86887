"""What happens to the file under a validator: answers stay right or become "not now", and recover.

The raw bytes are touched by other processes only: to close a file here would drop SQLite's locks.
"""

import os
import secrets
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from keystore import Reason, Store, Validator, backup
from keystore.db import connect, open_store, remove_files
from keystore.edge import slow
from keystore.errors import DiskFullError, StoreBusyError, StoreExistsError
from tests.test_failures_disk import SmallDisk, disk

__all__ = ["disk"]
ADA = "ada@example.org"
USE = "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('session', 1, 1)"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the path with each check, not once in a millisecond."""
    monkeypatch.setattr(slow, "LOOK_SECONDS", 0.0)


def raw(program: str, *arguments: object) -> None:
    code = "import os, sys; path = sys.argv[1]\n" + program
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


class Asked:
    """Keys of a store: some that a validator has met, some that it has not; one is revoked."""

    def __init__(self, store: Store) -> None:
        self.met, self.unmet, self.revoked, self.later = (
            store.issue_key(ADA).token for _ in range(4)
        )
        store.revoke_key(self.revoked)
        store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def right(self, validator: Validator) -> bool:
        """Whether all is answered as it should be; else it is "not now", never anything wrong."""
        wanted = {
            self.met: Reason.OK,
            self.unmet: Reason.OK,
            self.revoked: Reason.REVOKED,
            "unknown-" + secrets.token_hex(4): Reason.UNKNOWN,
        }
        reasons = {token: validator.check(token).reason for token in wanted}
        for token, reason in reasons.items():
            assert reason in {wanted[token], Reason.UNAVAILABLE}, (token, reason)
        return reasons == wanted


@pytest.fixture
def asked(store: Store) -> Asked:
    return Asked(store)


def test_a_file_that_is_away_for_a_while_is_not_now_until_it_is_back(
    store: Store, asked: Asked
) -> None:
    path = store.file.path
    store.close()
    with Validator(path, max_seconds=3600) as validator:
        assert asked.right(validator)
        for _ in range(3):
            path.rename(path.with_suffix(".away"))
            for token in (asked.met, asked.unmet, asked.revoked, "unknown"):
                assert validator.check(token).reason is Reason.UNAVAILABLE
            path.with_suffix(".away").rename(path)
            assert asked.right(validator)
    with Store.open(path) as after:
        assert after.status().usage_total == 8


def test_the_very_next_check_after_a_restore_knows_it(
    store: Store, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the path looked at once in a millisecond: a restore takes longer than that."""
    monkeypatch.undo()
    path, copy = store.file.path, tmp_path / "copy.db"
    backup.backup(store.file, copy)
    store.close()
    with Validator(path) as validator:
        for turn in range(20):
            for _ in range(3):
                assert validator.check(asked.met).allowed
            with Store.open(copy if turn % 2 else path) as other:
                other.revoke_key(asked.met)
            if turn % 2 == 0:
                assert validator.check(asked.met).reason is Reason.REVOKED
            for suffix in ("", "-wal", "-shm"):
                if Path(f"{path}{suffix}").exists():
                    Path(f"{path}{suffix}").rename(tmp_path / f"{turn}.db{suffix}")
            backup.restore(copy, path)
            wanted = Reason.REVOKED if turn % 2 else Reason.OK
            assert validator.check(asked.met).reason is wanted
            if turn % 2:
                with Store.open(copy) as other, Store.open(path) as here:
                    for each in (other, here):
                        each.set_key_status(asked.met, "assigned")


@pytest.mark.parametrize("left", [0, 100, 4096, 40_000])
def test_a_file_that_is_cut_short_says_not_now_and_nothing_wrong(
    store: Store, asked: Asked, tmp_path: Path, left: int
) -> None:
    path, copy = store.file.path, tmp_path / "copy"
    with Validator(path, max_seconds=3600) as validator:
        assert validator.check(asked.met).allowed
        raw("import shutil; shutil.copyfile(path, sys.argv[2])", path, copy)
        raw("os.truncate(path, int(sys.argv[2]))", path, left)
        for _ in range(3):
            asked.right(validator)
        raw("open(path, 'r+b').write(open(sys.argv[2], 'rb').read())", path, copy)
        assert asked.right(validator)
        assert validator.flush() > 0


def test_pages_that_are_damaged_while_serving_say_not_now_and_nothing_wrong(
    store: Store, asked: Asked, tmp_path: Path
) -> None:
    path, copy = store.file.path, tmp_path / "copy"
    (pages,) = store.file.conn.execute("PRAGMA page_count").fetchone()
    raw("import shutil; shutil.copyfile(path, sys.argv[2])", path, copy)
    damage = """
with open(path, "r+b", buffering=0) as file:
    file.seek(int(sys.argv[2]) * 4096)
    file.write(os.urandom(4096))
"""
    mend = "open(path, 'r+b').write(open(sys.argv[2], 'rb').read())"
    worked = 0
    turns = range(0, pages, 3)
    for page in turns:
        with Validator(path, max_seconds=3600) as validator:
            assert validator.check(asked.met).allowed
            store.file.conn.execute(USE)  # or SQLite would answer from the pages that it has read
            raw(damage, path, page)
            worked += asked.right(validator)
            raw(mend, path, copy)
        with Validator(path, max_seconds=3600) as validator:
            assert asked.right(validator)
        store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        raw("import shutil; shutil.copyfile(path, sys.argv[2])", path, copy)
    assert worked < len(turns)  # some damage was met


def test_a_writer_that_holds_the_lock_for_long_stops_no_check(
    store: Store, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "IMPATIENT_SECONDS", 0.005)  # each check here waits for so long
    with (
        Validator(store.file.path, max_pending=5, max_seconds=0.0) as validator,
        open_store(store.file.path) as other,
    ):
        other.conn.execute("BEGIN EXCLUSIVE")
        for _ in range(20):
            assert asked.right(validator)
        with pytest.raises(StoreBusyError):
            validator.flush_if_due()
        assert validator.pending == 40
        assert len(validator._usage.uses) <= 10  # they are summed up, however long it takes
        other.conn.execute("ROLLBACK")
        assert asked.right(validator)
        validator.flush()
        assert validator.pending == 0
    assert store.status().usage_total == 42


@pytest.mark.parametrize(("checks", "said"), [(1, "1 check is"), (3, "3 checks is")])
def test_who_closes_what_cannot_be_written_is_told_how_much_is_lost(
    store: Store, asked: Asked, monkeypatch: pytest.MonkeyPatch, checks: int, said: str
) -> None:
    monkeypatch.setattr("keystore.db.BUSY_TIMEOUT_SECONDS", 0.0)
    validator = Validator(store.file.path)
    for _ in range(checks):
        assert validator.check(asked.met).allowed
    with store.file.write(), pytest.raises(StoreBusyError) as caught:
        validator.close()
    assert caught.value.__notes__ == [f"The usage of {said} lost."]


def test_an_exclusive_lock_without_a_wal_is_not_now_until_it_ends(
    store: Store, asked: Asked
) -> None:
    path = store.file.path
    store.close()
    conn = connect(path)
    conn.execute("PRAGMA journal_mode = DELETE").fetchall()
    with Validator(path, max_seconds=3600) as validator:
        assert asked.right(validator)
        conn.execute("BEGIN EXCLUSIVE")
        assert validator.check(asked.met).reason is Reason.UNAVAILABLE
        assert validator.check(asked.unmet).reason is Reason.UNAVAILABLE
        conn.execute("UPDATE APIKeys SET status = 'revoked'")
        conn.execute("COMMIT")
        assert validator.check(asked.met).reason is Reason.REVOKED
        conn.execute("UPDATE APIKeys SET status = 'assigned' WHERE status_reason IS NULL")
        conn.close()
        assert validator.check(asked.unmet).allowed
        assert validator.flush() > 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered_is_not_now_until_it_may(
    store: Store, asked: Asked, tmp_path: Path
) -> None:
    with Validator(store.file.path) as validator:
        assert asked.right(validator)
        tmp_path.chmod(0)
        try:
            assert validator.check(asked.met).reason is Reason.UNAVAILABLE
        finally:
            tmp_path.chmod(0o700)
        assert asked.right(validator)


@pytest.mark.parametrize("left", [0, 4096, 40_000])
def test_a_full_disk_stops_no_check_and_loses_no_usage(disk: SmallDisk, left: int) -> None:
    with Store.create(disk.folder / "origin.db") as store:
        store.add_plan("free")
        store.add_account(ADA, plan="free")
        asked = Asked(store)
    path = disk.folder / "origin.db"
    with Validator(path, max_pending=5, max_seconds=3600) as validator:
        assert asked.right(validator)
        disk.fill(but=left)
        for _ in range(3_000):
            assert validator.check(asked.met).allowed
        assert asked.right(validator)
        if left == 0:
            with pytest.raises(DiskFullError):
                validator.flush()
        disk.make_room()
        validator.flush()
        assert validator.pending == 0
        assert asked.right(validator)
    with Store.open(path) as after:
        assert after.status().usage_total == 3_006


def replace(path: Path, elsewhere: Path, copy: Path) -> None:
    """Move a store away, and restore a copy in its place."""
    while True:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{elsewhere}{suffix}")
        try:
            backup.restore(copy, path)
        except StoreExistsError:
            continue  # a connection that was just being opened has made its -shm after that
        return


def test_checks_go_on_in_threads_while_the_file_is_replaced_again_and_again(
    store: Store, asked: Asked, tmp_path: Path
) -> None:
    path, copy = store.file.path, tmp_path / "copy.db"
    backup.backup(store.file, copy)
    store.close()
    stop = threading.Event()
    wrong: list[object] = []

    def work() -> None:
        while not stop.is_set():
            try:
                asked.right(validator)
            except BaseException as error:  # noqa: BLE001 - shown below
                wrong.append(error)
                return

    with Validator(path) as validator:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(15):
            replace(path, tmp_path / f"{turn}.db", copy)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong, wrong
        assert asked.right(validator)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_a_file_that_is_replaced_again_and_again_leaves_no_descriptors(
    store: Store, asked: Asked, tmp_path: Path
) -> None:
    path, copy = store.file.path, tmp_path / "copy.db"
    backup.backup(store.file, copy)
    store.close()
    with Validator(path) as validator:
        assert asked.right(validator)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            remove_files(path)
            backup.restore(copy, path)
            assert asked.right(validator)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
