"""Credits: by the price in force, never below zero, each request once."""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keystore import Store, Validator, clock, db, pricing
from keystore.db import Error, StoreFile
from keystore.doctor import examine
from keystore.errors import (
    AlreadyExistsError,
    ConflictingRequestError,
    InsufficientCreditsError,
    InvalidInputError,
    NotFoundError,
    WrongRoleError,
)
from keystore.repair import mend
from keystore.sync import engine
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub

ADA = "ada@example.org"
MODEL = "gpt-5-chat"
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def priced(store: Store) -> Store:
    """A store with a provider, a model and an account that has ten credits."""
    store.add_provider("openai")
    store.add_model(MODEL, provider="openai", input_per_1k="0.005", output_per_1k="0.015")
    store.grant(ADA, "10", request_id="first")
    return store


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    return Clock(monkeypatch)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_900_000_000.0
        self.text = clock.utc_text
        monkeypatch.setattr(clock, "utc_text", lambda moment=None: self.text(moment or self.now))


def rows(file: StoreFile, table: str) -> int:
    return int(db.scalar(file.conn, f"SELECT count(*) FROM {table}"))


def adds_up(file: StoreFile) -> None:
    """Assert that balances are what the ledger sums to, and that each charge has its usage."""
    assert not [item for item in examine(file) if item.severity == "error"]
    assert db.scalar(file.conn, "SELECT sum(amount_nano) FROM CreditLedger") == db.scalar(
        file.conn, "SELECT sum(balance_nano) FROM CreditBalances"
    )
    charged = (
        "SELECT usage_id, input_tokens + output_tokens FROM CreditLedger WHERE kind = 'charge'"
    )
    used = "SELECT usage_id, amount FROM UsageLog"
    assert file.conn.execute(charged).fetchall() == file.conn.execute(used).fetchall()


# -- charges -------------------------------------------------------------------------------------


def test_a_charge_goes_by_the_price_in_force_and_leaves_its_usage(priced: Store) -> None:
    entry = priced.charge(ADA, MODEL, input_tokens=1500, output_tokens=100)
    assert entry.amount_nano == -9_000_000
    assert priced.balance(ADA) == 10 * pricing.NANO - 9_000_000 == entry.balance_nano
    assert priced.status().usage_total == 1600
    assert [item.kind for item in priced.statement(ADA)] == ["grant", "charge"]
    adds_up(priced.file)


def test_a_part_of_a_nano_credit_is_charged_whole_and_once(priced: Store) -> None:
    priced.add_model("tiny", provider="openai", input_per_1k="0.000000001", output_per_1k="0")
    assert priced.charge(ADA, "tiny", input_tokens=1).amount_nano == -1
    assert priced.charge(ADA, "tiny", input_tokens=1001).amount_nano == -2
    assert priced.charge(ADA, "tiny", input_tokens=0).amount_nano == 0


def test_a_request_is_charged_once(priced: Store, at: Clock) -> None:
    first = priced.charge(ADA, MODEL, input_tokens=1000, request_id="r1")
    priced.set_price(MODEL, input_per_1k="1", output_per_1k="1")
    at.now += 1
    assert priced.charge(ADA, MODEL, input_tokens=1000, request_id="r1") == first
    assert priced.grant(ADA, "10", request_id="first").ledger_id == 1
    assert len(priced.statement(ADA)) == 2
    with pytest.raises(ConflictingRequestError):
        priced.charge(ADA, MODEL, input_tokens=1001, request_id="r1")
    with pytest.raises(ConflictingRequestError):
        priced.grant(ADA, "11", request_id="first")


def test_a_request_that_was_charged_is_answered_whatever_became_of_its_model(priced: Store) -> None:
    """A client that lost the answer asks again, and must not be told that nothing happened."""
    first = priced.charge(ADA, MODEL, input_tokens=1000, request_id="r1")
    priced.charge(ADA, MODEL, input_tokens=1_999_000)
    priced.file.conn.execute("DELETE FROM Models")
    assert priced.balance(ADA) == 0
    assert priced.charge(ADA, MODEL, input_tokens=1000, request_id="r1") == first


def test_a_request_id_is_the_account_s_own(priced: Store) -> None:
    priced.add_account("bob@example.org", plan="free")
    priced.grant("bob@example.org", "10", request_id="first")
    assert priced.balance("bob@example.org") == 10 * pricing.NANO


