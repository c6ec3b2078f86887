"""Usage goes up exactly once: through kills, lost acknowledgements, retries and copies."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from keystore import Store, Validator
from keystore.backup import backup, restore
from keystore.db import StoreFile, open_store
from keystore.errors import StaleTargetError, TargetNotReadyError, TargetUnavailableError
from keystore.sync import engine, exchange, targets
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub

Total = Callable[[], int]


def record(file: StoreFile, *amounts: int) -> None:
    file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, account_id, amount, request_id)"
        " VALUES ('api_key', 1, 1, ?, 'r ☂')",
        [(amount,) for amount in amounts],
    )


@pytest.fixture(params=["memory", "postgres"])
def hub(request: pytest.FixtureRequest) -> Iterator[tuple[MemoryHub | PostgresHub, Total]]:
    if request.param == "memory":
        memory = MemoryHub()
        yield memory, lambda: sum(usage.amount for _, usage in memory.usage.values())
        return
    url = request.getfixturevalue("hub_url")
    opened = PostgresHub(url)

    def total() -> int:
        with psycopg.connect(url) as conn:
            row = conn.execute("SELECT coalesce(sum(amount), 0)::BIGINT FROM keystore.usage_log")
            return int((row.fetchone() or (0,))[0])

    yield opened, total
    opened.close()


@pytest.fixture
def replica(store: Store, tmp_path: Path) -> Path:
    source, path = MemoryHub(), tmp_path / "replica.db"
    engine.push(store.file, source, "memory:", Report(""))
    engine.replicate(source, "memory:", path, Report(""))
    return path


def hand_up(file: StoreFile, hub: MemoryHub | PostgresHub) -> int | None:
    report = Report("")
    exchange.hand_up_usage(file, hub, "hub:", report)
    return report.usage


def test_usage_goes_up_once_and_only_what_is_new(
    replica: Path, hub: tuple[MemoryHub | PostgresHub, Total]
) -> None:
    sink, total = hub
    with open_store(replica) as file:
        assert hand_up(file, sink) == 0
        record(file, 1, 2, 3)
        assert hand_up(file, sink) == 3
        assert hand_up(file, sink) == 0
        record(file, 10)
        assert hand_up(file, sink) == 1
    assert total() == 16


def test_a_lost_acknowledgement_of_usage_counts_once(
    replica: Path, hub: tuple[MemoryHub | PostgresHub, Total]
) -> None:
    sink, total = hub
    with open_store(replica) as file:
        record(file, 1, 2, 3)
        hand_up(file, sink)
        file.conn.execute("UPDATE SyncTargets SET acknowledged_usage = 1")
        record(file, 4)
        assert hand_up(file, sink) == 3
    assert total() == 10


def test_a_hub_that_was_put_back_gets_the_usage_again_that_it_lost(
    replica: Path, hub: tuple[MemoryHub | PostgresHub, Total], hub_url: str
) -> None:
    sink, total = hub
    with open_store(replica) as file:
        record(file, 1, 2, 3)
        hand_up(file, sink)
        if isinstance(sink, MemoryHub):
            sink.usage = {key: usage for key, usage in sink.usage.items() if key[1] < 2}
        else:
            with psycopg.connect(hub_url) as conn:
                conn.execute("DELETE FROM keystore.usage_log WHERE usage_id >= 2")
        record(file, 10)
        assert hand_up(file, sink) == 4
    assert total() == 16


def test_many_pages_arrive_and_a_failure_between_them_loses_nothing(
    replica: Path,
    hub: tuple[MemoryHub | PostgresHub, Total],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink, total = hub
    monkeypatch.setattr(exchange, "USAGE_PAGE_SIZE", 10)
    push_usage, calls = sink.push_usage, 0

    def fail_on_third(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TargetUnavailableError("cut.", hint="wait")
        push_usage(*arguments)  # type: ignore[arg-type]

    with open_store(replica) as file:
        record(file, *[1] * 45)
        with monkeypatch.context() as patch, pytest.raises(TargetUnavailableError):
            patch.setattr(sink, "push_usage", fail_on_third)
            hand_up(file, sink)
        assert total() == 20
        assert hand_up(file, sink) == 25
    assert total() == 45


def test_copies_of_one_replica_count_what_they_share_once_and_their_own_each(
    replica: Path, hub: tuple[MemoryHub | PostgresHub, Total]
) -> None:
    """The same key, the same amount, the same second: still two rows, if two copies wrote them."""
    sink, total = hub
    twin = replica.with_name("twin.db")
    with open_store(replica) as file:
        record(file, 100)  # not yet handed up when the copy is made
        file.conn.execute("VACUUM INTO ?", (str(twin),))
        record(file, 1)
        hand_up(file, sink)
    with open_store(twin) as file:
        record(file, 1)
        hand_up(file, sink)
        hand_up(file, sink)
    with open_store(replica) as file:
        record(file, 7)
        assert hand_up(file, sink) == 1
    assert total() == 109


def test_a_restored_replica_hands_up_what_it_recorded_before_and_since(
    replica: Path, hub: tuple[MemoryHub | PostgresHub, Total]
) -> None:
    sink, total = hub
    with open_store(replica) as file:
        record(file, 1)
        backup(file, replica.with_name("backup.db"))
        record(file, 10)
        hand_up(file, sink)
    restore(replica.with_name("backup.db"), replica.with_name("restored.db"))
    with open_store(replica.with_name("restored.db")) as file:
        record(file, 10)
        hand_up(file, sink)
    assert total() == 21


def test_rows_that_are_refused_do_not_keep_the_usage_back(
    store: Store, hub: tuple[MemoryHub | PostgresHub, Total], tmp_path: Path
) -> None:
    sink, total = hub
    engine.push(store.file, sink, "hub:", Report(""))
    engine.replicate(sink, "hub:", tmp_path / "ahead.db", Report(""))
    with open_store(tmp_path / "ahead.db") as file:
        file.conn.execute("UPDATE StoreInfo SET as_of_change = 1000")
        record(file, 5)
        with pytest.raises(StaleTargetError):
            targets.sync_opened(file, sink, Report("hub:"))
    assert total() == 5


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO UsageLog {columns} VALUES (1, 'api_key', 1, 5)",
        "INSERT OR IGNORE INTO UsageLog {columns} VALUES (99, 'api_key', 1, 5)",
        "REPLACE INTO UsageLog {columns} VALUES (100, 'api_key', 1, 5)",
        "UPDATE OR IGNORE UsageLog SET amount = 0",
        "DELETE FROM UsageLog",
    ],
)
def test_usage_is_only_ever_appended(replica: Path, statement: str) -> None:
    """What comes before what was handed up, or changes it, would never arrive."""
    with open_store(replica) as file:
        columns = "(usage_id, principal_type, principal_id, amount)"
        file.conn.execute(f"INSERT INTO UsageLog {columns} VALUES (100, 'api_key', 1, 8)")
        with pytest.raises(Exception, match="append-only"):
            file.conn.execute(statement.format(columns=columns))
        record(file, 1)
        found = file.conn.execute(
            "SELECT usage_id, amount FROM UsageLog ORDER BY usage_id"
        ).fetchall()
        assert found == [(100, 8), (101, 1)]


def test_an_origin_hands_up_its_own_usage_too(store: Store, hub_url: str) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path) as validator:
        validator.check(token, cost=3)
    (report,) = targets.sync(store.file, hub_url)
    assert (report.pushed, report.usage) == (8, 1)


def test_usage_of_a_deleted_key_goes_up_and_stays(store: Store, hub_url: str) -> None:
    token = store.issue_key("ada@example.org").token
    with Validator(store.file.path) as validator:
        validator.check(token)
    store.file.conn.execute("DELETE FROM Accounts")
    (report,) = targets.sync(store.file, hub_url)
    assert report.usage == 1
    with psycopg.connect(hub_url) as conn:
        found = conn.execute("SELECT account_id, amount FROM keystore.usage_log").fetchall()
    assert found == [(1, 1)]


def test_one_target_that_is_down_does_not_keep_the_others_from_their_turn(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    from keystore.sync import repository
    from keystore.sync.folder import Folder

    files, keys = tmp_path / "files", tmp_path / "keys"
    repository.create(Folder(files), keys)
    targets.sync(store.file, str(files), keys=keys)
    targets.sync(store.file, hub_url)
    store.add_plan("new")
    files.rename(tmp_path / "gone")
    done: list[Report] = []
    with pytest.raises(TargetNotReadyError):
        targets.sync(store.file, keys=keys, on_report=done.append)
    assert [(report.target, report.pushed) for report in done] == [(hub_url, 1)]


def test_each_target_that_is_down_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_cli import run

    for name in ("one", "two"):
        engine.push(store.file, MemoryHub(), f"postgresql://127.0.0.1:1/{name}", Report(""))
    said = run("sync", "--db", str(store.file.path))
    assert said.exit_code == 1
    assert [line.partition(": ")[2][:27] for line in said.output.splitlines()] == [
        "postgresql://127.0.0.1:1/on",
        "postgresql://127.0.0.1:1/tw",
    ]
    as_json = json.loads(run("sync", "--json", "--db", str(store.file.path)).output)
    assert as_json["error"]["code"] == "target_unavailable"
    assert len(as_json["others"]) == 1
