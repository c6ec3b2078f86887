"""`keystore serve` says what goes wrong while it serves, and fails if usage was lost at its end."""

import json
import os
import signal
import subprocess
import sys

import pytest

from keystore import Store
from keystore.db import SCHEMA_VERSION
from tests.serving import Server
from tests.test_server import Start, refused, start, token
from tests.test_workers import has_restarted, until

__all__ = ["start", "token"]

FLUSHES = ("--max-pending", 2, "--flush-seconds", 0.1)


def line(server: Server, part: str) -> str:
    """Read what it says until a line has a part; for what may come late, in any order."""
    assert server.process.stderr is not None
    for said in server.process.stderr:
        if part in said:
            return said
    raise AssertionError(part)


@pytest.fixture
def refusing(store: Store) -> Store:
    """A store that takes no usage, as one that belongs to another user."""
    store.file.conn.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON UsageLog BEGIN SELECT RAISE(ABORT, 'no use'); END"
    )
    return store


@pytest.mark.parametrize("workers", [1, 2])
def test_usage_that_cannot_be_written_is_said_while_it_serves(
    refusing: Store, start: Start, token: str, workers: int
) -> None:
    server = start("--workers", workers, *FLUSHES)
    assert server.get("/check", token).status == 200
    assert "no use. Nothing was written. The usage of 1 check waits." in line(server, "no use")
    refusing.file.conn.execute("DROP TRIGGER refuse")
    line(server, "usage is written again")
    assert server.stop() == (0, "")
    assert refusing.status().usage_total == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_usage_is_lost_at_its_end_says_so_and_fails(
    refusing: Store, start: Start, token: str, workers: int
) -> None:
    server = start("--workers", workers)
    assert server.get("/check", token).status == 200
    code, errors = server.stop()
    assert code == 1
    assert "no use" in errors
    assert "The usage of 1 check is lost." in errors


def test_a_worker_that_is_ended_alone_and_loses_usage_ends_nobody_else(
    refusing: Store, start: Start, token: str
) -> None:
    server = start("--workers", 2)
    assert server.get("/check", token).status == 200
    for number, worker in enumerate(server.children(), 1):
        os.kill(worker, signal.SIGTERM)
        until(lambda number=number: has_restarted(server, number))  # type: ignore[misc]
    assert server.get("/check", token).status == 200
    refusing.file.conn.execute("DROP TRIGGER refuse")
    code, errors = server.stop()
    assert code == 0
    assert errors.count("The usage of 1 check is lost.") == 1


def test_a_worker_that_has_to_be_killed_at_the_end_is_said_and_an_error(start: Start) -> None:
    program = """
from keystore.cli import main
from keystore.http import workers
workers.END_SECONDS = 1.0
main()
"""
    server = start("--workers", 2, program=program)
    worker = server.children()[0]
    os.kill(worker, signal.SIGSTOP)
    code, errors = server.stop()
    assert code == 1
    assert f"did not end were killed: {worker}." in errors


@pytest.mark.parametrize("workers", [1, 2])
def test_why_checks_get_503_is_said(store: Store, start: Start, token: str, workers: int) -> None:
    server = start("--workers", workers)
    store.file.conn.execute("PRAGMA user_version = 99")
    assert server.get("/check", token).status == 503
    assert "99" in line(server, "Checks get 503.")
    store.file.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    assert server.get("/check", token).status == 200


def test_a_missing_part_of_the_extra_is_named_before_it_serves(store: Store) -> None:
    for name in ("httptools", "prometheus_client"):
        program = f"""
import sys
sys.modules[{name!r}] = None
from keystore.cli import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", program, "serve", "--db", store.file.path, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            f"keystore: the server needs the extra 'server' ({name} is not installed). "
            "pip install 'keystore[server]'\n"
        )


def test_a_place_that_cannot_be_had_has_a_code_of_its_own(store: Store, start: Start) -> None:
    taken, folder = start().port, store.file.path.parent
    for place in (("--port", taken), ("--port", taken, "--workers", 2), ("--unix", folder)):
        code, errors = refused("--db", store.file.path, "--json", *place)
        assert (code, json.loads(errors)["error"]["code"]) == (1, "cannot_listen")
