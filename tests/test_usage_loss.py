"""Usage: what a crash may lose is bounded, and nothing makes a flush count anything twice.

Killed are real processes under load; interrupted is a flush wherever Python lets a signal in.
"""

import random
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import keystore
from keystore import Store, Validator, backup, db
from keystore.db import connect
from keystore.edge import slow
from keystore.edge.usage import UsageBuffer
from keystore.errors import DiskFullError
from tests.test_failures_disk import disk

__all__ = ["disk"]
ADA = "ada@example.org"
PACKAGE = str(Path(keystore.__file__).parent)


def total(path: Path) -> int:
    with Store.open(path) as store:
        return store.status().usage_total


# -- kills -------------------------------------------------------------------------------------

# Each thread notes in a file of its own, by its size, how many checks were answered and begun: what
# was written to a file survives the process.
LOADED = """
import os, sys, threading
from keystore import Validator
path, max_pending, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokens = sys.argv[4:]
validator = Validator(path, max_pending=max_pending, max_seconds=3600)

def load(number):
    begun = os.open(f"{folder}/begun-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    answered = os.open(f"{folder}/answered-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    turn = number
    while True:
        turn += 1
        os.write(begun, b".")
        if validator.check(tokens[turn % len(tokens)]).allowed:
            os.write(answered, b".")

for number in range(3):
    threading.Thread(target=load, args=(number,)).start()
print("loaded", flush=True)
"""


