"""The ledger goes up exactly once, and the hub answers what accounts have used and have."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from keystore import Store, Validator
from keystore.backup import backup, restore
from keystore.cli import main
from keystore.db import StoreFile, open_store
from keystore.errors import TargetError, TargetUnavailableError
from keystore.sync import engine, exchange, targets
from keystore.sync.engine import Report
from keystore.sync.follow import Follower
from keystore.sync.memory import MemoryHub
from keystore.sync.postgres import PostgresHub
from keystore.sync.protocols import Entry
from tests.test_grants import World, as_role, query, role_name, world

__all__ = ["role_name", "world"]  # fixtures

ADA = "ada@example.org"
Total = Callable[[], int]
Hub = tuple[MemoryHub | PostgresHub, Total]


@pytest.fixture(params=["memory", "postgres"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    """A hub of either kind, and what its ledger sums to, in whole credits."""
    if request.param == "memory":
        memory = MemoryHub()
        yield memory, lambda: sum(row.amount_nano for row in memory.ledger.values()) // 10**9
        return
    url = request.getfixturevalue("hub_url")
    opened = PostgresHub(url)

    def total() -> int:
        (row,) = query(
            url, "SELECT coalesce(sum(amount_nano), 0)::BIGINT FROM keystore.credit_ledger"
        )
        return int(str(row[0])) // 10**9

    yield opened, total
    opened.close()


def hand_up(file: StoreFile, hub: MemoryHub | PostgresHub) -> int | None:
    report = Report("")
    exchange.hand_up_ledger(file, hub, "hub:", report)
    return report.ledger


def grant(store: Store, *amounts: int) -> None:
    for amount in amounts:
        store.grant(ADA, str(amount))


def test_the_ledger_goes_up_once_and_only_what_is_new(store: Store, hub: Hub) -> None:
    sink, total = hub
    assert hand_up(store.file, sink) == 0
    grant(store, 1, 2, 3)
    assert hand_up(store.file, sink) == 3
    assert hand_up(store.file, sink) == 0
    grant(store, 10)
    assert hand_up(store.file, sink) == 1
    assert total() == 16


def test_a_lost_acknowledgement_of_the_ledger_counts_once(store: Store, hub: Hub) -> None:
    sink, total = hub
    grant(store, 1, 2, 3)
    hand_up(store.file, sink)
    store.file.conn.execute("UPDATE SyncTargets SET acknowledged_ledger = 1")
    grant(store, 4)
    assert hand_up(store.file, sink) == 3
    assert total() == 10


def test_a_hub_that_was_put_back_gets_the_ledger_again_that_it_lost(
    store: Store, hub: Hub, hub_url: str
) -> None:
    sink, total = hub
    grant(store, 1, 2, 3)
    hand_up(store.file, sink)
    if isinstance(sink, MemoryHub):
        sink.ledger = {key: row for key, row in sink.ledger.items() if key[1] < 2}
    else:
        query(hub_url, "DELETE FROM keystore.credit_ledger WHERE ledger_id >= 2")
    grant(store, 10)
    assert hand_up(store.file, sink) == 4
    assert total() == 16


def test_many_pages_arrive_and_a_failure_between_them_loses_nothing(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, total = hub
    monkeypatch.setattr(exchange, "LEDGER_PAGE_SIZE", 10)
    push_ledger, calls = sink.push_ledger, 0

    def fail_on_third(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TargetUnavailableError("cut.", hint="wait")
        push_ledger(*arguments)  # type: ignore[arg-type]

    grant(store, *[1] * 45)
    with monkeypatch.context() as patch, pytest.raises(TargetUnavailableError):
        patch.setattr(sink, "push_ledger", fail_on_third)
        hand_up(store.file, sink)
    assert total() == 20
    assert hand_up(store.file, sink) == 25
    assert total() == 45


def test_a_restored_origin_hands_up_what_it_entered_before_and_since(
    store: Store, hub: Hub, tmp_path: Path
) -> None:
    """Two entries of one number: what the lost copy granted was granted, too."""
    sink, total = hub
    grant(store, 1)
    backup(store.file, tmp_path / "backup.db")
    grant(store, 10)
    hand_up(store.file, sink)
    restore(tmp_path / "backup.db", tmp_path / "restored.db")
    with Store.open(tmp_path / "restored.db") as restored:
        grant(restored, 10)
        hand_up(restored.file, sink)
        hand_up(restored.file, sink)
    assert total() == 21


def test_every_column_arrives_as_it_was_entered(store: Store, hub_url: str) -> None:
    store.add_provider("openai")
    store.add_model("gpt-5-chat", provider="openai", input_per_1k="1", output_per_1k="1")
    store.grant(ADA, "10", request_id="r ☂", note="für Ada")
    store.charge(ADA, "gpt-5-chat", input_tokens=3, output_tokens=4, request_id="r1")
    (report,) = targets.sync(store.file, hub_url)
    assert (report.ledger, report.usage) == (2, 1)
    columns = ", ".join(column.name for column in fields(Entry))
    there = query(
        hub_url,
        f"SELECT {columns} FROM keystore.credit_ledger ORDER BY ledger_id".replace(
            "occurred_at",
            "to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')",
        ),
    )
    here = store.file.conn.execute(f"SELECT {columns} FROM CreditLedger").fetchall()
    assert there == here


def test_a_replica_hands_no_ledger_up(store: Store, hub_url: str, tmp_path: Path) -> None:
    grant(store, 1)
    targets.sync(store.file, hub_url)
    targets.replicate(hub_url, tmp_path / "replica.db")
    with open_store(tmp_path / "replica.db") as file:
        (report,) = targets.sync(file, hub_url)
    assert report.ledger is None


def test_an_origin_that_publishes_files_hands_its_ledger_to_a_hub(
    store: Store, hub_url: str
) -> None:
    grant(store, 5)
    (report,) = targets.sync(store.file, usage_to=hub_url)
    assert (report.pushed, report.ledger) == (None, 1)


def test_a_follower_hands_a_grant_up_that_is_not_followed_by_usage(
    store: Store, hub_url: str
) -> None:
    targets.sync(store.file, hub_url)
    grant(store, 5)
    follower = Follower(store.file.path, hub_url, on_event=lambda _: follower.stop())
    follower.run()
    assert query(hub_url, "SELECT amount_nano FROM keystore.credit_ledger") == [(5 * 10**9,)]


# -- rights --------------------------------------------------------------------------------------


def test_an_origin_s_role_enters_its_own_ledger_and_no_other(world: World) -> None:
    mine, other = world.stores
    grant(mine, 1)
    (report,) = targets.sync(mine.file, world.origins[0])
    assert report.ledger == 1
    hub = PostgresHub(world.origins[0])
    row = Entry(
        1, 1, "grant", 5, 5, None, None, None, None, None, None, None, "2026-11-20 12:00:00", 7
    )
    try:
        with pytest.raises(TargetError, match="row-level security"):
            hub.push_ledger(other.info.store_id, [row])
    finally:
        hub.close()
    assert query(world.origins[1], "SELECT count(*) FROM keystore.credit_ledger") == [(0,)]
    for statement in (
        "UPDATE keystore.credit_ledger SET amount_nano = 9",
        "DELETE FROM keystore.credit_ledger",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query(world.origins[0], statement)


def test_a_replica_s_role_sees_no_ledger(world: World) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        query(world.edges[0], "SELECT * FROM keystore.credit_ledger")


# -- what the hub answers ------------------------------------------------------------------------


def test_a_hub_answers_for_each_account_what_was_used_at_all_edges_and_what_it_has(
    store: Store, hub_url: str, tmp_path: Path
) -> None:
    store.add_service("search")
    token = store.issue_key(ADA).token
    store.add_account("bob@example.org", plan="free")
    store.add_account("eve@example.org", plan="free")
    store.grant(ADA, "2.5")
    store.grant("bob@example.org", "1")
    targets.sync(store.file, hub_url)
    for number, name in enumerate(("one.db", "two.db"), start=1):
        targets.replicate(hub_url, tmp_path / name)
        with Validator(tmp_path / name) as validator:
            assert validator.check(token, cost=number).allowed
        with open_store(tmp_path / name) as file:
            file.conn.execute(
                "INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id,"
                " amount) VALUES ('oauth_client', 1, 1, 1, ?)",
                (10 * number,),
            )
            targets.sync(file, hub_url)
    with Validator(store.file.path) as validator:
        assert validator.check(token, cost=100).allowed
    store.file.conn.execute("DELETE FROM Accounts WHERE email = 'bob@example.org'")
    targets.sync(store.file, hub_url)
    found = json.loads(CliRunner().invoke(main, ["hub", "usage", hub_url, "--json"]).stdout)
    assert [(item["account"], item["units"], item["balance"]) for item in found] == [
        (ADA, 133, "2.5"),
        (None, 0, "1"),
    ]
    assert found[0]["balance_nano"] == 2_500_000_000
    assert {item["service"]: (item["units"], item["stores"]) for item in found[0]["services"]} == {
        None: (103, 3),
        "search": (30, 2),
    }
    lines = CliRunner().invoke(main, ["hub", "usage", hub_url]).output.splitlines()
    assert [line.split() for line in lines] == [
        ["account", "service", "units", "stores", "credits"],
        [ADA, "-", "103", "3", "2.5"],
        [ADA, "search", "30", "2", "-"],
        ["2", "(deleted)", "-", "0", "0", "1"],
    ]


def test_accounts_of_two_origins_at_one_hub_are_told_apart(world: World) -> None:
    for amount, made, url in zip((1, 2), world.stores, world.origins, strict=True):
        grant(made, amount)
        targets.sync(made.file, url)
    found = json.loads(CliRunner().invoke(main, ["hub", "usage", world.url, "--json"]).stdout)
    assert {item["origin_id"]: item["balance"] for item in found} == dict(
        zip(world.ids, ("1", "2"), strict=True)
    )
    text = CliRunner().invoke(main, ["hub", "usage", world.url]).output
    assert all(store_id in text for store_id in world.ids)
    # a role sees its own
    own = CliRunner().invoke(main, ["hub", "usage", as_role(world.url, world.names[0]), "--json"])
    assert [item["origin_id"] for item in json.loads(own.stdout)] == [world.ids[0]]


def test_a_hub_without_usage_says_so(hub_url: str) -> None:
    result = CliRunner().invoke(main, ["hub", "usage", hub_url])
    assert (result.exit_code, result.output) == (0, "Nothing was handed up yet.\n")


def test_a_fork_s_charges_are_all_in_the_sum(store: Store, hub: Hub) -> None:
    """The hub's balance is what was entered, wherever: of two copies neither is left out."""
    sink, total = hub
    grant(store, 5)
    engine.push(store.file, sink, "hub:", Report(""))
    hand_up(store.file, sink)
    twin = store.file.path.with_name("twin.db")
    backup(store.file, twin)
    grant(store, 1)
    with Store.open(twin) as copy:
        grant(copy, 2)
        hand_up(copy.file, sink)
    hand_up(store.file, sink)
    assert total() == 8
