"""Several workers on one port: rates hold across them, a dead one comes back, none outlives all."""

import errno
import json
import mmap
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystore import Store
from keystore.edge.decision import Rate
from keystore.edge.rates import LocalRates
from keystore.edge.shared_rates import GROUPS, SIZE, SLOTS, SharedRates, anonymous_file
from tests.serving import Server
from tests.test_server import Start, refused, start, token

__all__ = ["start", "token"]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process_id: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except FileNotFoundError:
        return False


def has_restarted(server: Server, times: int) -> bool:
    """Whether so many workers were started again; the others answer meanwhile."""
    try:
        return server.metrics()["keystore_worker_restarts_total"] == times
    except OSError:  # it was given to the one that was killed, before the system knew
        return False


def statuses(server: Server, token: str, times: int, threads: int = 16) -> list[int]:
    """Ask so often, over many connections, which reach all workers."""

    def ask(_: int) -> list[int]:
        return [server.get("/check", token).status for _ in range(times // threads)]

    with ThreadPoolExecutor(threads) as pool:
        return [status for some in pool.map(ask, range(threads)) for status in some]


def test_a_rate_holds_exactly_across_workers(store: Store, start: Start) -> None:
    store.add_plan("slow", rate_limit=50, rate_window_seconds=3600)
    store.add_account("bob@example.org", plan="slow")
    token = store.issue_key("bob@example.org").token
    server = start("--workers", 4)
    answered = statuses(server, token, 400)
    assert (answered.count(200), answered.count(429)) == (50, 350)
    os.kill(random.choice(server.children()), signal.SIGKILL)  # noqa: S311
    until(lambda: has_restarted(server, 1))
    until(lambda: len(server.children()) == 4)
    assert set(statuses(server, token, 64)) == {429}


def test_workers_share_the_port_and_a_second_server_does_not(
    store: Store, start: Start, token: str
) -> None:
    server = start("--workers", 3)
    assert len(server.children()) == 3
    options = ("--db", store.file.path, "--port", server.port)
    for workers in (1, 2):
        code, errors = refused(*options, "--workers", workers)
        assert code == 1
        assert errors.startswith("keystore: cannot listen on 127.0.0.1 port")
        assert errors.count("\n") == 1
    assert set(statuses(server, token, 32)) == {200}


@contextmanager
def asking(server: Server, token: str, clients: int) -> Iterator[list[tuple[int, int]]]:
    """Ask all the time, each time on a new connection: any worker may get it.

    In the end the list has, for each thread, how often it has asked, and how often heard yes.
    """
    done, counts = threading.Event(), list[tuple[int, int]]()

    def ask() -> None:
        asked = heard = 0
        while not done.is_set():
            asked += 1
            with suppress(OSError, HTTPException):  # the worker was killed
                heard += server.get("/check", token).status == 200
        counts.append((asked, heard))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask) for _ in range(clients)]
        try:
            yield counts
        finally:
            done.set()
    for one in running:
        one.result()


@pytest.mark.parametrize("max_pending", [1, 20])
def test_a_killed_worker_comes_back_and_loses_no_more_than_the_bound(
    store: Store, start: Start, token: str, max_pending: int
) -> None:
    options = ("--workers", 3, "--max-pending", max_pending, "--flush-seconds", 3600)
    server = start(*options)
    kills = 3
    # One client where usage is buffered: workers that flush at the same time wait for each other,
    # and on a slow disk longer than a check may wait. Then the bound is passed, as it is to be.
    with asking(server, token, clients=4 if max_pending == 1 else 1) as counts:
        for kill in range(1, kills + 1):
            before = answers(server)
            until(lambda before=before: answers(server) > before + 100)  # type: ignore[misc]
            os.kill(random.choice(server.children()), signal.SIGKILL)  # noqa: S311
            until(lambda kill=kill: has_restarted(server, kill))  # type: ignore[misc]
            until(lambda: len(server.children()) == 3)
    code, errors = server.stop()
    assert (code, errors.count("starting it again")) == (0, kills)
    asked, heard = (sum(column) for column in zip(*counts, strict=True))
    lost = 0 if max_pending == 1 else kills * max_pending
    used = store.status().usage_total
    assert heard - lost <= used <= asked


def answers(server: Server) -> float:
    return server.metrics()["keystore_decisions_total{reason=ok}"]


def test_no_worker_outlives_its_supervisor_and_each_flushes(
    store: Store, start: Start, token: str
) -> None:
    server = start("--workers", 3, "--flush-seconds", 3600)
    assert statuses(server, token, 64).count(200) == 64
    workers = server.children()
    server.stop(signal.SIGKILL)
    until(lambda: not any(map(is_running, workers)))
    assert store.status().usage_total == 64


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers_with_their_usage_on_disk(
    store: Store, start: Start, token: str, number: int
) -> None:
    server = start("--workers", 2, "--flush-seconds", 3600)
    assert statuses(server, token, 32).count(200) == 32
    workers = server.children()
    assert server.stop(number) == (0, "")
    assert not any(map(is_running, workers))
    assert store.status().usage_total == 32
    with pytest.raises(OSError, match=os.strerror(errno.ECONNREFUSED)):
        socket.create_connection(("127.0.0.1", server.port))