def test_usage_is_of_the_key_that_is_named_by_uuid_or_token(priced: Store) -> None:
    issued = priced.issue_key(ADA)
    priced.charge(ADA, MODEL, input_tokens=1, key=issued.key.api_key)
    priced.charge(ADA, MODEL, input_tokens=1, key=issued.token)
    priced.charge(ADA, MODEL, input_tokens=1)
    found = priced.file.conn.execute("SELECT principal_type, principal_id FROM UsageLog")
    assert found.fetchall() == [("api_key", 1), ("api_key", 1), ("session", 1)]
    priced.add_account("bob@example.org", plan="free")
    with pytest.raises(NotFoundError, match="has no such key") as caught:
        priced.charge("bob@example.org", MODEL, input_tokens=1, key=issued.token)
    assert issued.token not in str(caught.value)


@pytest.mark.parametrize(
    ("account", "model", "says"),
    [
        ("bob@example.org", MODEL, "no account 'bob@example.org'"),
        (ADA, "gpt-5-chats", "Did you mean 'gpt-5-chat'"),
        (ADA, "future", "'future' of openai has no price in force"),
        (ADA, "bare", "'bare' of openai has no price in force"),
        (ADA, "off", "'off' of openai is not active"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    priced: Store, account: str, model: str, says: str
) -> None:
    priced.add_model("off", provider="openai", input_per_1k="1", output_per_1k="1")
    priced.file.conn.execute("UPDATE Models SET is_active = 0 WHERE name = 'off'")
    priced.file.conn.execute("INSERT INTO Models (provider_id, name) VALUES (1, 'future')")
    priced.file.conn.execute(
        "INSERT INTO ModelPricing (model_id, input_nano_per_1k, output_nano_per_1k, effective_from)"
        " SELECT model_id, 1, 1, '2999-01-01 00:00:00' FROM Models WHERE name = 'future'"
    )
    priced.file.conn.execute("INSERT INTO Models (provider_id, name) VALUES (1, 'bare')")
    head = priced.status().last_change
    with pytest.raises(NotFoundError, match=says):
        priced.charge(account, model, input_tokens=1)
    assert (rows(priced.file, "UsageLog"), rows(priced.file, "CreditLedger")) == (0, 1)
    assert priced.status().last_change == head
    assert priced.balance(ADA) == 10 * pricing.NANO
    priced.set_price("bare", input_per_1k="1", output_per_1k="1")


def test_a_model_whose_provider_some_client_deleted_is_charged_to_nobody(tmp_path: Path) -> None:
    with Store.create(tmp_path / "patient.db") as store:
        store.add_plan("free")
        store.add_account(ADA, plan="free")
        store.add_provider("openai")
        store.add_model(MODEL, provider="openai", input_per_1k="1", output_per_1k="1")
        store.grant(ADA, "10")
        store.file.conn.execute("PRAGMA foreign_keys = OFF")
        store.file.conn.execute("DELETE FROM Providers")
        with pytest.raises(NotFoundError, match="provider of model 'gpt-5-chat' is missing"):
            store.charge(ADA, MODEL, input_tokens=1)
        assert rows(store.file, "UsageLog") == 0
        assert "orphans" in {item.id for item in examine(store.file)}


def test_the_incident_of_a_model_that_was_added_without_a_price(store: Store) -> None:
    """A model made beside the program, a charge for it, and no placeholder in the ledger.

    In the incident the admin page wrote gpt-5-chat without its price, the lookup fell back to the
    provider 00000000-0000-0000-0000-000000000000, and the ledger's foreign key refused that.
    """
    store.add_provider("openai")
    store.grant(ADA, "10")
    store.file.conn.execute("INSERT INTO Models (provider_id, name) VALUES (1, 'gpt-5-chat')")
    said = [item for item in examine(store.file) if item.id == "no_price"]
    assert [(item.severity, "'gpt-5-chat'" in item.what) for item in said] == [("error", True)]
    with pytest.raises(
        NotFoundError, match="'gpt-5-chat' of openai has no price in force"
    ) as caught:
        store.charge(ADA, MODEL, input_tokens=1000, output_tokens=50, request_id="r1")
    assert "keystore model price" in caught.value.hint
    assert (rows(store.file, "UsageLog"), rows(store.file, "CreditLedger")) == (0, 1)
    store.file.conn.execute(  # the backfill of the incident, $0.005 and $0.015
        "INSERT INTO ModelPricing (model_id, input_nano_per_1k, output_nano_per_1k, effective_from)"
        " VALUES (1, 5000000, 15000000, '2026-01-01 00:00:00')"
    )
    entry = store.charge(ADA, MODEL, input_tokens=1000, output_tokens=50, request_id="r1")
    assert (entry.amount_nano, entry.model_pricing_id) == (-5_750_000, 1)
    assert examine(store.file) == []
    # and the program itself cannot make such a model
    for missing in ("opena", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(NotFoundError, match="no provider"):
            store.add_model("gpt-6", provider=missing, input_per_1k="1", output_per_1k="1")
    store.add_model("gpt-6", provider="openai", input_per_1k="1", output_per_1k="1")
    assert store.charge(ADA, "gpt-6", input_tokens=1).amount_nano == -1_000_000


def test_nobody_waits_while_the_nearest_names_are_looked_for(
    priced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(name: str, names: list[str], **_: object) -> list[str]:
        with Validator(priced.file.path, max_pending=1) as validator:
            assert validator.check(token).allowed
        return names

    token = priced.issue_key(ADA).token
    monkeypatch.setattr("keystore.admin.base.get_close_matches", look)
    for ask in (
        lambda: priced.charge(ADA, "gpt-x", input_tokens=1),
        lambda: priced.set_price("gpt-x", input_per_1k="1", output_per_1k="1"),
        lambda: priced.add_model("x", provider="x", input_per_1k="1", output_per_1k="1"),
    ):
        with pytest.raises(NotFoundError, match="Did you mean"):
            ask()


# -- balances ------------------------------------------------------------------------------------


def test_a_balance_never_goes_below_zero(priced: Store) -> None:
    with pytest.raises(InsufficientCreditsError, match=r"has 10 credits; this costs 10\.005"):
        priced.charge(ADA, MODEL, input_tokens=2_001_000)
    entry = "INSERT INTO CreditLedger (account_id, kind, amount_nano, balance_nano) VALUES"
    for sql in (
        f"{entry} (1, 'charge', -20000000000, 0)",
        f"{entry} (1, 'charge', -20000000000, -10000000000)",
        "UPDATE CreditBalances SET balance_nano = -1",
        "UPDATE CreditBalances SET balance_nano = 99000000000",
        "UPDATE OR IGNORE CreditBalances SET account_id = 2",
        "INSERT OR REPLACE INTO CreditBalances VALUES (1, 99000000000)",
        "INSERT INTO CreditBalances VALUES (2, 1)",
        "DELETE FROM CreditBalances",
        "UPDATE CreditLedger SET amount_nano = 5",
        "DELETE FROM CreditLedger",
    ):
        with pytest.raises(Error):
            priced.file.conn.execute(sql)
    assert priced.balance(ADA) == 10 * pricing.NANO


def _spend(path: Path, count: int) -> None:
    with Store.open(path) as store:
        for _ in range(count):
            try:
                store.charge(ADA, MODEL, input_tokens=10_000)
            except InsufficientCreditsError:
                return


def test_processes_that_charge_at_once_spend_exactly_what_there_is(priced: Store) -> None:
    workers = [SPAWN.Process(target=_spend, args=(priced.file.path, 200)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert priced.balance(ADA) == 0
    assert len(priced.statement(ADA)) == 201
    adds_up(priced.file)


def _charge_each(path: Path, requests: int) -> None:
    with Store.open(path) as store:
        for number in range(requests):
            store.charge(ADA, MODEL, input_tokens=1000, request_id=f"request {number}")


def test_processes_that_send_the_same_requests_charge_each_once(priced: Store) -> None:
    workers = [SPAWN.Process(target=_charge_each, args=(priced.file.path, 50)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert priced.balance(ADA) == 10 * pricing.NANO - 50 * 5_000_000
    assert rows(priced.file, "UsageLog") == 50
    adds_up(priced.file)


_LOOP = """
import sys
from keystore import Store
with Store.open(sys.argv[1]) as store:
    for number in range(int(sys.argv[2]), 100_000):
        request = f"request {number}"
        store.charge("ada@example.org", "gpt-5-chat", input_tokens=7, request_id=request)
        print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_charges_leaves_ledger_balance_and_usage_as_one(
    priced: Store,
) -> None:
    told = -1
    for killed_after in (1, 5, 17, 40):
        command = [sys.executable, "-c", _LOOP, str(priced.file.path), str(max(told, 0))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(killed_after):
                told = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().splitlines()
        told = int(said[-1]) if said and said[-1].isdigit() else told
        adds_up(priced.file)
        # What was told has happened, and of what was not told at most one thing.
        charged = rows(priced.file, "CreditLedger") - 1
        assert told + 1 <= charged <= told + 2
    assert priced.balance(ADA) == 10 * pricing.NANO - 35_000 * charged


@pytest.mark.parametrize(
    "amount", ["0", "-1", "1e-10", "x", "", "NaN", "sNaN", "Infinity", "1e999999999", "1e10"]
)
def test_a_grant_of_what_is_no_amount_is_refused(store: Store, amount: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        store.grant(ADA, amount)
    assert caught.value.hint
    assert rows(store.file, "CreditLedger") == 0


def test_a_balance_has_an_upper_end_and_no_overflow(store: Store) -> None:
    most = pricing.text(pricing.MAX_NANO)
    store.grant(ADA, most)
    with pytest.raises(InvalidInputError, match="more than"):
        store.grant(ADA, "0.000000001")
    assert store.balance(ADA) == pricing.MAX_NANO


@pytest.mark.parametrize("tokens", [-1, 2**31, "x"])
def test_a_charge_for_what_is_no_number_of_tokens_is_refused(priced: Store, tokens: int) -> None:
    with pytest.raises(InvalidInputError):
        priced.charge(ADA, MODEL, input_tokens=tokens)


def test_the_ledger_outlives_what_it_tells_of(priced: Store) -> None:
    priced.charge(ADA, MODEL, input_tokens=1000)
    for table in ("Models", "Providers", "Accounts"):
        priced.file.conn.execute(f"DELETE FROM {table}")
    assert rows(priced.file, "CreditLedger") == 2
    (said,) = [item for item in examine(priced.file) if item.id == "lost_balance"]
    assert (said.severity, said.what) == ("warning", "account 1 is deleted, and had 9.995 credits.")


def test_a_replica_has_prices_and_no_ledger(priced: Store, tmp_path: Path) -> None:
    hub, path = MemoryHub(), tmp_path / "replica.db"
    engine.push(priced.file, hub, "memory:", Report(""))
    engine.replicate(hub, "memory:", path, Report(""))
    with Store.open(path) as replica:
        assert replica.list_models() == priced.list_models()
        for ask in (
            lambda: replica.charge(ADA, MODEL, input_tokens=1),
            lambda: replica.grant(ADA, "1"),
            lambda: replica.balance(ADA),
            lambda: replica.statement(ADA),
        ):
            with pytest.raises(WrongRoleError):
                ask()


# -- prices --------------------------------------------------------------------------------------


def test_a_price_that_was_in_force_is_never_changed_not_even_within_its_second(
    priced: Store, at: Clock
) -> None:
    priced.add_model("new", provider="openai", input_per_1k="1", output_per_1k="1")
    first = priced.charge(ADA, "new", input_tokens=1000)
    price = priced.set_price("new", input_per_1k="2", output_per_1k="2")
    assert price.effective_from == at.text(at.now + 1)
    same_second = priced.charge(ADA, "new", input_tokens=1000)
    assert same_second.model_pricing_id == first.model_pricing_id
    at.now += 1
    assert priced.charge(ADA, "new", input_tokens=1000).amount_nano == -2 * pricing.NANO
    assert [item.input_nano_per_1k for item in priced.prices("new")] == [
        2 * pricing.NANO,
        pricing.NANO,
    ]
    with pytest.raises(InvalidInputError, match="has begun already"):
        priced.set_price("new", input_per_1k="3", output_per_1k="3", effective_from=at.text(at.now))


def test_a_price_to_come_is_replaced_and_not_charged_before(priced: Store) -> None:
    for price in ("7", "8"):
        priced.set_price(
            MODEL, input_per_1k=price, output_per_1k=price, effective_from="2999-01-01"
        )
    assert [item.input_nano_per_1k for item in priced.prices(MODEL)] == [
        8 * pricing.NANO,
        5_000_000,
    ]
    assert priced.charge(ADA, MODEL, input_tokens=1000).amount_nano == -5_000_000


@pytest.mark.parametrize("price", ["-1", "1e-10", "x", "NaN", "1e999999999", "0.0000000001"])
def test_a_price_that_is_none_makes_no_model(store: Store, price: str) -> None:
    store.add_provider("openai")
    with pytest.raises(InvalidInputError) as caught:
        store.add_model("m", provider="openai", input_per_1k=price, output_per_1k="1")
    assert caught.value.hint
    assert store.list_models() == []


def test_names_are_taken_once_and_near_ones_are_told(priced: Store) -> None:
    with pytest.raises(AlreadyExistsError):
        priced.add_provider("openai")
    with pytest.raises(AlreadyExistsError):
        priced.add_model(MODEL, provider="openai", input_per_1k="1", output_per_1k="1")
    with pytest.raises(NotFoundError, match="Did you mean 'openai'"):
        priced.add_model("m", provider="openai ", input_per_1k="1", output_per_1k="1")
    with pytest.raises(NotFoundError, match="Did you mean 'openai'"):
        priced.list_models(provider="opena")
    with pytest.raises(NotFoundError, match="no model 'x'"):
        priced.prices("x")


# -- the doctor ----------------------------------------------------------------------------------


@pytest.fixture
def patient(tmp_path: Path) -> Store:
    """A store outside the healthy ones: the doctor is meant to find something."""
    store = Store.create(tmp_path / "patient.db")
    store.add_plan("free")
    store.add_account(ADA, plan="free")
    store.add_provider("openai")
    store.add_model(MODEL, provider="openai", input_per_1k="1", output_per_1k="1")
    store.grant(ADA, "10")
    store.charge(ADA, MODEL, input_tokens=1000)
    return store


@pytest.mark.parametrize(
    ("damage", "finding", "says"),
    [
        (
            (
                "DROP TRIGGER trg_creditbalances_update;"
                " UPDATE CreditBalances SET balance_nano = 8000000000"
            ),
            ("ledger", "error"),
            "the balance of account 1 is 8 credits, and its ledger sums to 9",
        ),
        (
            "DROP TRIGGER trg_creditbalances_delete; DELETE FROM CreditBalances",
            ("ledger", "error"),
            "the balance of account 1 is 0 credits, and its ledger sums to 9",
        ),
        (
            "DROP TRIGGER trg_creditbalances_insert; INSERT INTO CreditBalances VALUES (2, 1)",
            ("ledger", "error"),
            "the balance of account 2 is 0.000000001 credits, and its ledger sums to 0",
        ),
        (
            (
                "DROP TRIGGER trg_creditledger_update; UPDATE CreditLedger SET"
                " balance_nano = balance_nano + 1"
            ),
            ("ledger", "error"),
            "the ledger of account 1 does not add up on the way",
        ),
        (
            "DROP TRIGGER trg_creditledger_delete; DELETE FROM CreditLedger WHERE kind = 'grant'",
            ("ledger", "error"),
            "the balance of account 1 is 9 credits, and its ledger sums to -1",
        ),
        ("DELETE FROM ModelPricing", ("no_price", "error"), "'gpt-5-chat' has no price,"),
        (
            "UPDATE ModelPricing SET effective_from = '2999-01-01 00:00:00'",
            ("no_price", "warning"),
            "'gpt-5-chat' has no price in force yet",
        ),
        (
            (
                "CREATE TABLE Old AS SELECT * FROM ModelPricing; DROP TABLE ModelPricing;"
                " CREATE TABLE ModelPricing AS SELECT * FROM Old UNION ALL SELECT * FROM Old"
            ),
            ("overlapping_prices", "error"),
            "model 1 has more than one price from",
        ),
        (
            "PRAGMA foreign_keys = OFF; DELETE FROM Providers",
            ("orphans", "error"),
            "1 rows of Models name Providers",
        ),
        (
            "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'CreditLedger'",
            ("sequence", "warning"),
            "sqlite_sequence of CreditLedger is 0",
        ),
    ],
)
def test_the_doctor_names_what_is_wrong_with_money_and_prices(
    patient: Store, damage: str, finding: tuple[str, str], says: str
) -> None:
    assert examine(patient.file) == []
    patient.file.conn.executescript(damage)
    found = [item for item in examine(patient.file) if (item.id, item.severity) == finding]
    assert [item for item in found if says in item.what], examine(patient.file)
    patient.close()


def test_the_doctor_mends_no_money(patient: Store) -> None:
    conn = patient.file.conn
    (guard,) = conn.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'trg_creditbalances_update'"
    ).fetchone()
    conn.execute("DROP TRIGGER trg_creditbalances_update")
    conn.execute("UPDATE CreditBalances SET balance_nano = 8000000000")
    conn.execute(guard)
    before = examine(patient.file)
    assert mend(patient.file) == []
    assert examine(patient.file) == before
    assert patient.balance(ADA) == 8 * pricing.NANO
    patient.close()
