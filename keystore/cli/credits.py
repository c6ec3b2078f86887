"""Commands on what accounts have: grant, charge, balance, statement. Amounts are in credits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from keystore import pricing
from keystore.cli.common import (
    argument_or_stdin,
    print_json,
    show,
    show_table,
    store_options,
    wants_json,
    with_credits,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from keystore.credit_models import LedgerEntry
    from keystore.store import Store

_PAGE = 1_000
_COLUMNS = (
    "ledger_id",
    "occurred_at",
    "kind",
    "amount",
    "balance",
    "model",
    "input_tokens",
    "output_tokens",
    "request_id",
    "note",
)
_SHOWN = ("ledger_id", "occurred_at", "amount", "balance", "what", "request_id")
"""In a table, which is to fit a terminal."""


def show_priced(rows: "Sequence[BaseModel]", columns: Sequence[str], *, empty: str) -> None:
    """Print rows with amounts as a table, or as JSON."""
    found = [with_credits(row.model_dump()) for row in rows]
    if wants_json():
        print_json(found)
    else:
        show_table([SimpleNamespace(**row) for row in found], columns, empty=empty)


@click.group("credits")
def credit() -> None:
    """What accounts have and spend. At an origin: a replica has no ledger."""


@credit.command("grant")
@click.argument("account")
@click.argument("amount")
@click.option("--request-id", metavar="ID", help="Granted once, however often it is asked for.")
@click.option("--note", metavar="TEXT", help="What it is for, in your words.")
@store_options
def credits_grant(
    db_path: Path, account: str, amount: str, request_id: str | None, note: str | None
) -> None:
    """Give ACCOUNT an AMOUNT of credits: a number with up to nine digits after the point.

    \b
    Example:
      keystore credits grant ada@example.org 12.50 --request-id invoice-17
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        entry = store.grant(account, amount, request_id=request_id, note=note)
    _show_entry(account, entry, "Granted")


@credit.command("charge")
@click.argument("account")
@click.argument("model")
@click.option("--input-tokens", type=int, required=True, metavar="N")
@click.option("--output-tokens", type=int, default=0, metavar="N")
@click.option("--request-id", metavar="ID", help="Charged once, however often it is asked for.")
@click.option(
    "--key",
    metavar="KEY",
    help='Whose usage it is; "-" is standard input. Default: the account\'s session.',
)
@store_options
def credits_charge(
    db_path: Path,
    account: str,
    model: str,
    input_tokens: int,
    output_tokens: int,
    request_id: str | None,
    key: str | None,
) -> None:
    """Charge ACCOUNT for tokens of MODEL by the price in force, and log them as usage.

    \b
    Example:
      keystore credits charge ada@example.org gpt-5-chat --input-tokens 1500 --request-id r1
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        entry = store.charge(
            account,
            model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            request_id=request_id,
            key=None if key is None else argument_or_stdin(key),
        )
    _show_entry(account, entry, "Charged")


@credit.command("balance")
@click.argument("account")
@store_options
def credits_balance(db_path: Path, account: str) -> None:
    """Say what ACCOUNT has.

    \b
    Example:
      keystore credits balance ada@example.org
    """
    from keystore.store import Store

    with Store.open(db_path) as store:
        nano = store.balance(account)
    text = pricing.text(nano)
    show({"account": account, "balance_nano": nano, "balance": text}, f"{account} has {text}.")


@credit.command("statement")
@click.argument("account")
@click.option("--after", type=click.IntRange(0, 2**63 - 1), default=0, metavar="LEDGER_ID")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
)
@store_options
def credits_statement(db_path: Path, account: str, after: int, file_format: str) -> None:
    """List what ACCOUNT was given and charged, the oldest first.

    \b
    Example:
      keystore credits statement ada@example.org --format csv
    """
    if wants_json() and file_format != "table":
        raise click.UsageError("--json and --format exclude each other; --format jsonl is JSON.")
    from keystore.store import Store

    with Store.open(db_path) as store:
        rows = _pages(store, account, after)
        if file_format == "table":
            empty = f"{account} has no entries{f' after {after}' if after else ''}."
            found = [with_credits(row.model_dump()) for row in rows]
            if wants_json():
                print_json(found)
            else:
                shown = [SimpleNamespace(**row, what=_what(row)) for row in found]
                show_table(shown, _SHOWN, empty=empty)
        elif file_format == "csv":
            _write_csv(rows)
        else:
            for row in rows:
                click.echo(json.dumps(with_credits(row.model_dump()), ensure_ascii=False))


def _what(row: Mapping[str, Any]) -> str:
    said = row["note"]
    if row["kind"] == "charge":
        said = f"{row['model']}, {row['input_tokens']} + {row['output_tokens']} tokens"
    return f"{row['kind']}: {said}" if said else row["kind"]


def _pages(store: "Store", account: str, after: int) -> "Iterator[LedgerEntry]":
    # page by page: a reader that takes its time must not hold a read transaction open
    while rows := store.statement(account, after=after, limit=_PAGE):
        yield from rows
        after = rows[-1].ledger_id


def _write_csv(rows: "Iterator[LedgerEntry]") -> None:
    from keystore.export import csv_cell

    click.echo(",".join(_COLUMNS) + "\r\n", nl=False)
    for row in rows:
        values = with_credits(row.model_dump())
        # (an amount is no text: its "-" is no formula)
        cells = (
            values[name] if name in {"amount", "balance"} else csv_cell(values[name])
            for name in _COLUMNS
        )
        click.echo(",".join(cells) + "\r\n", nl=False)


def _show_entry(account: str, entry: "LedgerEntry", what: str) -> None:
    amount, balance = pricing.text(abs(entry.amount_nano)), pricing.text(entry.balance_nano)
    show(with_credits(entry.model_dump()), f"{what} {account} {amount} credits; it has {balance}.")


COMMANDS: tuple[click.Command, ...] = (credit,)
