"""Usage of any kind of principal: logged by one call, once a request; it outlives its subject."""

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest

from keystore import Store, quotas
from keystore.db import Error, StoreFile, open_store
from keystore.doctor import examine
from keystore.errors import (
    ConflictingRequestError,
    DamagedStoreError,
    InvalidInputError,
    NotFoundError,
)
from keystore.sync import engine, usage_files, usage_keys
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.failures import push
from tests.test_cli import run
from tests.test_usage_sync import hand_up

ADA = "ada@example.org"


def add_client(store: Store, number: int, client_id: str) -> None:
    store.file.conn.execute(
        "INSERT INTO OAuthClients (oauth_client_id, client_id, account_id, client_secret_hash)"
        " VALUES (?, ?, 1, ?)",
        (number, client_id, "0" * 64),
    )


def replica_of(hub: MemoryHub, path: Path, url: str = "hub:") -> StoreFile:
    engine.replicate(hub, url, path, Report(""))
    return open_store(path)


def total(store: Store) -> int:
    return store.usage_report()[0].amount


def test_usage_of_an_oauth_client_is_logged_though_no_key_has_its_id(store: Store) -> None:
    """Seed 000: `Key (apiKeyId)=(13) is not present in table "api_key"`."""
    add_client(store, 13, "dashboard")
    assert store.file.conn.execute("SELECT * FROM APIKeys WHERE api_key_id = 13").fetchall() == []
    entry = store.log_usage("oauth_client", "dashboard", 2)
    assert (entry.principal_type, entry.principal_id, entry.account_id) == ("oauth_client", 13, 1)
    assert store.log_usage("oauth_client", 13).principal_id == 13
    assert total(store) == 3
    assert store.file.conn.execute("PRAGMA foreign_key_check").fetchall() == []
    by_account = store.usage_report(account=ADA)
    assert [item.amount for item in by_account] == [3]  # filtering by user still works


def test_a_key_and_a_client_of_one_id_are_told_apart(store: Store) -> None:
    issued = store.issue_key(ADA).key
    add_client(store, issued.api_key_id, "dashboard")
    store.log_usage("api_key", issued.api_key, 1)
    store.log_usage("oauth_client", "dashboard", 10)
    store.log_usage("session", issued.api_key_id, 100, account=ADA)
    found = {item.label: item.amount for item in store.usage_report(by="principal")}
    assert found == {f"api_key {issued.api_key}": 1, "oauth_client dashboard": 10, "session 1": 100}


def test_the_trail_outlives_key_client_and_account(store: Store) -> None:
    store.add_account("eve@example.org", plan="free")
    issued = store.issue_key("eve@example.org").key
    store.file.conn.execute(
        "INSERT INTO OAuthClients (client_id, account_id, client_secret_hash) VALUES ('c', 2, ?)",
        ("0" * 64,),
    )
    store.log_usage("api_key", issued.api_key, 5)
    store.log_usage("oauth_client", "c", 7)
    store.file.conn.execute("DELETE FROM Accounts WHERE email = 'eve@example.org'")
    assert store.keys() == []
    assert store.log_usage("api_key", issued.api_key, 1).principal_id == issued.api_key_id
    assert store.log_usage("api_key", issued.api_key_id, 1).account_id is None
    assert store.log_usage("oauth_client", 1, 1).principal_id == 1
    assert total(store) == 15
    assert [item.amount for item in store.usage_report(key=issued.api_key)] == [7]
    assert [item.amount for item in store.usage_report(account="2")] == [12]
    names = {item.label: item.amount for item in store.usage_report(by="principal")}
    assert names == {f"api_key {issued.api_key}": 7, "oauth_client 1": 8}


def test_a_request_of_a_principal_counts_once(store: Store) -> None:
    store.add_service("tts")
    first = store.log_usage("session", 7, 3, service="tts", request_id="r1")
    assert store.log_usage("session", 7, 3, service="tts", request_id="r1") == first
    assert store.log_usage("session", 8, 3, service="tts", request_id="r1") != first
    assert total(store) == 6
    for amount, service in ((4, "tts"), (3, None)):
        with pytest.raises(ConflictingRequestError, match="usage 1"):
            store.log_usage("session", 7, amount, service=service, request_id="r1")
    assert total(store) == 6


