"""Following goes on whatever the hub, the file or the reader of its output does."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psycopg

from keystore import Store
from keystore.db import open_store
from keystore.errors import DiskFullError
from keystore.sync import repository, targets
from keystore.sync.folder import Folder
from keystore.testing import postgres
from tests.test_failures_disk import SmallDisk, add_many, disk
from tests.test_follow import (
    DEADLINE_SECONDS,
    InThread,
    Run,
    allowed,
    ask,
    hub_rows,
    replica,
    run,
    wait_until,
    write,
)

__all__ = ["disk", "replica", "run"]

SET_PIPE_SIZE = 1031
SMALLEST_PIPE = 4096


def test_output_that_nobody_reads_keeps_no_server_from_following(
    store: Store, replica: Path, hub_url: str
) -> None:
    doomed = store.issue_key("ada@example.org")
    targets.sync(store.file, hub_url)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, SET_PIPE_SIZE, SMALLEST_PIPE)
    arguments = ("serve", "--db", str(replica), "--port", "0", "--sync", hub_url)
    server = subprocess.Popen(
        [sys.executable, "-m", "keystore", *arguments], stdout=writer, stderr=subprocess.DEVNULL
    )
    try:
        said = ""
        while "Serving" not in said or "following" not in said:
            said += os.read(reader, SMALLEST_PIPE).decode()
        (url,) = re.findall(r"http://\S+", said)
        os.write(writer, b"x" * SMALLEST_PIPE)
        wait_until(lambda: allowed(replica, doomed.token))
        # a line for the first of the two does not fit
        for label in ("one", "two"):
            store.issue_key("ada@example.org", label=label)
            targets.sync(store.file, hub_url)
        with targets.hub_admin(hub_url) as admin:
            admin.revoke(doomed.key.api_key)
        wait_until(lambda: ask(url, doomed.token) == 401)
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE_SECONDS) == 0
    finally:
        server.kill()
        server.wait()
        os.close(reader)
        os.close(writer)


def test_a_hub_that_is_restored_in_its_place_keeps_its_followers(
    run: Run, store: Store, replica: Path, hub_url: str, tmp_path: Path
) -> None:
    followers = [
        run("sync", "--follow", "--poll", 0.2, "--db", path) for path in (store.file.path, replica)
    ]
    for each in followers:
        each.wait_for("following")
    dump = tmp_path / "dump"
    programs = postgres.binaries()
    subprocess.run([programs / "pg_dump", "-Fc", "-f", dump, hub_url], check=True)
    drop_hub(hub_url)
    for each in followers:
        each.wait_for("lost")
    # in one transaction: a follower that meets half a hub, without its hub_info, gives up
    subprocess.run([programs / "pg_restore", "-1", "-d", hub_url, dump], check=True)
    # the dump may be older than the last empty push, which the origin takes for a fork
    followers[1].wait_for("back")
    assert followers[1].end() == 0


def drop_hub(url: str) -> None:
    """Drop a hub that is in use: its users lock its tables in another order."""
    while True:
        with suppress(psycopg.errors.DeadlockDetected), psycopg.connect(url) as conn:
            conn.execute("DROP SCHEMA keystore CASCADE")
            return


def test_usage_that_is_not_utf8_keeps_no_other_usage_back(
    store: Store, replica: Path, hub_url: str
) -> None:
    insert = "INSERT INTO UsageLog (principal_type, principal_id, amount, request_id) VALUES"
    write(replica, f"{insert} ('api_key', 1, 1, 'a'), ('api_key', 1, 2, CAST(x'61ff' AS TEXT))")
    write(replica, f"{insert} ('api_key', 1, 4, 'b')")
    with open_store(replica) as file:
        (report,) = targets.sync(file, hub_url)
        assert report.usage == 3
        (report,) = targets.sync(file, hub_url)
        assert report.usage == 0
    found = hub_rows(hub_url, "SELECT amount::INT, request_id FROM keystore.usage_log ORDER BY 1")
    assert found == [(1, "a"), (2, "a\ufffd"), (4, "b")]


def test_a_hub_that_was_forgotten_may_come_back_for_usage_alone(
    store: Store, replica: Path, hub_url: str, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    repository.create(Folder(files), tmp_path / "keys")
    targets.sync(store.file, str(files), keys=tmp_path / "keys")
    with open_store(replica) as file:
        root = (files / "metadata" / "1.root.json").read_bytes()
        targets.sync(file, str(files), root=root)
        targets.forget(file, hub_url)
        targets.sync(file, usage_to=hub_url)
    store.add_plan("later")
    targets.sync(store.file, str(files), keys=tmp_path / "keys")
    insert = "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES"
    write(replica, f"{insert} ('api_key', 1, 5)")
    with open_store(replica) as file:
        targets.sync(file, str(files))  # from here on the hub is behind
        reports = targets.sync(file)
    assert sum(report.usage or 0 for report in reports) == 1


def test_a_full_disk_ends_no_follower(
    store: Store, replica: Path, hub_url: str, disk: SmallDisk
) -> None:
    edge = disk.folder / "edge.db"
    targets.replicate(hub_url, edge)
    with InThread(edge, None, target=hub_url, poll=0.2) as follower:
        assert follower.next().kind == "following"
        disk.fill()
        add_many(store.file.path)
        targets.sync(store.file, hub_url)
        event = follower.next()
        assert (event.kind, type(event.error)) == ("lost", DiskFullError)
        disk.make_room()
        assert follower.next().kind == "back"
    assert follower.errors == []