UNWRITABLE = """
CREATE TRIGGER full BEFORE INSERT ON UsageLog BEGIN SELECT RAISE(ABORT, 'nothing more fits'); END
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_usage_that_cannot_be_written_at_the_end_is_not_lost_in_silence(
    store: Store, start: Start, token: str, workers: int
) -> None:
    server = start("--workers", workers, "--flush-seconds", 3600)
    assert statuses(server, token, 64).count(200) == 64
    store.file.conn.execute(UNWRITABLE)
    code, errors = server.stop()
    assert code == 1
    assert "nothing more fits" in errors
    assert "Traceback" not in errors


def test_a_worker_that_ends_with_an_error_does_not_take_the_others_with_it(
    store: Store, start: Start, token: str
) -> None:
    server = start("--workers", 2, "--flush-seconds", 3600)
    assert statuses(server, token, 64).count(200) == 64
    store.file.conn.execute(UNWRITABLE)
    os.kill(server.children()[0], signal.SIGTERM)
    until(lambda: has_restarted(server, 1))
    store.file.conn.execute("DROP TRIGGER full")
    until(lambda: len(server.children()) == 2)
    assert server.get("/check", token).status == 200
    code, errors = server.stop()
    assert code == 0
    assert "nothing more fits" in errors


def test_workers_that_die_at_once_are_given_up_with_one_line(store: Store) -> None:
    program = (
        "import types, keystore.http.workers as workers\n"
        "from keystore.cli import main\n"
        "workers.sys = types.SimpleNamespace(executable='/bin/false')\n"
        "workers._BACK_OFF_SECONDS = (0.001, 0.01)\n"
        "main()\n"
    )
    with pytest.raises(AssertionError) as caught:
        Server(store.file.path, "--workers", 2, program=program)
    lines = str(caught.value).splitlines()
    (last,) = (line for line in lines if line.startswith('{"error"'))
    assert "ended 5 times in a row, last with code 1" in last
    assert all(line.endswith("starting it again.") for line in lines if line != last)


def test_what_keeps_a_worker_from_serving_is_one_line_with_its_code(
    store: Store, tmp_path: Path
) -> None:
    program = (
        "import keystore.http.workers as workers\n"
        "from keystore.cli import main\n"
        f"workers.Task = lambda **kw: Task(**kw | dict(path={str(tmp_path / 'none.db')!r}))\n"
        "from keystore.http.worker import Task\n"
        "main()\n"
    )
    with pytest.raises(AssertionError, match="No such file") as caught:
        Server(store.file.path, "--workers", 2, program=program)
    (line,) = str(caught.value).splitlines()
    assert json.loads(line)["error"]["code"] == "store_not_found"


# -- the table of rates ------------------------------------------------------------------------


@contextmanager
def shared() -> Iterator[SharedRates]:
    descriptor = anonymous_file(SIZE)
    try:
        yield SharedRates(descriptor, mmap.mmap(descriptor, SIZE))
    finally:
        os.close(descriptor)


RATES = st.builds(Rate, st.integers(1, 50), st.integers(1, 3600), st.integers(1, 20))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.floats(0, 100)), max_size=60), RATES)
def test_the_shared_table_says_what_a_process_of_its_own_would(
    asked: list[tuple[int, bool, float]], rate: Rate
) -> None:
    now = 1000.0
    with shared() as table, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        alone = LocalRates()
        for key, counts, later in asked:
            now += later
            # Keys that share a group, so that one is not taken for another.
            ours, theirs = (
                (rates.take if counts else rates.look)(key * GROUPS, rate)
                for rates in (table, alone)
            )
            assert ours == theirs


def test_a_full_table_forgets_nothing_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rate = 1000.0, Rate(2, 100, 2)
    with shared() as table:
        monkeypatch.setattr(time, "monotonic", lambda: now)
        keys = [GROUPS * number + 7 for number in range(1, SLOTS + 2)]
        for number, key in enumerate(keys[:SLOTS]):
            assert not table.take(key, rate).retry_after
            now += 1 if number == 0 else 0
        last = table.take(keys[SLOTS], rate)
        assert last.retry_after == 49.0  # the first key's burst is whole then
        assert table.look(keys[SLOTS], rate).retry_after == 49.0
        for key in keys[1:SLOTS]:
            assert table.take(key, rate).remaining == 0
        now += 49.0
        assert not table.take(keys[SLOTS], rate).retry_after
        assert table.take(keys[1], rate).retry_after  # it was not this one that was dropped


def test_keys_are_forgotten_once_for_each_origin() -> None:
    rate = Rate(1, 3600, 1)
    with shared() as table:
        assert not table.take(1, rate).retry_after
        table.clear("another origin")
        assert not table.take(1, rate).retry_after
        table.clear("another origin")  # a second process has noticed it, too
        assert table.take(1, rate).retry_after