@pytest.mark.parametrize("max_pending", [1, 2, 100, 10_000])
def test_a_kill_under_load_loses_no_more_than_the_bound_and_counts_nothing_twice(
    store: Store, tmp_path: Path, max_pending: int
) -> None:
    tokens = [store.issue_key(ADA).token for _ in range(3)]
    path = store.file.path
    store.close()
    dice = random.Random(secrets.randbits(32))  # noqa: S311 - no secret
    before, written = 0, 0
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [str(path), str(max_pending), str(folder), *tokens]
        with subprocess.Popen(
            [sys.executable, "-c", LOADED, *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "loaded\n"
            wanted = dice.randint(1, 25_000 if max_pending == 10_000 else 1_000)
            while sum(size(folder, "answered")) < wanted:
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        answered, begun = sum(size(folder, "answered")), sum(size(folder, "begun"))
        written, before = total(path) - before, total(path)
        bound = 0 if max_pending == 1 else max_pending
        assert answered - bound <= written <= begun, (answered, written, begun)


def size(folder: Path, kind: str) -> Iterator[int]:
    for path in folder.glob(f"{kind}-*"):
        yield path.stat().st_size


def test_while_a_flush_is_under_way_no_more_are_answered_than_may_be_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks that a flush is writing can be lost as those can that come meanwhile."""
    token = store.issue_key(ADA).token
    write = UsageBuffer._write
    answered: list[bool] = []

    with Validator(store.file.path, max_pending=20, max_seconds=3600) as validator:

        def load() -> None:
            while validator.check(token).allowed:
                answered.append(True)
                if len(answered) >= 200:
                    return

        def slowly(self: UsageBuffer, *arguments: Any) -> None:
            # The other thread goes on until it waits for this flush.
            other.start()
            while True:
                before = len(answered)
                other.join(0.05)
                if len(answered) == before:
                    break
            seen.append(len(answered))
            monkeypatch.setattr(UsageBuffer, "_write", write)
            write(self, *arguments)

        seen: list[int] = []
        other = threading.Thread(target=load)
        for _ in range(15):
            assert validator.check(token).allowed
        monkeypatch.setattr(UsageBuffer, "_write", slowly)
        assert validator.flush() == 15
        other.join()
        assert seen[0] + 15 <= 20
    assert store.status().usage_total == 215


# -- interruptions -----------------------------------------------------------------------------


class InterruptedHereError(Exception):
    """What a signal handler raises, a timeout for one."""


class Interruption:
    """Raises at the Nth place where a signal handler may run within keystore's own code.

    CPython runs them when a function begins, and when one that is written in C returns.
    """

    def __init__(self, nth: int, error: type[BaseException] = InterruptedHereError) -> None:
        self.left, self.error = nth, error
        self.where = ""

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        is_ours = name.startswith(PACKAGE) or name.endswith("contextlib.py")
        if is_ours and event in {"call", "c_return"}:
            self.left -= 1
            if not self.left:
                self.where = f"{name}:{frame.f_lineno} {event}"
                raise self.error

    def run(self, function: Callable[[], object]) -> bool:
        """Call a function; whether it was interrupted."""
        sys.setprofile(self._look)
        try:
            function()
        except self.error:
            pass
        finally:
            sys.setprofile(None)
        return self.left <= 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of commits, none of which is to survive a power cut."""
    monkeypatch.setattr("keystore.sql.read", lambda _: "PRAGMA foreign_keys = ON")


@pytest.mark.parametrize("before", ["nothing", "an interrupted commit", "an interrupted write"])
def test_a_flush_that_is_interrupted_anywhere_loses_nothing_and_writes_nothing_twice(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    tokens = [store.issue_key(ADA).token for _ in range(2)]
    counted = 0
    write = UsageBuffer._write

    def interrupted(self: UsageBuffer, *arguments: Any) -> None:
        if before == "an interrupted commit":
            write(self, *arguments)
        raise InterruptedHereError

    with Validator(store.file.path, max_seconds=3600) as validator:
        for nth in count(1):
            for token in (*tokens, tokens[0]):
                assert validator.check(token).allowed
                counted += 1
            if before != "nothing":
                with monkeypatch.context() as patch, pytest.raises(InterruptedHereError):
                    patch.setattr(UsageBuffer, "_write", interrupted)
                    validator.flush()
                assert validator.check(tokens[1]).allowed
                counted += 1
            interruption = Interruption(nth)
            was_interrupted = interruption.run(validator.flush)
            about = (nth, interruption.where)
            assert validator.check(tokens[0]).allowed, about
            counted += 1
            validator.flush()
            assert validator.pending == 0, about
            assert used(store) == counted, about
            if not was_interrupted:
                break
    assert nth > 50


@pytest.mark.parametrize("max_pending", [1, 2])
def test_a_check_that_is_interrupted_anywhere_counts_once_if_it_said_yes(
    store: Store, quick: None, max_pending: int
) -> None:
    token = store.issue_key(ADA).token
    at_least = at_most = 0

    def check(answers: list[bool]) -> None:
        answers.append(validator.check(token).allowed)

    with Validator(store.file.path, max_pending=max_pending, max_seconds=3600) as validator:
        for nth in count(1):
            if max_pending == 2:  # so that the next one writes
                assert validator.check(token).allowed
                at_least, at_most = at_least + 1, at_most + 1
            answers: list[bool] = []
            interruption = Interruption(nth)
            was_interrupted = interruption.run(partial(check, answers))
            about = (nth, interruption.where, answers)
            at_least, at_most = at_least + (answers == [True]), at_most + 1
            assert validator.check(token).allowed, about
            at_least, at_most = at_least + 1, at_most + 1
            validator.flush()
            assert at_least <= used(store) <= at_most, about
            at_least = at_most = used(store)
            if not was_interrupted:
                break
    assert nth > 50


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("UPDATE APIKeys SET status = 'revoked'", "UPDATE APIKeys SET status = 'assigned'"),
        ("UPDATE Services SET is_active = 0", "UPDATE Services SET is_active = 1"),
        (
            "UPDATE APIKeyServiceQuotas SET service_id = 2",
            "UPDATE APIKeyServiceQuotas SET service_id = 1",
        ),
    ],
    ids=["revoked", "service", "quota"],
)
def test_a_check_that_is_interrupted_anywhere_lets_nothing_pass_that_is_taken_back(
    store: Store, quick: None, change: str, back: str
) -> None:
    store.add_service("search")
    store.add_service("other")
    token = store.issue_key(ADA, quotas={"search": 10**9}).token
    conn = connect(store.file.path)
    with Validator(store.file.path, max_seconds=3600) as validator:
        for nth in count(1):
            conn.execute(back)
            assert all(validator.check(token, service="search").allowed for _ in range(3))
            conn.execute(change)
            # As from Ctrl-C: not an Exception, after which all is forgotten anyway.
            interruption = Interruption(nth, KeyboardInterrupt)
            was_interrupted = interruption.run(partial(validator.check, token, service="search"))
            assert not validator.check(token, service="search").allowed, (nth, interruption.where)
            if not was_interrupted:
                break
    conn.close()
    assert nth > 50


def test_an_interrupted_flush_is_not_repeated_in_a_file_that_takes_the_stores_place(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, path, away = store.issue_key(ADA).token, store.file.path, tmp_path / "away.db"
    backup.backup(store.file, tmp_path / "copy.db")
    store.close()
    write = UsageBuffer._write

    def interrupted(self: UsageBuffer, *arguments: Any) -> None:
        write(self, *arguments)
        raise InterruptedHereError

    monkeypatch.setattr(slow, "LOOK_SECONDS", 0.0)
    with Validator(path, max_seconds=3600) as validator:
        assert all(validator.check(token).allowed for _ in range(3))
        with monkeypatch.context() as patch, pytest.raises(InterruptedHereError):
            patch.setattr(UsageBuffer, "_write", interrupted)
            validator.flush()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").rename(f"{away}{suffix}")
        backup.restore(tmp_path / "copy.db", path)
        assert all(validator.check(token).allowed for _ in range(2))
    assert (total(away), total(path)) == (3, 2)


def used(store: Store) -> int:
    return int(store.file.conn.execute("SELECT sum(amount) FROM UsageLog").fetchone()[0])


def test_usage_that_waits_for_a_lock_is_written_with_the_first_check_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is written, the bound is passed; several workers leave a lock free for moments."""
    token = store.issue_key(ADA).token
    monkeypatch.setattr("keystore.edge.usage.RETRY_SECONDS", 3600)
    with Validator(store.file.path, max_pending=3, max_seconds=3600) as validator:
        for number in range(1, 4):
            with store.file.write():
                for _ in range(5):
                    assert validator.check(token).allowed
            assert validator.pending == 5
            assert validator.check(token).allowed
            assert (validator.pending, store.status().usage_total) == (0, 6 * number)


def test_while_a_lock_is_held_no_second_check_waits_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = store.issue_key(ADA).token
    flush, wait = UsageBuffer.flush, db.set_busy_timeout
    flushes, waits = list[int](), list[float]()

    def counted(self: UsageBuffer) -> int:
        flushes.append(self.pending)
        return flush(self)

    def noted(conn: Any, seconds: float) -> None:
        waits.append(seconds)
        wait(conn, seconds)

    monkeypatch.setattr("keystore.edge.usage.RETRY_SECONDS", 3600)
    monkeypatch.setattr(UsageBuffer, "flush", counted)
    with Validator(store.file.path, max_pending=3, max_seconds=3600) as validator:
        with store.file.write(), monkeypatch.context() as patch:
            patch.setattr(db, "set_busy_timeout", noted)
            for _ in range(6):
                assert validator.check(token).allowed
        assert flushes == [3]
        assert set(waits[::2]) == {0}
        assert set(waits[1::2]) == {slow.IMPATIENT_SECONDS}
        assert len(waits) % 2 == 0


def test_a_flush_that_a_full_disk_has_stopped_is_tried_again_soon(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long usage may wait. Each try writes, so it is not made with every check."""
    token = store.issue_key(ADA).token
    write, tries = UsageBuffer._write, list[int]()

    def fail(self: UsageBuffer, *arguments: Any) -> None:
        tries.append(self.pending)
        raise DiskFullError("full")

    monkeypatch.setattr("keystore.edge.usage.RETRY_SECONDS", 3600)
    with Validator(store.file.path, max_pending=3, max_seconds=3600) as validator:
        monkeypatch.setattr(UsageBuffer, "_write", fail)
        for _ in range(50):
            assert validator.check(token).allowed
        assert tries == [3]
        monkeypatch.setattr("keystore.edge.usage.RETRY_SECONDS", 0.0)
        with pytest.raises(DiskFullError):
            validator.flush()
        monkeypatch.setattr(UsageBuffer, "_write", write)
        assert validator.check(token).allowed
        assert (validator.pending, store.status().usage_total) == (0, 51)
