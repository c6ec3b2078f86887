"""Credits: by the price in force, never below zero, each request once."""

import json
import multiprocessing
from pathlib import Path

import pytest

from keystore import Store, pricing
from keystore.db import Error
from keystore.errors import (
    ConflictingRequestError,
    InsufficientCreditsError,
    InvalidInputError,
    NotFoundError,
)

ADA = "ada@example.org"
INSERT = "INSERT INTO CreditLedger (account_id, kind, amount_nano, balance_nano) VALUES"


@pytest.fixture
def priced(store: Store) -> Store:
    """A store with a provider, a model and an account that has ten credits."""
    store.add_provider("openai")
    store.add_model("gpt-5-chat", provider="openai", input_per_1k="0.005", output_per_1k="0.015")
    store.grant(ADA, "10", request_id="first")
    return store


def test_a_charge_goes_by_the_price_in_force_and_leaves_its_usage(priced: Store) -> None:
    entry = priced.charge(ADA, "gpt-5-chat", input_tokens=1500, output_tokens=100)
    assert entry.amount_nano == -9_000_000
    assert priced.balance(ADA) == 10 * pricing.NANO - 9_000_000 == entry.balance_nano
    assert priced.status().usage_total == 1600
    assert [item.kind for item in priced.statement(ADA)] == ["grant", "charge"]


def test_a_request_is_charged_once(priced: Store) -> None:
    first = priced.charge(ADA, "gpt-5-chat", input_tokens=1000, request_id="r1")
    priced.set_price("gpt-5-chat", input_per_1k="1", output_per_1k="1")
    assert priced.charge(ADA, "gpt-5-chat", input_tokens=1000, request_id="r1") == first
    assert priced.grant(ADA, "10", request_id="first").ledger_id == 1
    assert len(priced.statement(ADA)) == 2
    with pytest.raises(ConflictingRequestError):
        priced.charge(ADA, "gpt-5-chat", input_tokens=1001, request_id="r1")


@pytest.mark.parametrize(
    ("account", "model", "says"),
    [
        ("bob@example.org", "gpt-5-chat", "no account"),
        (ADA, "gpt-5-chats", "Did you mean 'gpt-5-chat'"),
        (ADA, "future", "no price in force"),
        (ADA, "off", "not active"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    priced: Store, account: str, model: str, says: str
) -> None:
    for name in ("future", "off"):
        priced.add_model(name, provider="openai", input_per_1k="1", output_per_1k="1")
    priced.file.conn.execute(
        "UPDATE ModelPricing SET effective_from = '2999-01-01 00:00:00'"
        " WHERE model_id = (SELECT model_id FROM Models WHERE name = 'future')"
    )
    priced.file.conn.execute("UPDATE Models SET is_active = 0 WHERE name = 'off'")
    with pytest.raises(NotFoundError, match=says):
        priced.charge(account, model, input_tokens=1)
    assert priced.status().usage_total == 0
    assert priced.balance(ADA) == 10 * pricing.NANO


def test_a_balance_never_goes_below_zero(priced: Store) -> None:
    with pytest.raises(InsufficientCreditsError, match=r"has 10 credits; this costs 10\.005"):
        priced.charge(ADA, "gpt-5-chat", input_tokens=2_001_000)
    for sql in (
        f"{INSERT} (1, 'charge', -20000000000, 0)",
        f"{INSERT} (1, 'charge', -20000000000, -10000000000)",
        "UPDATE CreditBalances SET balance_nano = -1",
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
                store.charge(ADA, "gpt-5-chat", input_tokens=1000)
            except InsufficientCreditsError:
                return


def test_processes_that_charge_at_once_spend_exactly_what_there_is(priced: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_spend, args=(priced.file.path, 1000)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert priced.balance(ADA) == 0
    assert len(priced.statement(ADA)) == 2001


def test_a_price_list_is_taken_over_and_nothing_is_guessed(store: Store, tmp_path: Path) -> None:
    listed = tmp_path / "prices.json"
    listed.write_text(
        '{"a": {"litellm_provider": "x", "input_cost_per_token": 1.3e-10,'
        ' "output_cost_per_token": 9.499999999999999E-7},'
        ' "b": {"litellm_provider": "x", "mode": "image_generation"},'
        ' "c": {"litellm_provider": "x", "input_cost_per_token": 0.1},'
        ' "d": {"input_cost_per_token": 0.1, "output_cost_per_token": 0.1}}'
    )
    done = store.import_prices(listed)
    assert (done.added, done.providers, done.rounded) == (1, 1, ["a"])
    assert done.skipped == [
        ("b", "no input price for tokens"),
        ("c", "no output price for tokens"),
        ("d", "no provider"),
    ]
    (model,) = store.list_models()
    assert (model.input_nano_per_1k, model.output_nano_per_1k) == (130, 950_000)
    assert store.import_prices(listed).unchanged == 1
    listed.write_text(json.dumps([]))
    with pytest.raises(InvalidInputError):
        store.import_prices(listed)
