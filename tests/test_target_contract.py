"""What every target promises, whichever it is: one suite over memory, PostgreSQL and files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from keystore import Store, Validator
from keystore.changelog import Page
from keystore.db import SCHEMA_VERSION, StoreFile, open_store
from keystore.doctor import examine
from keystore.errors import (
    ForkedStoreError,
    StaleTargetError,
    TargetError,
    TargetNotReadyError,
)
from keystore.sync import digest, engine, repository
from keystore.sync.engine import Report
from keystore.sync.files import FileRepository
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import Origin, Sink, Source, everything
from keystore.sync.storage import storage_of
from keystore.tables import BY_NAME, TRACKED
from tests.conftest import NewStore

ORIGIN = Origin(
    "01890a5d-ac96-774b-bcce-b302099a8057",
    "0" * 8 + "-0000-4000-8000-" + "0" * 12,
    "sk-x-",
    SCHEMA_VERSION,
)
WHEN = "2026-11-20 12:00:00"
T1 = "00000000-0000-4000-8000-000000000001"
BUILT_IN = 5
"""Statuses that every origin starts with."""
NONE = {table.name: 0 for table in TRACKED}


class Pair:
    """One target, seen from an origin and from a replica."""

    def __init__(self, sink: Sink, open_source: Callable[[], Source], name: str) -> None:
        self.sink, self.open_source, self.name = sink, open_source, name

    @property
    def source(self) -> Source:
        return self.open_source()

    def push(self, store: Store) -> Report:
        report = Report(self.name)
        engine.push(store.file, self.sink, self.name, report)
        return report

    def replicate(self, path: Path) -> Report:
        report = Report(self.name)
        engine.replicate(self.source, self.name, path, report)
        return report

    def pull(self, path: Path) -> Report:
        report = Report(self.name)
        with open_store(path) as file:
            engine.pull(file, self.source, self.name, report)
        return report

    def rows(self) -> dict[str, list[object]]:
        found: dict[str, list[object]] = {}
        for page in everything(self.source, None):
            found.setdefault(page.table.name, []).extend(row[1] for row in page.rows)
        return {name: values for name, values in found.items() if values}


@pytest.fixture(params=["memory", "postgres", "files", "moto", "seaweedfs"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    match request.param:
        case "memory":
            hub = MemoryHub()
            yield Pair(hub, lambda: hub, "memory:")
        case "postgres":
            url = request.getfixturevalue("hub_url")
            pusher, puller = PostgresHub(url), PostgresHub(url)
            yield Pair(pusher, lambda: puller, url)
            pusher.close()
            puller.close()
        case kind:
            keys = tmp_path / "keys"
            if kind == "files":
                url = (tmp_path / "repository").as_uri()
            else:
                server = request.getfixturevalue(f"{kind}_server")
                server.admit(request.getfixturevalue("monkeypatch"))
                url = server.new_url()
            root = repository.create(storage_of(url), keys).read_bytes()
            sink = FileRepository(url, keys=keys).sink
            assert sink is not None

            def open_source() -> Source:
                source = FileRepository(url, root=root).source
                assert source is not None
                return source

            yield Pair(sink, open_source, url)


def plan(plan_id: int, name: str) -> tuple[int | str | None, ...]:
    return (plan_id, name, None, "deny", None, None, None, WHEN, WHEN)


def plans(*names: str, deleted: list[int] | None = None) -> Page:
    rows = [plan(number, name) for number, name in enumerate(names, start=1)]
    return Page(BY_NAME["Plans"], rows, deleted or [])


def test_nothing_can_be_pulled_before_the_first_push(target: Pair) -> None:
    with pytest.raises(TargetNotReadyError), target.source.pull(None, None):
        pass


def test_a_pushed_state_is_pulled_whole(target: Pair, store: Store, tmp_path: Path) -> None:
    store.issue_key("ada@example.org", label="naïve ☂ label", expires_at="2031-01-01")
    target.push(store)
    report = target.replicate(tmp_path / "replica.db")
    assert report.pulled == BUILT_IN + 3
    with open_store(tmp_path / "replica.db") as replica:
        assert digest.digest_store(replica) == digest.digest_store(store.file)
        assert replica.info().as_of_change == BUILT_IN + 3


def test_an_empty_origin_is_a_state_too(target: Pair, new_store: NewStore, tmp_path: Path) -> None:
    target.push(new_store())
    assert target.replicate(tmp_path / "replica.db").pulled == BUILT_IN
    with open_store(tmp_path / "replica.db") as replica:
        assert replica.info().as_of_change == BUILT_IN


def test_changes_deletes_and_swapped_names_arrive(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    replica = tmp_path / "replica.db"
    store.add_plan("pro")
    doomed = store.issue_key("ada@example.org")
    target.push(store)
    target.replicate(replica)
    conn = store.file.conn
    conn.execute("DELETE FROM APIKeys WHERE api_key = ?", (doomed.key.api_key,))
    conn.execute("UPDATE Plans SET name = 'x' WHERE name = 'free'")
    conn.execute("UPDATE Plans SET name = 'free' WHERE name = 'pro'")
    conn.execute("UPDATE Plans SET name = 'pro' WHERE name = 'x'")
    store.issue_key("ada@example.org")
    target.push(store)
    target.pull(replica)
    with open_store(replica) as file:
        assert digest.digest_store(file) == digest.digest_store(store.file)
        gone = file.conn.execute("SELECT count(*) FROM APIKeys WHERE api_key_id = 1").fetchone()
        assert gone == (0,)


def test_a_push_of_nothing_new_refreshes_the_time_and_moves_no_rows(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    assert target.push(store).pushed == BUILT_IN + 2
    target.replicate(tmp_path / "replica.db")
    assert target.push(store).pushed == 0
    assert target.pull(tmp_path / "replica.db").pulled == 0


def test_many_changes_to_few_records_send_few_rows(target: Pair, store: Store) -> None:
    store.add_plan("pro")
    target.push(store)
    for number in range(500):
        store.file.conn.execute("UPDATE Plans SET max_staleness_seconds = ?", (number + 1,))
    assert target.push(store).pushed == 2


def test_an_aborted_push_leaves_the_target_as_it_was(target: Pair) -> None:
    with target.sink.push(ORIGIN) as session:
        session.send(plans("free"))
        session.commit(up_to=1, as_of_at=WHEN, token=T1, counts=NONE | {"Plans": 1})
    with target.sink.push(ORIGIN) as session:
        session.send(plans("stolen", "new"))
    with pytest.raises(ZeroDivisionError), target.sink.push(ORIGIN) as session:
        session.send(plans("stolen", "new"))
        raise ZeroDivisionError
    assert target.rows() == {"Plans": ["free"]}
    with target.sink.push(ORIGIN) as session:
        assert session.state.token == T1
        assert session.state.acknowledged_change == 1


def test_the_later_of_two_pages_counts(target: Pair) -> None:
    with target.sink.push(ORIGIN) as session:
        session.send(plans("one", "two", "three"))
        again = Page(BY_NAME["Plans"], [plan(1, "ONE")], [2], repeats=True)
        session.send(again)
        session.send(Page(BY_NAME["Plans"], [plan(2, "TWO")], [3], repeats=True))
        session.commit(up_to=9, as_of_at=WHEN, token=T1, counts=NONE | {"Plans": 2})
    assert target.rows() == {"Plans": ["ONE", "TWO"]}


def test_a_record_that_comes_back_is_no_tombstone(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    replica = tmp_path / "replica.db"
    conn = store.file.conn
    target.push(store)
    target.replicate(replica)
    conn.execute("DELETE FROM Accounts")
    target.push(store)
    target.pull(replica)
    conn.execute(
        "INSERT INTO Accounts (account_id, email, plan_id) VALUES (1, 'back@example.org', 1)"
    )
    target.push(store)
    target.pull(replica)
    with open_store(replica) as file:
        assert file.conn.execute("SELECT email FROM Accounts").fetchall() == [("back@example.org",)]
        assert digest.digest_store(file) == digest.digest_store(store.file)


def test_orphans_and_their_neighbours_arrive(target: Pair, store: Store, tmp_path: Path) -> None:
    """Another client may leave a key without an account; the changes beside it must not stop."""
    issued = store.issue_key("ada@example.org")
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    conn = store.file.conn
    conn.execute("PRAGMA foreign_keys = OFF")
    conn.execute("DELETE FROM Accounts")
    conn.execute("INSERT INTO Plans (name) VALUES ('beside')")
    target.push(store)
    target.pull(tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file:
        assert digest.digest_store(file) == digest.digest_store(store.file)
    with Validator(tmp_path / "replica.db") as validator:
        assert not validator.check(issued.token).allowed
    conn.execute("DELETE FROM APIKeys")  # the doctor looks at this store afterwards


def test_a_lost_acknowledgement_is_noticed_and_nothing_is_sent_again(
    target: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_acknowledge_push", lambda *_: None)
        assert target.push(store).pushed == BUILT_IN + 2
    assert target.push(store).pushed == 0
    store.issue_key("ada@example.org")
    assert target.push(store).pushed == 1


def test_an_unfinished_push_is_made_again(
    target: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    target.push(store)
    store.issue_key("ada@example.org")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(engine, "_send", fail)
        target.push(store)
    assert target.push(store).pushed == 1


def test_a_copied_file_is_stopped_and_the_first_goes_on(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    target.push(store)
    copy = tmp_path / "copy.db"
    store.file.conn.execute("VACUUM INTO ?", (str(copy),))
    store.issue_key("ada@example.org")
    target.push(store)
    with Store.open(copy) as twin:
        twin.issue_key("ada@example.org")
        with pytest.raises(ForkedStoreError):
            target.push(twin)
    assert target.push(store).pushed == 0


def test_a_copy_made_while_a_push_was_under_way_is_stopped_too(
    target: Pair, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.db"
    send = engine._send

    def copy_then_send(*arguments: object) -> int:
        store.file.conn.execute("VACUUM INTO ?", (str(copy),))
        store.issue_key("ada@example.org")
        return send(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_send", copy_then_send)
        target.push(store)
    with Store.open(copy) as twin, pytest.raises(ForkedStoreError):
        target.push(twin)
    assert target.push(store).pushed == 0


def test_a_replica_of_another_origin_gets_nothing(
    target: Pair, store: Store, new_store: NewStore, tmp_path: Path
) -> None:
    other = MemoryHub()
    engine.push(new_store("other.db").file, other, "memory:", Report(""))
    engine.replicate(other, "memory:", tmp_path / "replica.db", Report(""))
    target.push(store)
    with pytest.raises(TargetError):
        target.pull(tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file:
        assert file.conn.execute("SELECT count(*) FROM Plans").fetchone() == (0,)


def test_a_target_that_was_put_back_does_not_take_the_replica_back(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    newer = MemoryHub()
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    issued = store.issue_key("ada@example.org")
    engine.push(store.file, newer, "memory:", Report(""))
    with open_store(tmp_path / "replica.db") as file:
        engine.pull(file, newer, "memory:", Report(""))
    with pytest.raises(StaleTargetError):
        target.pull(tmp_path / "replica.db")
    with Validator(tmp_path / "replica.db") as validator:
        assert validator.check(issued.token).allowed


class Crash(BaseException):
    """Stands for the end of the process at this point: nothing catches it on the way."""


class CrashingTransactions:
    """Replaces ``StoreFile._transaction``; the nth one of them crashes."""

    def __init__(self, fatal: int, when: str) -> None:
        self.fatal, self.when = fatal, when
        self.seen = 0
        self.original = StoreFile._transaction

    @contextmanager
    def __call__(self, file: StoreFile, begin: str) -> Iterator[object]:
        self.seen += 1
        is_fatal = self.seen == self.fatal
        if is_fatal and self.when == "before":
            raise Crash
        with self.original(file, begin) as conn:
            yield conn
        if is_fatal and self.when == "after":
            raise Crash


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_transaction_of_push_and_pull_loses_and_repeats_nothing(
    target: Pair, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    replica = tmp_path / "replica.db"
    target.push(store)
    target.replicate(replica)
    for fatal in count(1):
        store.add_plan(f"plan {fatal}")
        store.file.conn.execute("DELETE FROM Plans WHERE name = ?", (f"plan {fatal - 2}",))
        crashing = CrashingTransactions(fatal, when)
        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(StoreFile, "_transaction", lambda *args, c=crashing: c(*args))
            target.push(store)
            target.pull(replica)
        with open_store(replica) as file:
            assert examine(file) == []
        target.push(store)
        target.pull(replica)
        with open_store(replica) as file:
            assert digest.digest_store(file) == digest.digest_store(store.file)
        if crashing.seen < fatal:
            assert fatal > 5
            return


def test_a_replica_that_lost_rows_gets_everything_with_its_next_pull(
    target: Pair, store: Store, tmp_path: Path
) -> None:
    target.push(store)
    target.replicate(tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file:
        file.conn.executescript(
            "UPDATE StoreInfo SET replaying = 1; DELETE FROM Accounts;"
            "UPDATE StoreInfo SET replaying = 0"
        )
    store.add_service("maps")
    target.push(store)
    target.pull(tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file:
        assert digest.digest_store(file) == digest.digest_store(store.file)
