"""Histories that hypothesis makes up, over several origins, replicas, copies, restores and crashes.

However they went: when everybody has synced at last, all digests are equal, every usage row that
anybody still has or had handed up is at the hub once, every key that is revoked there is denied
everywhere, and the doctor finds nothing.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from keystore import Reason, Store, Validator, failpoint
from keystore.backup import backup, restore
from keystore.db import open_store, remove_files
from keystore.doctor import examine
from keystore.errors import (
    CompactedLogError,
    ConstraintError,
    ForkedStoreError,
    NotFoundError,
    StaleTargetError,
    TargetNotReadyError,
)
from keystore.sync import compact, digest, engine, targets
from keystore.sync.engine import Report
from keystore.tokens import hash_token
from tests.centre import Centre
from tests.conftest import new_hub
from tests.failures import reaching

FAST = settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
TOKENS = [f"token number {number}" for number in range(4)]
UUIDS = [f"01890a5d-ac96-774b-bcce-b302099a80{number:02}" for number in range(4)]
HASHES = [hash_token(token) for token in TOKENS]

WRITES = [
    "INSERT OR REPLACE INTO Plans (plan_id, name) VALUES ({a}, 'plan {b}')",
    "UPDATE OR REPLACE Plans SET name = 'plan {b}' WHERE plan_id = {a}",
    "DELETE FROM Plans WHERE plan_id = {a}",
    "INSERT OR REPLACE INTO Accounts (account_id, email, plan_id) VALUES ({a}, '{b}@x.org', {a})",
    "INSERT INTO Accounts (email, plan_id) SELECT '{b}@x.org', min(plan_id) FROM Plans",
    "UPDATE OR REPLACE Accounts SET email = '{b}@X.org' WHERE account_id = {a}",
    "DELETE FROM Accounts WHERE account_id = {a}",
    """INSERT OR REPLACE INTO APIKeys (api_key_id, api_key, account_id, api_key_hash)
       SELECT {a}, '{uuid}', min(account_id), '{hash}' FROM Accounts""",
    """INSERT OR IGNORE INTO APIKeys (api_key, account_id, api_key_hash)
       SELECT '{uuid}', min(account_id), '{hash}' FROM Accounts""",
    "UPDATE OR REPLACE APIKeys SET api_key_hash = '{hash}' WHERE api_key_id = {a}",
    "UPDATE APIKeys SET label = '{b}' WHERE api_key_id = {a}",
    "UPDATE APIKeys SET is_active = NOT is_active WHERE api_key_id = {a}",
    "UPDATE APIKeys SET status = 'revoked' WHERE api_key_id = {a}",
    "DELETE FROM APIKeys WHERE api_key_id = {a}",
    "INSERT OR REPLACE INTO Services (service_id, name) VALUES ({a}, 'service {b}')",
    "DELETE FROM Services WHERE service_id = {a}",
    """INSERT OR REPLACE INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota,
                                                   remaining_quota)
       SELECT k.api_key_id, s.service_id, {a}, {a} FROM APIKeys AS k, Services AS s""",
]
number = st.integers(1, 3)
small = st.integers(0, 3)
statements = st.lists(st.tuples(st.sampled_from(WRITES), number, number, small, small), max_size=4)


class Crash(BaseException):
    """Stands for the end of a process: nothing catches it on the way."""


class Histories(RuleBasedStateMachine):
    """Several origins and replicas, and one hub."""

    def __init__(self, make_centre: Callable[[], Centre] = lambda: Centre(None)) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="keystore-histories-")
        self.folder = Path(self._folder.name)
        self.centre = make_centre()
        self.centre.keep()
        self.made = 0
        self.origins: list[Path] = []
        self.replicas: list[list[Path]] = []
        self.backups: dict[Path, Path] = {}
        self.handed_up: set[str] = set()
        self.kept: set[str] = set()

    @initialize(origins=st.integers(1, 2))
    def start(self, origins: int) -> None:
        for _ in range(origins):
            path = self.new_path()
            with Store.create(path) as store:
                store.file.conn.execute("INSERT INTO Plans (name) VALUES ('plan 1')")
                store.file.conn.execute(
                    "INSERT INTO Accounts (email, plan_id) VALUES ('1@x.org', 1)"
                )
            self.origins.append(path)
            self.replicas.append([])
            self.settle(path)

    def new_path(self) -> Path:
        self.made += 1
        return self.folder / f"{self.made}.db"

    def everybody(self) -> list[Path]:
        return [*self.origins, *(path for paths in self.replicas for path in paths)]

    def pick(self, which: int) -> Path:
        paths = self.everybody()
        return paths[which % len(paths)]

    @rule(which=small, writes=statements, roll_back=st.booleans(), recursive=st.booleans())
    def write(
        self,
        which: int,
        writes: list[tuple[str, int, int, int, int]],
        roll_back: bool,
        recursive: bool,
    ) -> None:
        with (
            open_store(self.origins[which % len(self.origins)]) as file,
            suppress(ConstraintError, ZeroDivisionError),
        ):
            file.conn.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            with file.write() as conn:
                for text, a, b, key, secret in writes:
                    values = {"a": a, "b": b, "uuid": UUIDS[key], "hash": HASHES[secret]}
                    conn.execute(text.format(**values))
                if roll_back:
                    raise ZeroDivisionError

    @rule(which=small)
    def record(self, which: int) -> None:
        self.made += 1
        with open_store(self.pick(which)) as file:
            file.conn.execute(
                "INSERT INTO UsageLog (principal_type, principal_id, amount, request_id)"
                " VALUES ('api_key', 1, ?, ?)",
                (self.made, f"r{self.made}"),
            )

    @rule(which=small, reconcile=st.booleans())
    def sync(self, which: int, reconcile: bool) -> None:
        path = self.pick(which)
        is_origin = path in self.origins
        with suppress(ForkedStoreError, StaleTargetError, TargetNotReadyError):
            self.sync_now(path, reconcile=reconcile and is_origin)

    def sync_now(self, path: Path, *, reconcile: bool = False) -> None:
        with open_store(path) as file:
            targets.sync_opened(file, self.centre.hub, Report("hub:"), reconcile=reconcile)
        self.handed_up |= self.usage_of(path)

    @rule(which=small, step=st.sampled_from(failpoint.STEPS), reconcile=st.booleans())
    def crash(self, which: int, step: str, reconcile: bool) -> None:
        def on_reach(reached: str) -> None:
            if reached == step:
                raise Crash

        with suppress(Crash), reaching(on_reach):
            self.sync(which, reconcile)

    @rule(which=small)
    def replicate(self, which: int) -> None:
        place = which % len(self.origins)
        if len(self.replicas[place]) < 3:
            with suppress(TargetNotReadyError):
                self.replicas[place].append(self.replica_of(self.origins[place]))

    def replica_of(self, origin: Path) -> Path:
        path = self.new_path()
        with open_store(origin) as file:
            store_id = file.info().store_id
        engine.replicate(self.centre.hub, "hub:", path, Report("hub:"), origin_id=store_id)
        return path

    @rule(which=small)
    def clone(self, which: int) -> None:
        for paths in self.replicas:
            if paths and len(paths) < 3:
                twin = self.new_path()
                with open_store(paths[which % len(paths)]) as file:
                    backup(file, twin)
                paths.append(twin)
                return

    @rule(which=small)
    def back_up(self, which: int) -> None:
        path = self.pick(which)
        self.backups[path] = self.new_path()
        with open_store(path) as file:
            backup(file, self.backups[path])

    @rule(which=small)
    def put_back(self, which: int) -> None:
        path = self.pick(which)
        if path in self.backups:
            remove_files(path)
            restore(self.backups[path], path)

    @rule(which=small, key=st.sampled_from(UUIDS))
    def revoke(self, which: int, key: str) -> None:
        with suppress(NotFoundError):
            self.centre.revoke(key)

    @rule(which=small)
    def compact(self, which: int) -> None:
        with open_store(self.pick(which)) as file:
            compact.compact(file)

    @rule(with_origins=st.booleans())
    def keep_hub(self, with_origins: bool) -> None:
        self.centre.keep()
        self.kept = set(self.handed_up)
        for place in range(len(self.origins) if with_origins else 0):
            self.back_up(place)

    @rule(with_origins=st.booleans())
    def put_hub_back(self, with_origins: bool) -> None:
        self.centre.put_back()
        self.handed_up = set(self.kept)
        for place in range(len(self.origins) if with_origins else 0):
            self.put_back(place)

    @rule(
        hub=st.booleans(),
        origins=st.booleans(),
        day=st.lists(statements, min_size=1, max_size=3),
        night=st.lists(statements, max_size=6),
        key=st.sampled_from(UUIDS),
    )
    def lose_a_day(
        self,
        hub: bool,
        origins: bool,
        day: list[list[tuple[str, int, int, int, int]]],
        night: list[list[tuple[str, int, int, int, int]]],
        key: str,
    ) -> None:
        """A whole day that everybody has seen, gone at some: too rare to come about by chance."""
        self.replicate(0)
        self.keep_hub(with_origins=True)
        for writes in day:
            self.write(0, writes, roll_back=False, recursive=False)
            self.revoke(0, key)
            for place, path in enumerate(self.everybody()):
                self.record(place)
                self.sync(self.everybody().index(path), reconcile=False)
        if hub:
            self.put_hub_back(with_origins=False)
        for place in range(len(self.origins) if origins else 0):
            self.put_back(place)
        for writes in night:
            self.write(0, writes, roll_back=False, recursive=True)

    def teardown(self) -> None:
        try:
            if self.origins:
                self.check()
        finally:
            self.centre.close()
            self._folder.cleanup()

    def settle(self, path: Path) -> None:
        """Sync an origin as its operator does: reconcile if, and only if, that is asked for."""
        for _ in range(2):
            try:
                self.sync_now(path)
            except ForkedStoreError:
                self.sync_now(path, reconcile=True)
            except CompactedLogError:
                self.sync_now(path)

    def catch_up(self, replica: Path, origin: Path) -> None:
        """Pull; if hub and origin were put back together, when the origin has counted past it."""
        for _ in range(100):
            try:
                self.sync_now(replica)
            except StaleTargetError:
                with open_store(origin) as file:
                    for _ in range(10):
                        file.conn.execute("INSERT INTO Services (name) VALUES ('for a moment')")
                        file.conn.execute("DELETE FROM Services WHERE name = 'for a moment'")
                self.settle(origin)
            else:
                return
        pytest.fail("the replica is ahead of its origin for ever")

    def check(self) -> None:
        for origin in self.origins:
            self.settle(origin)
        for origin, replicas in zip(self.origins, self.replicas, strict=True):
            for path in replicas:
                self.catch_up(path, origin)
            for path in (origin, *replicas):
                self.sync_now(path)
            self.check_rows(origin, replicas)
            self.check_revocations(origin, replicas)
        for path in self.everybody():
            with open_store(path) as file:
                assert [item for item in examine(file) if item.severity != "info"] == []
        self.check_usage()

    def check_rows(self, origin: Path, replicas: list[Path]) -> None:
        with open_store(origin) as file:
            wanted, store_id = digest.digest_store(file), file.info().store_id
        with self.centre.hub.pull(store_id, None) as cut:
            assert cut.digests() == wanted
        for path in replicas:
            with open_store(path) as file:
                assert digest.digest_store(file) == wanted

    def check_revocations(self, origin: Path, replicas: list[Path]) -> None:
        with open_store(origin) as file:
            store_id = file.info().store_id
        revoked = {item.api_key for item in self.centre.hub.revocations(store_id, 0, None)}
        for path in (origin, *replicas):
            with open_store(path) as file:
                held = {key for (key,) in file.conn.execute("SELECT api_key FROM Revocations")}
                assert revoked <= held
            with Validator(path) as validator:
                for token in TOKENS:
                    decision = validator.check(token, cost=0)
                    if decision.api_key in revoked:
                        assert decision.reason is Reason.REVOKED

    def check_usage(self) -> None:
        found = self.centre.usage()
        names = [name for name, _ in found]
        assert len(names) == len(set(names))
        wanted = set(self.handed_up)
        for path in self.everybody():
            wanted |= self.usage_of(path)
        assert set(names) >= wanted
        # also what was handed up before a crash, and forgotten here by a restore
        assert all(name == f"r{amount}" and amount <= self.made for name, amount in found)

    def usage_of(self, path: Path) -> set[str]:
        with open_store(path) as file:
            return {name for (name,) in file.conn.execute("SELECT request_id FROM UsageLog")}


def test_whatever_happened_everybody_agrees_at_last() -> None:
    run_state_machine_as_test(Histories, settings=FAST)


def test_whatever_happened_at_a_postgres_hub_everybody_agrees_at_last(postgres_url: str) -> None:
    class OwnHub(Centre):
        def __init__(self) -> None:
            self._hub = new_hub(postgres_url)
            super().__init__(self._hub.__enter__())

        def close(self) -> None:
            super().close()
            self._hub.__exit__(None, None, None)

    class OverPostgres(Histories):
        def __init__(self) -> None:
            super().__init__(OwnHub)

    few = settings(FAST, max_examples=4, stateful_step_count=15)
    run_state_machine_as_test(OverPostgres, settings=few)
