"""Commands about credits and prices, and the real price list, of which nothing is guessed."""

import csv
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from keystore import Store
from keystore.cli import main
from keystore.errors import InvalidInputError

ADA = "ada@example.org"
LIST = Path(__file__).parent.parent / "examples" / "data" / "model_prices.json.xz"
NO_INPUT, NO_OUTPUT = "no input price for tokens", "no output price for tokens"


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


def said(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def db(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that KEYSTORE_DB names."""
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    return store.file.path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The real price list."""
    path = tmp_path / "model_prices.json"
    path.write_bytes(lzma.decompress(LIST.read_bytes()))
    return path


def listed(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.json"
    path.write_text(text)
    return path


def entry(provider: object = "x", given: object = 1e-6, taken: object = 2e-6) -> dict[str, object]:
    return {
        "litellm_provider": provider,
        "input_cost_per_token": given,
        "output_cost_per_token": taken,
    }


# -- the price list ------------------------------------------------------------------------------


def test_of_the_real_list_each_model_is_taken_over_exactly_or_named_with_the_reason(
    db: Path, real: Path, store: Store
) -> None:
    done = said("model", "import", str(real))
    assert {name: done[name] for name in ("added", "providers", "repriced", "unchanged")} == {
        "added": 3671,
        "providers": 119,
        "repriced": 0,
        "unchanged": 0,
    }
    reasons = [item["reason"] for item in done["skipped"]]
    assert {reason: reasons.count(reason) for reason in reasons} == {NO_INPUT: 847, NO_OUTPUT: 34}
    assert len(done["rounded"]) == 34
    assert done["added"] + len(done["skipped"]) == 4552
    have = {model.name: model for model in store.list_models()}
    assert len(have) == 3671
    text = json.loads(real.read_text(), parse_float=str, parse_int=str)
    rounded = set(done["rounded"])
    for name, model in have.items():
        exact = (text[name]["input_cost_per_token"], text[name]["output_cost_per_token"])
        nano = (model.input_nano_per_1k, model.output_nano_per_1k)
        errors = [abs(_shifted(written) - got) for written, got in zip(exact, nano, strict=True)]
        assert all(error == 0 for error in errors) != (name in rounded), name
        assert max(errors) <= 0.5
    head = store.status().last_change
    again = said("model", "import", str(real))
    assert (again["added"], again["repriced"], again["unchanged"]) == (0, 0, 3671)
    assert again["skipped"] == done["skipped"]
    assert store.status().last_change == head


def _shifted(written: str) -> Any:
    from fractions import Fraction

    return Fraction(written) * 10**12


def test_what_was_skipped_is_grouped_by_reason(db: Path, real: Path) -> None:
    lines = run("model", "import", str(real)).output.splitlines()
    assert lines[0] == (
        "Added 3671 models and 119 providers; repriced 0, left 0 unchanged; "
        "34 have a price that was rounded; skipped 881."
    )
    assert [line.split("  ")[0] for line in lines[1:]] == ["skipped because", NO_INPUT, NO_OUTPUT]
    assert lines[2].split()[5] == "847"


def test_a_list_is_taken_over_and_nothing_is_guessed(store: Store, tmp_path: Path) -> None:
    models: dict[str, object] = {
        "noisy": entry(given=1.3e-10, taken=9.499999999999999e-7),
        "free": entry(given=0, taken=0),
        "image": {"litellm_provider": "x", "mode": "image_generation"},
        "in only": {"litellm_provider": "x", "input_cost_per_token": 0.1},
        "no provider": entry(provider=None),
        "odd provider": entry(provider=" x"),
        "text": entry(given="0.1"),
        "yes": entry(taken=True),
        "negative": entry(given=-1e-6),
        "tiny": entry(given=1e-15),
        "vast": entry(given=1e300),
        " blank": entry(),
        "": entry(),
        "array": [],
    }
    done = store.import_prices(listed(tmp_path, json.dumps(models)))
    assert (done.added, done.providers, done.rounded) == (2, 1, ["noisy"])
    reasons = dict(done.skipped)
    assert reasons.pop("vast").endswith("is not between 0 and 4611686018 credits")
    assert reasons.pop("negative").startswith("-0.000001 is not between 0")
    strange = "is empty, too long, or has blanks around it or control characters"
    assert reasons == {
        "image": "no input price for tokens",
        "in only": "no output price for tokens",
        "no provider": "no provider",
        "odd provider": f"its provider {strange}",
        "text": "its input price is no number",
        "yes": "its output price is no number",
        "tiny": "its input price is less than half a nano-credit for 1,000 tokens",
        " blank": f"its name {strange}",
        "": f"its name {strange}",
        "array": "not an object",
    }
    noisy = next(model for model in store.list_models() if model.name == "noisy")
    assert (noisy.input_nano_per_1k, noisy.output_nano_per_1k) == (130, 950_000)


def test_a_newer_list_gives_new_prices_and_changes_no_old_one(store: Store, tmp_path: Path) -> None:
    store.import_prices(listed(tmp_path, json.dumps({"a": entry(), "b": entry()})))
    newer = listed(tmp_path, json.dumps({"a": entry(given=5e-6), "b": entry(), "c": entry("y")}))
    done = store.import_prices(newer)
    assert (done.added, done.repriced, done.unchanged) == (1, 1, 1)
    assert [price.input_nano_per_1k for price in store.prices("a")] == [5_000_000, 1_000_000]
    assert store.import_prices(newer).unchanged == 3  # within the same second, too
    done = store.import_prices(listed(tmp_path, json.dumps({"a": entry("y")})))
    assert done.skipped == [("a", "is a model of x here, and of y in the list")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 1e99999999999999999999}',
        '{"a": {}, "a": {}}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ],
    ids=["empty", "array", "cut", "exponent", "twice", "deep", "digits"],
)
def test_a_file_that_is_no_price_list_is_refused_on_one_line(
    db: Path, store: Store, tmp_path: Path, text: str
) -> None:
    result = run("model", "import", str(listed(tmp_path, text)))
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "prices.json: no price list" in result.output
    with pytest.raises(InvalidInputError):
        store.import_prices(tmp_path / "prices.json")


def test_an_import_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    path = listed(tmp_path, json.dumps({"a": entry(), "b": entry()}))
    with pytest.raises(KeyboardInterrupt):
        store.import_prices(path, on_progress=fail)
    assert (store.list_models(), store.providers()) == ([], [])


# -- commands ------------------------------------------------------------------------------------


@pytest.fixture
def priced(db: Path, store: Store) -> Store:
    assert run("provider", "add", "openai").output == "Added provider openai.\n"
    added = run(
        *("model", "add", "gpt-5-chat", "--provider", "openai"),
        *("--input-per-1k", "0.00125", "--output-per-1k", "0.01"),
    )
    assert added.output == "Added model gpt-5-chat of openai.\n"
    return store


def test_prices_are_said_in_credits_and_in_nano_credits(priced: Store) -> None:
    assert said("provider", "list")[0]["models"] == 1
    (model,) = said("model", "list", "--provider", "openai")
    assert (model["input_nano_per_1k"], model["input_per_1k"]) == (1_250_000, "0.00125")
    assert "0.00125" in run("model", "list").output
    priced_later = run(
        *("model", "price", "gpt-5-chat", "--input-per-1k", "1", "--output-per-1k", "2"),
        *("--from", "2999-01-01"),
    )
    assert priced_later.output == (
        "Model gpt-5-chat has a new price from 2999-01-01 00:00:00 UTC on.\n"
    )
    assert [price["output_per_1k"] for price in said("model", "prices", "gpt-5-chat")] == [
        "2",
        "0.01",
    ]
    assert "2999-01-01" in run("model", "prices", "gpt-5-chat").output


def test_credits_are_granted_charged_and_stated(priced: Store) -> None:
    granted = run("credits", "grant", ADA, "12.5", "--request-id", "i1", "--note", "=1+1")
    assert granted.output == f"Granted {ADA} 12.5 credits; it has 12.5.\n"
    charge = ("credits", "charge", ADA, "gpt-5-chat", "--input-tokens", "1500")
    entry = said(*charge, "--output-tokens", "10", "--request-id", "r1")
    assert (entry["amount_nano"], entry["amount"]) == (-1_975_000, "-0.001975")
    assert said(*charge, "--output-tokens", "10", "--request-id", "r1") == entry
    assert said("credits", "balance", ADA) == {
        "account": ADA,
        "balance_nano": 12_498_025_000,
        "balance": "12.498025",
    }
    assert run("credits", "balance", ADA).output == f"{ADA} has 12.498025.\n"
    rows = said("credits", "statement", ADA)
    assert [row["amount"] for row in rows] == ["12.5", "-0.001975"]
    lines = run("credits", "statement", ADA, "--format", "jsonl").output.splitlines()
    assert [json.loads(line) for line in lines] == rows
    text = run("credits", "statement", ADA, "--format", "csv").stdout_bytes.decode()
    cells = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [cell["amount"] for cell in cells] == ["12.5", "-0.001975"]
    assert cells[0]["note"] == "'=1+1"  # a spreadsheet executes nothing
    assert [row["ledger_id"] for row in said("credits", "statement", ADA, "--after", "1")] == [2]
    assert "12.498025" in run("credits", "statement", ADA).output


def test_no_amount_of_a_statement_is_cut_at_a_narrow_terminal(
    priced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced.grant(ADA, "1234567.123456789", note="a note that is rather long " * 3)
    priced.charge(ADA, "gpt-5-chat", input_tokens=1500, output_tokens=200, request_id="r" * 40)
    monkeypatch.setattr("keystore.cli.common.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    text = run("credits", "statement", ADA).output
    assert "1234567.123456789" in text
    assert "1234567.119581789" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 40


def test_a_statement_of_many_pages_is_whole(priced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystore.cli.credits._PAGE", 2)
    for _ in range(5):
        priced.grant(ADA, "1")
    assert [row["balance"] for row in said("credits", "statement", ADA)] == [
        "1",
        "2",
        "3",
        "4",
        "5",
    ]


def test_usage_is_of_a_key_whose_token_comes_by_standard_input(priced: Store) -> None:
    issued = priced.issue_key(ADA)
    priced.grant(ADA, "1")
    charge = ("credits", "charge", ADA, "gpt-5-chat", "--input-tokens", "7", "--key", "-")
    assert run(*charge, stdin=f"{issued.token}\n").exit_code == 0
    found = priced.file.conn.execute("SELECT principal_type, amount FROM UsageLog").fetchall()
    assert found == [("api_key", 7)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("credits", "grant", ADA, "0.0000000001"), 1, "no whole number of nano-credits"),
        (("credits", "grant", ADA, "0"), 1, "no whole number of nano-credits"),
        (("credits", "grant", ADA, "--", "-1"), 1, "-1 is not between 0 and"),
        *(
            (("credits", "grant", ADA, amount), 1, f"{amount!r} is no number of credits")
            for amount in ("1e3", "1_000", "1,5", "٣", " 5", "NaN", "inf", "", ".", "0x10")
        ),
        (("credits", "grant", ADA, "lots"), 1, "'lots' is no number of credits"),
        (("credits", "balance", "bob@example.org"), 1, "there is no account"),
        (
            ("credits", "charge", ADA, "gpt-5-chats", "--input-tokens", "1"),
            1,
            "Did you mean 'gpt-5-chat'?",
        ),
        (
            ("credits", "charge", ADA, "gpt-5-chat", "--input-tokens", "1"),
            1,
            "has 0 credits; this costs 0.00000125",
        ),
        (("credits", "charge", ADA, "gpt-5-chat"), 2, "--input-tokens"),
        (("credits", "statement", ADA, "--format", "csv", "--json"), 2, "exclude each other"),
        (("provider", "add", "openai"), 1, "exists already"),
        (("model", "prices", "none"), 1, "there is no model 'none'"),
        (
            (
                *("model", "price", "gpt-5-chat", "--input-per-1k", "1", "--output-per-1k", "1"),
                *("--from", "2020-01-01"),
            ),
            1,
            "has begun already",
        ),
        (("model", "import", "nowhere.json"), 1, "nowhere.json: No such file"),
    ],
)
def test_what_goes_wrong_is_said_on_one_line(
    priced: Store, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert says in result.output
    if code == 1:
        assert len(result.output.splitlines()) == 1
        assert "Traceback" not in result.output


def test_a_ledger_is_exported_with_all_its_columns(priced: Store) -> None:
    priced.grant(ADA, "1", note="welcome")
    (line,) = run("export", "CreditLedger").stdout.splitlines()
    columns = {row[1] for row in priced.file.conn.execute("PRAGMA table_info(CreditLedger)")}
    assert json.loads(line).keys() == {"table", *columns}
    hours = {row[1] for row in priced.file.conn.execute("PRAGMA table_info(UsageHours)")}
    header = run("export", "UsageHours", "--format", "csv").stdout
    assert set(header.strip().split(",")) == hours