def _log(path: Path) -> None:
    with Store.open(path) as store:
        for number in range(50):
            store.log_usage("session", 7, 2, request_id=f"r{number}")


def test_processes_that_log_the_same_requests_log_each_once(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_log, args=(store.file.path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert total(store) == 100
    assert store.status().last_usage == 50


@pytest.mark.parametrize(
    ("kind", "principal", "error"),
    [
        ("api_key", "sk-miro-api-typed-by-mistake", NotFoundError),
        ("oauth_client", "nobody", NotFoundError),
        ("session", "ada", InvalidInputError),
        ("account", 1, InvalidInputError),
        ("session", 2**63, InvalidInputError),
    ],
)
def test_who_cannot_be_told_is_refused_and_not_repeated(
    store: Store, kind: str, principal: str | int, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        store.log_usage(kind, principal)
    assert "typed-by-mistake" not in str(caught.value)
    with pytest.raises(NotFoundError, match="no service"):
        store.log_usage("session", 1, service="nope")
    for amount in (-1, 2**40 + 1):  # what a check may cost, too: sums stay within 64 bits
        with pytest.raises(InvalidInputError):
            store.log_usage("session", 1, amount)
    assert store.status().last_usage == 0


def test_a_replica_logs_usage_and_hands_it_up(store: Store, tmp_path: Path) -> None:
    hub = MemoryHub()
    store.add_service("tts")
    issued = store.issue_key(ADA).key
    push(store, hub)
    with Store(replica_of(hub, tmp_path / "replica.db")) as replica:
        entry = replica.log_usage("api_key", issued.api_key, 4, service="tts", request_id="r1")
        assert (entry.account_id, entry.service_id) == (1, 1)
        replica.log_usage("api_key", issued.api_key, 4, service="tts", request_id="r1")
        assert hand_up(replica.file, hub) == 1
        assert [item.amount for item in replica.usage_report(key=issued.api_key)] == [4]
    assert [usage.amount for _, usage in hub.usage.values()] == [4]


def test_what_is_logged_is_taken_off_the_quota(store: Store) -> None:
    store.add_service("tts")
    issued = store.issue_key(ADA, quotas={"tts": 10}).key
    info = store.file.info()

    def left() -> int:
        with store.file.write() as conn:
            found = quotas.left(conn, 1, info.store_id, 2e9)
        assert found is not None
        return found.remaining

    store.log_usage("api_key", issued.api_key, 2, service="tts")
    assert left() == 8
    store.log_usage("api_key", issued.api_key, 3, service="tts")
    assert left() == 5


def test_the_doctor_tells_of_usage_of_the_gone_and_finds_nothing_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_client(store, 1, "here")
    store.log_usage("oauth_client", "here")
    assert examine(store.file) == []
    for number in (13, 14, 14):
        store.log_usage("oauth_client", number)
    (finding,) = examine(store.file)
    assert (finding.id, finding.severity) == ("usage_of_the_gone", "info")
    assert "2 by oauth_client_id" in finding.what
    done = run("doctor", "--fix", "--db", str(store.file.path))
    assert (done.exit_code, "nothing is wrong" in done.output) == (0, True)
    assert "Backed up" not in done.output


# -- the roll-up -------------------------------------------------------------------------------


def record(store: Store, day: str, count: int = 1, amount: int = 1) -> None:
    store.file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, account_id, amount, occurred_at)"
        " VALUES ('api_key', 1, 1, ?, ?)",
        [(amount, f"{day} 10:{number % 60:02}:00") for number in range(count)],
    )


def kept(store: Store) -> int:
    (count,) = store.file.conn.execute("SELECT count(*) FROM UsageLog").fetchone()
    return int(count)


def test_old_usage_is_summed_and_the_newest_row_stays(store: Store) -> None:
    record(store, "2020-01-01", 120)
    record(store, "2020-01-02", 2)
    done = store.compact_usage(timedelta(days=90))
    assert (done.summed, done.held, done.held_by, kept(store)) == (121, 0, None, 1)
    assert store.compact_usage(timedelta(days=90)).summed == 0
    assert store.status().usage_total == total(store) == 122
    (hours,) = store.file.conn.execute("SELECT count(*) FROM UsageHours").fetchone()
    assert hours == 2
    record(store, "2020-01-03")
    assert store.status().last_usage == 123


def test_what_is_younger_and_what_is_of_this_month_stays(store: Store) -> None:
    store.log_usage("session", 1)
    store.log_usage("session", 1)
    assert store.compact_usage(timedelta()).summed == 0
    record(store, "2020-01-01", 5)
    assert store.compact_usage(timedelta(days=365_000)).summed == 0
    with pytest.raises(InvalidInputError):
        store.compact_usage(timedelta(days=-1))


def test_what_a_hub_has_not_acknowledged_stays(store: Store) -> None:
    hub = MemoryHub()
    record(store, "2020-01-01", 10)
    hand_up(store.file, hub)
    record(store, "2020-01-02", 10)
    done = store.compact_usage(timedelta(days=90))
    assert (done.summed, done.held, done.held_by) == (9, 10, "hub:")
    assert hand_up(store.file, hub) == 10  # and not all of it again
    assert store.compact_usage(timedelta(days=90)).summed == 10
    assert hand_up(store.file, hub) == 0
    assert sum(usage.amount for _, usage in hub.usage.values()) == 20 == total(store)


def test_a_repository_of_signed_files_takes_no_usage_and_holds_none(store: Store) -> None:
    record(store, "2020-01-01", 3)
    for url in ("file:///srv/keys", "s3://bucket/keys", "https://cdn.example.org/keys"):
        engine.remember(store.file, url, url)
    assert store.compact_usage(timedelta(days=90)).summed == 2
    store.log_usage("session", 1)


def test_a_replica_keeps_its_usage_until_the_origin_has_settled_it(
    store: Store, tmp_path: Path
) -> None:
    hub = MemoryHub()
    push(store, hub)
    with Store(replica_of(hub, tmp_path / "replica.db")) as replica:
        record(replica, "2020-01-01", 10)
        hand_up(replica.file, hub)
        done = replica.compact_usage(timedelta(days=90))
        assert (done.summed, done.held) == (0, 9)
        assert "not settled" in (done.held_by or "")
        with store.file.write() as conn:
            quotas.settle(conn, replica.info.store_id, 0, 6, [], 2e9)
        push(store, hub)
        engine.pull(replica.file, hub, "hub:", Report(""))
        assert replica.compact_usage(timedelta(days=90)).summed == 5
        assert total(replica) == 10


def test_a_replica_keeps_its_usage_until_it_is_in_a_file(store: Store, tmp_path: Path) -> None:
    hub = MemoryHub()
    push(store, hub)
    url = "file:///srv/keys"
    path, key = tmp_path / "replica.db", tmp_path / "key.pem"
    with Store(replica_of(hub, path, url)) as replica:
        usage_keys.make_key(replica.file, key)
        record(replica, "2020-01-01", 4)
        (tmp_path / "out").mkdir()
        usage_files.export(replica.file, tmp_path / "out", key)
        record(replica, "2020-01-01", 4)
        with store.file.write() as conn:
            quotas.settle(conn, replica.info.store_id, 0, 8, [], 2e9)
        push(store, hub)
        engine.pull(replica.file, hub, url, Report(""))
        done = replica.compact_usage(timedelta(days=90))
        assert (done.summed, done.held_by) == (3, "the next usage file")
        with pytest.raises(DamagedStoreError, match="usage compact"):
            usage_files.export_again(replica.file, tmp_path / "out", key, 1, 1)


def test_a_roll_up_takes_nothing_off_a_quota_twice(store: Store) -> None:
    store.add_service("tts")
    issued = store.issue_key(ADA, quotas={"tts": 100}).key
    store.file.conn.execute("UPDATE APIKeyServiceQuotas SET renewed_at = '2019-01-01 00:00:00'")
    store.file.conn.executemany(
        "INSERT INTO UsageLog (principal_type, principal_id, service_id, amount, occurred_at)"
        " VALUES ('api_key', ?, 1, 10, '2020-01-01 10:00:00')",
        [(issued.api_key_id,)] * 3,
    )
    for _ in range(2):
        store.compact_usage(timedelta(days=90))
        with store.file.write() as conn:
            found = quotas.left(conn, 1, store.info.store_id, 2e9)
        assert found is not None
        assert found.remaining == 70


def test_nobody_else_removes_usage(store: Store) -> None:
    record(store, "2020-01-01", 3)
    store.compact_usage(timedelta(days=90))
    with pytest.raises(Error, match="append-only"):
        store.file.conn.execute("DELETE FROM UsageLog")
