"""What the failure tests share: a site of three, children that die, and what must hold."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from keystore import Store, failpoint
from keystore.backup import backup
from keystore.db import StoreFile, open_store
from keystore.doctor import examine
from keystore.errors import KeystoreError
from keystore.sync import digest, engine, targets
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub

ROOT = Path(__file__).parent.parent


def record(file: StoreFile, amount: int, service_id: int | None = None) -> int:
    """Record usage, and return how much."""
    file.conn.execute(
        "INSERT INTO UsageLog (principal_type, principal_id, amount, service_id)"
        " VALUES ('api_key', 1, ?, ?)",
        (amount, service_id),
    )
    return amount


def grow(store: Store) -> None:
    """Write three megabytes that do not compress."""
    with store.file.write() as conn:
        conn.execute(
            "INSERT INTO APIKeyStatuses (name, description)"
            " VALUES ('big', hex(randomblob(3000000)))"
        )


def push(
    store: Store, target: MemoryHub | PostgresHub, url: str = "hub:", *, reconcile: bool = False
) -> Report:
    report = Report(url)
    engine.push(store.file, target, url, report, reconcile=reconcile)
    return report


def pull(path: Path, target: MemoryHub | PostgresHub) -> Report:
    report = Report("")
    with open_store(path) as file:
        engine.pull(file, target, "hub:", report)
    return report


def copy(path: Path, name: str) -> Path:
    """Copy a store as a disk image would: the incarnation, too."""
    twin = path.with_name(name)
    with open_store(path) as file:
        backup(file, twin)
    return twin


@contextmanager
def reaching(act: Callable[[str], None]) -> Iterator[None]:
    """Call ``act`` with each step that is reached."""
    failpoint.on_reach = act
    try:
        yield
    finally:
        failpoint.on_reach = None


def once(step: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Do something the first time that a step is reached."""
    done: list[str] = []

    def on_reach(reached: str) -> None:
        if reached == step and not done:
            done.append(step)
            act()

    return on_reach


class Children:
    """Runs ``keystore`` in processes that die by SIGKILL at a step; see failures_child.py."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.failures_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, step: str = "", nth: int = 1) -> tuple[int, str]:
        """Run one; return its exit status (negative: the signal that ended it) and its output."""
        self.start(*arguments, step=step, nth=nth)
        return self.wait()

    def start(self, *arguments: object, step: str = "", nth: int = 1) -> None:
        """Start one, and say so to nobody before it has ended: see :meth:`wait`."""
        order = {"arguments": [str(item) for item in arguments], "step": step, "nth": nth}
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()

    def wait(self) -> tuple[int, str]:
        """Wait for the child that was started first."""
        assert self._parent.stdout is not None
        answer: dict[str, Any] = json.loads(self._parent.stdout.readline())
        return int(answer["status"]), str(answer["said"])

    def close(self) -> None:
        self._parent.communicate()


class Site:
    """An origin, a hub and a replica, and how much was used; every failure test has one."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.usage, self.granted = url, 0, 0
        self.origin, self.replica = folder / "origin.db", folder / "replica.db"
        with Store.create(self.origin) as store:
            store.add_plan("free")
            store.add_account("ada@example.org", plan="free")
            store.issue_key("ada@example.org")
        self.sync(self.origin)
        targets.replicate(url, self.replica)

    def change(self) -> None:
        """Write and delete at the origin, by all ways; revoke at the hub; use everywhere."""
        with Store.open(self.origin) as store:
            doomed = store.issue_key("ada@example.org")
            store.issue_key("ada@example.org", label="stays")
            store.delete_key(doomed.key.api_key)
            conn = store.file.conn
            conn.execute("INSERT OR REPLACE INTO Plans (name) VALUES ('replaced')")
            conn.execute("INSERT OR REPLACE INTO Services (service_id, name) VALUES (3, 'again')")
            conn.execute("DELETE FROM Services")
            conn.execute("INSERT OR REPLACE INTO Services (service_id, name) VALUES (3, 'again')")
            conn.execute(
                "INSERT INTO APIKeyServiceQuotas"
                " (api_key_id, service_id, initial_quota, remaining_quota) VALUES (1, 3, 900, 900)"
            )
            self.usage += record(store.file, 100, 3)
            self.granted += store.grant("ada@example.org", "1").amount_nano
        with psycopg.connect(self.url) as hub:
            found = hub.execute(
                "SELECT k.api_key::TEXT FROM keystore.api_keys AS k LEFT JOIN keystore.revocations"
                " AS r USING (api_key) WHERE r.api_key IS NULL LIMIT 1"
            ).fetchone()
        if found:
            with targets.hub_admin(self.url) as admin:
                admin.revoke(found[0])
        with open_store(self.replica) as file:
            self.usage += record(file, 1, 3)

    def sync(self, path: Path, *, url: str | None = None, reconcile: bool = False) -> Report:
        with open_store(path) as file:
            (report,) = targets.sync(file, url or self.url, reconcile=reconcile)
        return report

    def settle(self) -> None:
        """Sync everybody, until what the hub revoked is in the rows of all."""
        self.sync(self.origin)
        self.sync(self.replica)

    def check(self, *replicas: Path) -> None:
        """Everybody has the same rows, nothing was lost or counted twice, and nobody is ill."""
        hub = PostgresHub(self.url)
        try:
            with open_store(self.origin) as file:
                wanted = digest.digest_store(file)
                with hub.pull(file.info().store_id, None) as cut:
                    assert cut.digests() == wanted
            total = hub.conn.execute(
                "SELECT coalesce(sum(amount), 0)::BIGINT FROM keystore.usage_log"
            )
            assert (total.fetchone() or (0,))[0] == self.usage
            granted = hub.conn.execute(
                "SELECT coalesce(sum(amount_nano), 0)::BIGINT FROM keystore.credit_ledger"
            )
            assert (granted.fetchone() or (0,))[0] == self.granted
        finally:
            hub.close()
        for path in (self.origin, self.replica, *replicas):
            with open_store(path) as file:
                assert digest.digest_store(file) == wanted
                assert [item for item in examine(file) if item.severity != "info"] == []


def kill_backends(server: str) -> None:
    """SIGKILL the server's processes that serve keystore: the whole server starts anew.

    Returns when the server has noticed. Until then it still takes connections, and a caller
    that waits for it with one would meet the crash later.

    Raises:
        AssertionError: there is none, or the server does not notice.
    """
    conn = psycopg.connect(server, autocommit=True)
    found = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'keystore'"
    ).fetchall()
    killed = 0
    for (pid,) in found:
        with suppress(ProcessLookupError):  # of a connection that was closed a moment ago
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed
    # The server takes all connections down with the killed ones, this one as well.
    while not conn.closed:
        readable, _, _ = select.select([conn], [], [], 30)
        assert readable, "the server did not notice that its processes were killed"
        with suppress(psycopg.OperationalError):
            conn.execute("SELECT 1")


def wait_for(server: str) -> None:
    """Wait until a server takes connections again, after it has gone."""
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(server, connect_timeout=5).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
        else:
            return


def said(error: KeystoreError) -> str:
    """Assert that an error says what to do, on one line; return it."""
    assert error.hint
    assert "\n" not in str(error)
    return str(error)
